"""One run, from its configuration to its result: build, fit, test, write down.

result = train(optimizer="adam", epochs=3)
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from torch.distributed import DistNetworkError, DistStoreError

from analysis.diagnosis import SPLITS, Trend, describe_measurement, markdown
from analysis.reports import write_report
from analysis.tensorboard import log_result, result_rows, writer_of
from cifar10.config import Data
from cifar_datamodule import CIFAR10DataModule
from core.cores import cores
from core.errors import UsageError
from core.locks import hold_lock
from lenet_module import LeNetModule
from models.checkpoint import LAST
from models.config import Teacher
from models.distillation import load_teacher
from training import callbacks as visible
from training.best_model import show_run
from training.checkpoints import RunCheckpoint, StopOnSignal, calibrate, relate_folders
from training.config import SETTINGS, RunConfig, format_flags, resolve_config
from training.description import count_parameters, describe, describe_in_lines, describe_in_short, describe_versions
from training.files import LOCK, RunResult, reserve_version, write_config, write_result
from training.hardware import keep_freed_memory, return_freed_memory
from training.trainer import (
    RunLogger,
    count_devices,
    end_started,
    end_with_starter,
    make_trainer,
    refuse_hardware,
)

LOG_EVERY = 20  # steps between two points of a curve over steps, if an epoch has as many


def train(
    config: RunConfig | None = None, *, resume: Path | None = None, started: float | None = None, **flags: Any
) -> RunResult:
    """Train LeNet-5 on CIFAR-10, then test the checkpoint that was best on the validation split, once.

    Args:
        config: The run's configuration; None takes the defaults.
        resume: The checkpoint to resume from, in the folder of its run, whose configuration `config` is.
        started: `time.time()` when the command started; None is now.
        flags: Single settings of `RunConfig`, such as `epochs=3`, instead of those of `config`.

    Returns:
        The result. Of several processes the first alone returns, and the others end.

    Raises:
        UsageError: The settings contradict each other, or another run goes on in this process.
        DataError: No source gives the data set.
        FloatingPointError: The training loss is no longer finite.
        Stopped: Ctrl-C or SIGTERM.
    """
    with refuse_second_run():
        run = build((config or RunConfig()).changed(flags), resume, started)
        with run.lock, run.stop:
            try:
                fit(run)
                found = load_best(run)
                if writer := writer_of(run.trainer):
                    about = describe_in_short(run.config, run.parameters)
                    shown = show_run(writer, run.module, run.datamodule, run.config, about)
                    found["trend"], found["temperature"] = shown
                found |= test(run)
                if not run.trainer.is_global_zero:
                    os._exit(0)  # at once: PyTorch's clean-up aborts where another process has ended before
                return write(run, **found)
            except BaseException as error:
                end_started(run.trainer)
                add_advice(error, run)
                raise


_running = threading.Lock()


@contextmanager
def refuse_second_run() -> Iterator[None]:
    """Raise UsageError if a run goes on in this process already: both would draw from the same random generators."""
    if not _running.acquire(blocking=False):
        raise UsageError("another run goes on in this process; start each run in a process of its own")
    try:
        yield
    finally:
        _running.release()


@dataclass
class Run:
    """The parts of a run; `logger` is None, and nothing is locked, if nothing is written."""

    config: RunConfig
    resume: Path | None
    datamodule: CIFAR10DataModule
    module: LeNetModule
    trainer: pl.Trainer
    stop: StopOnSignal
    clock: visible.RunClock
    best: RunCheckpoint | None  # None if no epoch is chosen
    last: RunCheckpoint
    parameters: int  # of the network
    logger: RunLogger | None = None
    lock: ExitStack = field(default_factory=ExitStack)


def build(config: RunConfig, resume: Path | None = None, started: float | None = None) -> Run:
    """Make all parts of a run, and last its folders, so that neither bad flags nor missing data leave any."""
    refuse_hardware(config)
    config = complete(config)
    prepare_process(config)
    datamodule, module = make_modules(config)
    monitor = f"{config.select_on}/acc" if config.val_size or config.select_on == "test" else None
    best_name = f"best-epoch={{epoch:02d}}-{config.select_on}_acc={{{monitor}:.4f}}"
    best = RunCheckpoint(best_name, config, monitor) if monitor else None
    last = RunCheckpoint(Path(LAST).stem, config)
    stop, clock = StopOnSignal(later=config.num_nodes * count_devices(config) > 1), visible.RunClock(started)
    trainer = make_trainer(
        config,
        max_epochs=config.epochs,
        callbacks=[stop, *make_callbacks(config, clock), *([] if config.fast_dev_run else filter(None, [best, last]))],
        limit_val_batches=None if monitor else 0,
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=not config.fast_dev_run,
        fast_dev_run=config.fast_dev_run,
    )
    config.check_batch(trainer.world_size)
    parameters = count_parameters(config) or sum(each.numel() for each in module.parameters())
    if trainer.is_global_zero and not config.quiet:
        print(describe_in_lines(config, parameters), flush=True)
    datamodule.prepare_data()
    datamodule.setup()
    trainer.log_every_n_steps = min(LOG_EVERY, len(datamodule.train_dataloader()))  # type: ignore[attr-defined]
    run = Run(config, resume, datamodule, module, trainer, stop, clock, best, last, parameters)
    if not config.fast_dev_run:
        make_folders(run)
    return run


def make_callbacks(config: RunConfig, clock: visible.RunClock) -> list[pl.Callback]:
    """Return what shows the progress of a run, in the order in which it acts."""
    parts: list[pl.Callback] = [visible.EpochHistory(clock), clock, visible.SeededEpochs(config.seed)]
    if not config.quiet:
        parts = [visible.EpochLine(clock), *parts, visible.ProgressBar()]
    if config.fast_dev_run:
        return parts
    loss_measured = describe_measurement(config.plain())[1]
    parts += [LearningRateMonitor("step"), visible.GradientNorm(), visible.ClassAccuracy(config.select_on)]
    if config.pictures:
        parts += [visible.CustomCharts(clock, config.select_on, loss_measured), visible.FilterPictures()]
    return parts


def fit(run: Run) -> None:
    """Train all epochs, or the rest of a run to resume.

    Raises:
        UsageError: The processes of the run do not meet.
    """
    if run.trainer.world_size > 1:
        end_with_starter()
    if run.config.num_nodes > 1 and run.trainer.local_rank == 0:
        environment = run.trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        place = f"{environment.main_address}:{environment.main_port}"
        print(f"waiting for the other machines at {place}", file=sys.stderr, flush=True)
    try:
        run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=run.resume, weights_only=True)
    except (DistNetworkError, DistStoreError) as error:  # such as a port that is taken
        raise UsageError(f"the processes of the run do not meet: {str(error).splitlines()[0]}") from error


def load_best(run: Run) -> dict[str, Any]:
    """Give the module the best epoch's weights, or leave it the last ones if none was chosen.

    Returns:
        Best epoch, and its accuracy, by the fields of `RunResult`.
    """
    return_freed_memory()
    if not (run.best and run.best.best_model_path):
        return {"best_epoch": None, "val_acc": None}
    best = torch.load(run.best.best_model_path, weights_only=True)
    run.module.load_state_dict(best["state_dict"])
    return {"best_epoch": best["epoch"] + 1, "val_acc": float(run.best.best_model_score or 0)}


def test(run: Run) -> dict[str, float]:
    """Test the module in float32; accuracy and loss are returned by the fields of `RunResult`."""
    tester, module = run.trainer, run.module
    if next(module.parameters()).dtype != torch.float32 and tester.world_size == 1:  # as with "bf16-true"
        tester = make_trainer(replace(run.config, devices=1, strategy="auto", precision="32-true"))
        module = LeNetModule(run.config, val_name=run.config.select_on)
        module.load_state_dict(run.module.state_dict())
    tester.loggers = []  # the result has the figures; curves of one point would hide the others
    tester.test(module, datamodule=run.datamodule, verbose=False)
    return {f"test_{name}": tester.callback_metrics[f"test/{name}"].item() for name in ("acc", "loss")}


def write(run: Run, trend: Trend | None = None, temperature: float | None = None, **found: Any) -> RunResult:
    """Complete the result, write it for TensorBoard, as a report and as a summary, and return it."""
    config = run.config
    best = run.best.best_model_path if run.best else ""
    checkpoint = best or run.last.best_model_path
    result = RunResult(
        epochs=config.epochs,
        select_on=config.select_on,
        seconds=run.clock.seconds_elapsed,
        images_per_second=run.clock.images_per_second,
        log_dir=Path(run.logger.log_dir) if run.logger else None,
        checkpoint=Path(checkpoint) if checkpoint else None,
        trend=trend,
        **found,
    )
    if temperature and best:
        calibrate(Path(best), temperature)
    if run.logger and result.log_dir:
        values = config.plain()
        defaults = RunConfig(optimizer=config.optimizer).plain() | {"optimizer": RunConfig.optimizer}
        settings = {name: value for name, value in values.items() if SETTINGS[name].metadata["identity"]}
        description = describe(config, run.parameters) | {"versions": describe_versions()}
        log_result(run.logger.experiment, description, settings, result.plain(), config.epochs)
        run.logger.finalize("success")
        write_report(
            result.log_dir,
            title=f"CIFAR-10: {result.log_dir.parent.name}, {result.log_dir.name}",
            command=format_flags({name: value for name, value in values.items() if value != defaults[name]}),
            settings=description.items(),
            result=result_rows(result.plain()),
            images=SPLITS[config.select_on],
            trend=markdown(trend) if trend else "",
            pictures=config.pictures,
        )
        write_result(result.log_dir, config, result)  # last: with it the run counts as finished
    return result


def add_advice(error: BaseException, run: Run) -> None:
    """Add to an error, such as a full disk or another process that is gone, how the run goes on."""
    advice = run.stop.advise()
    if run.logger and not Path(run.logger.log_dir).exists():
        advice = f"{run.logger.log_dir} was removed while the run trained: make it again, then {advice}"
    if isinstance(error, OSError | RuntimeError):
        error.add_note(advice)


def complete(config: RunConfig) -> RunConfig:
    """Return a configuration with all that a run decides once, at its start, and keeps."""
    threads = config.threads or min(torch.get_num_threads(), cores())  # PyTorch does not know a container's limits
    return replace(resolve_config(config), threads=threads)


def prepare_process(config: RunConfig) -> None:
    """Set this process up for a run whose configuration is complete: its allocator, threads and random generators."""
    keep_freed_memory()
    assert config.threads
    torch.set_num_threads(config.threads)
    pl.seed_everything(config.seed, verbose=False)


def make_modules(config: RunConfig) -> tuple[CIFAR10DataModule, LeNetModule]:
    """Make the data module and the module of a run."""
    teacher = load_teacher(config.group(Teacher), config.group(Data), config.cache_folder) if config.teacher else None
    return CIFAR10DataModule(config, teacher=teacher), LeNetModule(config, val_name=config.select_on)


def make_folders(run: Run) -> None:
    """Make the folders of a new run, or take those of the run to resume; lock them and write the configuration."""
    config, trainer = run.config, run.trainer
    name, version = config.name, ""  # in processes beyond the first, which write nothing
    if run.resume:
        name, version = run.resume.absolute().parent.parent.name, run.resume.absolute().parent.name
    elif trainer.is_global_zero:
        version = reserve_version(config.log_dir / name, config.checkpoint_dir / name)
    folder = config.checkpoint_dir / name / version
    for checkpoint in filter(None, [run.best, run.last]):
        checkpoint.dirpath = str(folder)
        checkpoint.folders = relate_folders(config, folder)
    run.stop.folder = folder
    run.logger = trainer.logger = RunLogger(config.log_dir, name, version, default_hp_metric=False)
    if trainer.is_global_zero:
        run.lock.enter_context(hold_lock(folder / LOCK, f"{folder}: another process is at this run"))
        if sys.platform != "win32":  # where the lock takes its file away itself
            run.lock.callback((folder / LOCK).unlink, missing_ok=True)
        Path(run.logger.log_dir).mkdir(parents=True, exist_ok=True)
        write_config(Path(run.logger.log_dir), config)
