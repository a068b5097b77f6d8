"""One run: LeNet-5 learns CIFAR-10 on the CPU.

python train.py --optimizer adam
python train.py --config recipes/coursework.yaml --seed 1
python train.py --optimizer adam --find_lr
python train.py --test checkpoints/adam-lr0.002-bs128-seed0/version_0/last.ckpt
"""

import itertools
import json
import logging
import shlex
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Literal

from jsonargparse import SUPPRESS

from cifar10.errors import UsageError
from cifar10.storage import write_bytes
from experiments.runs import NO_PART, SUMMARY
from training.cli import (
    CorruptName,
    DenoiseName,
    NetworkName,
    NormalizeName,
    OptimizerName,
    Parser,
    RecipeFile,
    ScheduleName,
    SegmentName,
    check,
    exit_status,
    preprocessing,
)
from training.diagnosis import Trend, sentences

MAY_CHANGE = NO_PART - {"checkpoint_dir", "fast_dev_run"}  # when a run is resumed
TEST_MAY_CHANGE = {"denoise", "denoise_strength", "corrupt", "severity"}  # for studies of a trained network


def train(
    optimizer: OptimizerName = "sgd",
    lr: float | None = None,
    weight_decay: float | None = None,
    momentum: float = 0.9,
    nesterov: bool = True,
    schedule: ScheduleName = "onecycle",
    epochs: int = 10,
    batch_size: int = 128,
    label_smoothing: float = 0.0,
    network: NetworkName = "lenet5",
    width: int = 3,
    teacher: Path | None = None,
    teacher_weight: float = 0.9,
    crop: int = 2,
    flip: bool = True,
    cutout: int = 0,
    plain_epochs: int = 0,
    denoise: DenoiseName = "none",
    denoise_strength: float | None = None,
    segment: SegmentName = "none",
    normalize: NormalizeName = "zca",
    corrupt: CorruptName = "none",
    severity: int | None = None,
    corrupt_on: Literal["test", "both"] = "test",
    val_size: int = 5000,
    split_seed: int = 0,
    select_on: Literal["val", "test"] = "val",
    seed: int = 0,
    data_dir: Path = Path("data"),
    mirror: str | None = None,
    log_dir: Path = Path("logs"),
    checkpoint_dir: Path = Path("checkpoints"),
    tag: str | None = None,
    pictures: bool = True,
    quiet: bool = False,
    threads: int | None = None,
    accelerator: str = "cpu",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: int | str = "32-true",
    fast_dev_run: bool = False,
    resume: Path | None = None,
) -> dict[str, Any]:
    """Train LeNet-5 on CIFAR-10, then test the checkpoint that was best on the validation split, once.

    Args:
        optimizer: How the weights are updated.
        lr: Peak learning rate; null takes the optimizer's default.
        weight_decay: Weight decay; null takes the optimizer's default.
        momentum: Of sgd.
        nesterov: Whether sgd's momentum is Nesterov's.
        schedule: The learning rate over the run; onecycle warms up for a quarter of it, then falls linearly to 0.
        epochs: Passes over the training images.
        batch_size: Images per step, over all devices.
        label_smoothing: Share of the training target that is spread over all classes.
        network: LeNet-5, or a small residual network of 784,632 parameters that can teach it.
        width: Factor on the classic layer widths of lenet5; 3 has 548,878 parameters, 1 has 62,006.
        teacher: Checkpoint, or a run's folder, of a network whose softened answers are learned beside the labels.
        teacher_weight: Their share of the training loss.
        crop: Largest random shift of a training image, in pixels; 0 is off.
        flip: Whether half of the training images, at random, are mirrored.
        cutout: Side of a random square erased from each training image, in pixels; 0 is off.
        plain_epochs: How many epochs, the last ones, go without crop and cutout.
        denoise: What smooths every image before training, once.
        denoise_strength: Of gaussian sigma in pixels, of median the window in pixels, odd, of bilateral the difference
            in grey levels that is an edge, of nlmeans the noise in grey levels; null takes the method's default.
        segment: Gives the background (otsu, grabcut) or each superpixel one colour, its mean.
        normalize: By the training images' mean and standard deviation; before that, zca whitens all images, image
            standardises each by itself, contrast equalises it locally (CLAHE); dataset does nothing before. With none,
            pixels are only divided by 255.
        corrupt: What damages images before all else, as in CIFAR-10-C.
        severity: Of the damage, 1 to 5; null takes 3.
        corrupt_on: Which images are damaged: the test images, or the training and validation images too.
        val_size: Images held out of training for validation, a multiple of 10; with 0 the last epoch is tested.
        split_seed: Chooses the validation images.
        select_on: Where the best epoch is chosen; "test" shows the bias of the report, and is for nothing else.
        seed: Initial weights, order of the images, augmentation.
        data_dir: Folder of the data set, which is downloaded if it is not there.
        mirror: URL of an official CIFAR-10 archive, instead of the known sources.
        log_dir: Folder for TensorBoard.
        checkpoint_dir: Folder for checkpoints.
        tag: Added to the name of the run's folder, which tells optimizer, learning rate, batch size and seed.
        pictures: Whether TensorBoard gets pictures, the graph and the projector too; without them logs are small.
        quiet: Nothing is printed but the summary.
        threads: CPU threads of each process; null leaves it to PyTorch. Another number rounds differently.
        accelerator: As Lightning's Trainer takes it, like the four flags that follow.
        devices: Processes on this machine, or GPUs.
        num_nodes: Machines.
        strategy: How several devices work together.
        precision: Of the arithmetic.
        fast_dev_run: One batch of everything; nothing is saved.
        resume: Checkpoint to go on from, in the folder of its run; the other flags must be that run's.

    Returns:
        What the summary shows: `epochs`, `select_on`, `best_epoch`, `val_acc`, `test_acc`, `test_loss` (accuracies are
        fractions; None where there is none; with `select_on` "test" both are of the test set), `seconds`,
        `images_per_second`, `log_dir`, `checkpoint`, and `trend`, the fields of `trend.Trend`. In processes beyond
        the first, nothing.

    Raises:
        UsageError: The flags contradict each other.
        DataError: No source gives the data set.
        FloatingPointError: The training loss is no longer finite.
        Stopped: Ctrl-C or SIGTERM.
    """
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in locals().items()}
    check(flags)
    del flags["resume"]

    # These take seconds to import: a bad flag is refused before.
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import LearningRateMonitor
    from pytorch_lightning.loggers import TensorBoardLogger

    from training import callbacks as visible
    from training.checkpoints import LAST, RunCheckpoint, StopOnSignal
    from training.evaluation import BestModel, log_result

    start = time.perf_counter()
    datamodule, module = set_up(flags)
    flags |= {"lr": module.hparams["lr"], "weight_decay": module.hparams["weight_decay"]}
    name = f"{optimizer}-lr{flags['lr']:g}-bs{batch_size}-seed{seed}" + (f"-{tag}" if tag else "")
    monitor = f"{select_on}/acc" if val_size or select_on == "test" else None

    progress, stop, best_model = visible.EpochLines(quiet), StopOnSignal(), BestModel(select_on, draw=pictures)
    best = RunCheckpoint(f"best-epoch={{epoch:02d}}-{select_on}_acc={{{monitor}:.4f}}", flags, monitor)
    last = RunCheckpoint(Path(LAST).stem, flags)
    callbacks: list[pl.Callback] = [progress, stop]
    if not fast_dev_run:
        callbacks += [LearningRateMonitor("step"), visible.GradientNorm(), visible.TrainingSpeed()]
        callbacks += [visible.ChartLayout(select_on), visible.ClassAccuracy(select_on), best_model]
        callbacks += [visible.TrainingBatch(), visible.ConvFilters(), visible.Graph()] if pictures else []
        callbacks += [visible.BeforeAndAfter()] if pictures else []
        callbacks += [*([best] if monitor else []), last]
    trainer = make_trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        max_epochs=epochs,
        callbacks=callbacks,
        limit_val_batches=None if monitor else 0,
        log_every_n_steps=20,
        enable_checkpointing=not fast_dev_run,
        fast_dev_run=fast_dev_run,
    )
    if batch_size % trainer.world_size:
        raise UsageError(f"--batch_size {batch_size}: does not divide by the {trainer.world_size} processes")

    logger = None
    if not fast_dev_run:  # folders are made last: neither bad flags nor missing data leave any behind
        if resume:
            name, version = resume.absolute().parent.parent.name, resume.absolute().parent.name
        elif trainer.is_global_zero:
            datamodule.prepare_data()
            datamodule.setup()
            version = reserve_version(log_dir / name, checkpoint_dir / name)
        else:
            version = ""  # the first process writes
        best.dirpath = last.dirpath = str(checkpoint_dir / name / version)
        logger = TensorBoardLogger(log_dir, name, version, default_hp_metric=False)
        logger.hparams.update(flags)  # into hparams.yaml
        trainer.logger = logger
    with stop:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
        result: dict[str, Any] = {"best_epoch": None, "val_acc": None}
        if best.best_model_path:
            loaded = torch.load(best.best_model_path, weights_only=True)
            module.load_state_dict(loaded["state_dict"])
            result |= {"best_epoch": loaded["epoch"] + 1, "val_acc": float(best.best_model_score or 0)}
        trainer.test(module, datamodule=datamodule, verbose=False)
    if not trainer.is_global_zero:
        return {}
    result |= {
        "epochs": epochs,
        "select_on": select_on,
        "test_acc": trainer.callback_metrics["test/acc"].item(),
        "test_loss": trainer.callback_metrics["test/loss"].item(),
        "seconds": time.perf_counter() - start,
        "images_per_second": progress.images_per_second,
        "log_dir": logger.log_dir if logger else None,
        "checkpoint": best.best_model_path or last.best_model_path or None,
        "trend": best_model.trend and best_model.trend.as_dict(),
    }
    if logger:
        log_result(logger.experiment, flags, result, epochs)
        logger.finalize("success")
        write_bytes(Path(logger.log_dir) / SUMMARY, json.dumps({"flags": flags} | result, indent=2).encode())
    return result


def set_up(flags: dict[str, Any]) -> Any:
    """Set the process up, and make the `CIFAR10DataModule` and the `LeNetModule` that the flags of `train` describe."""
    import torch
    from pytorch_lightning import seed_everything

    from cifar_datamodule import PREPROCESSED, CIFAR10DataModule
    from lenet_module import LeNetModule
    from models.classifier import load_teacher
    from training.memory import keep_freed_memory

    keep_freed_memory()
    if flags["threads"]:
        torch.set_num_threads(flags["threads"])
    seed_everything(flags["seed"], verbose=False)
    data = ("data_dir", "batch_size", "val_size", "split_seed", "seed", "crop", "flip", "cutout", "mirror")
    kept = Path(flags["data_dir"]) / PREPROCESSED
    learning = (
        *("optimizer", "lr", "weight_decay", "momentum", "nesterov", "schedule"),
        *("network", "width", "label_smoothing", "teacher_weight"),
    )
    datamodule = CIFAR10DataModule(
        **{name: flags[name] for name in data},
        augmented_epochs=flags["epochs"] - flags["plain_epochs"],
        validate_on=flags["select_on"],
        preprocessing=preprocessing(flags),
        teacher=load_teacher(Path(flags["teacher"]), flags, kept) if flags["teacher"] else None,
    )
    return datamodule, LeNetModule(**{name: flags[name] for name in learning}, val_name=flags["select_on"])


def find_lr(flags: dict[str, Any]) -> tuple[float, Path]:
    """The learning-rate range test with the flags of `train`; the suggested rate, and the picture of the test."""
    check(flags)

    from training.lr_finder import STEPS, lr_range, save

    datamodule, module = set_up(flags)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            accelerator=flags["accelerator"],
            devices=1,
            precision=flags["precision"],
            max_epochs=STEPS,
            limit_val_batches=0,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        found = lr_range(module, datamodule, trainer)
    name = f"{flags['optimizer']}-bs{flags['batch_size']}-seed{flags['seed']}"
    return found.suggestion, save(found, Path(flags["log_dir"]), name)


def resumed_flags(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The flags to go on with from a checkpoint: its own, and those of `given` that a resumed run may change.

    Raises:
        UsageError: `path` is no checkpoint in the folder of its run, or `given` changes what the run is.
    """
    from training.checkpoints import LAST, load_module

    path = path / LAST if path.is_dir() else path
    stored = load_module(path)[1]["flags"]
    if not path.absolute().parent.name.startswith("version_"):
        raise UsageError(f"--resume {path}: must be in its run's folder, checkpoints/<run>/version_N")
    for name, value in given.items():
        longer = name == "epochs" and stored["schedule"] == "constant" and value >= stored["epochs"]
        if not (name in MAY_CHANGE or longer or str(value) == str(stored.get(name))):
            raise UsageError(f"--{name} {value}: the run to resume has {stored.get(name)}, which must stay")
    return stored | given | {"resume": path, "checkpoint_dir": path.absolute().parent.parent.parent}


def finished(flags: dict[str, Any]) -> dict[str, Any] | None:
    """The result of the run that `flags` would go on with, if it has trained all its epochs and was tested."""
    folder = flags["resume"].absolute().parent
    try:
        result = json.loads((flags["log_dir"] / folder.parent.name / folder.name / SUMMARY).read_text())
    except FileNotFoundError:
        return None
    return result if result["epochs"] >= flags["epochs"] else None


def test(
    checkpoint: Path, data_dir: Path = Path("data"), mirror: str | None = None, tta: bool = False, **changes: Any
) -> dict[str, float]:
    """Evaluate a checkpoint of `train` on the official test set, preprocessed as in its run.

    Args:
        tta: Whether each image is classified together with its mirror.
        changes: Flags in TEST_MAY_CHANGE, instead of those of the run.

    Returns:
        `test/loss` and `test/acc`, a fraction.

    Raises:
        UsageError: The file is no checkpoint of this program, or the changes contradict its run.
        DataError: No source gives the data set.
    """
    from cifar_datamodule import CIFAR10DataModule
    from models.networks import Mirrored
    from training.checkpoints import load_module

    module, loaded = load_module(checkpoint)
    if tta:
        module.model = Mirrored(module.model)  # type: ignore[assignment]
    datamodule = CIFAR10DataModule(data_dir, mirror=mirror)
    datamodule.load_state_dict(loaded["CIFAR10DataModule"])
    datamodule.preprocessing = preprocessing(changes, datamodule.preprocessing)
    trainer = make_trainer(accelerator="cpu", devices=1)
    trainer.test(module, datamodule=datamodule, verbose=False)
    return {name: trainer.callback_metrics[name].item() for name in ("test/loss", "test/acc")}


def make_trainer(**options: Any) -> Any:
    """Lightning's Trainer with what all runs of this project share; UsageError if it refuses an option."""
    import pytorch_lightning as pl
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from training.checkpoints import AtomicCheckpointIO

    # What Lightning would say here is either in our own lines or does not hold for data in memory.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a resumed run's
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 on newer PyTorch
    try:
        return pl.Trainer(
            deterministic=True,
            use_distributed_sampler=False,  # the data module shares out the images itself
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            plugins=[AtomicCheckpointIO()],
            **options,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(str(error).splitlines()[0]) from error


def reserve_version(log_dir: Path, checkpoint_dir: Path) -> str:
    """Make the folders `version_N` of a new run below both, and return that name.

    mkdir decides who has N, so no two runs share it, however close together they start.
    """
    for number in itertools.count():
        version = f"version_{number}"
        try:
            if not (checkpoint_dir / version).exists():
                (log_dir / version).mkdir(parents=True)
                (checkpoint_dir / version).mkdir(parents=True, exist_ok=True)
                return version
        except FileExistsError:
            if not (log_dir / version).is_dir():
                raise UsageError(f"{log_dir / version}: in the way of a folder") from None
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}") from error
    raise AssertionError


def summary(result: dict[str, Any]) -> str:
    """The lines that end a run."""
    lines = {"test accuracy": f"{result['test_acc']:.2%}"}
    lines["wall time"] = f"{result['seconds']:.1f} s, {result['images_per_second']:,.0f} images/s"
    if result.get("trend"):
        lines |= sentences(Trend(**result["trend"]), result.get("select_on", "val"))
    if result["log_dir"]:
        lines |= {"logs": result["log_dir"], "checkpoint": result["checkpoint"]}
        lines["next"] = f"tensorboard --logdir {Path(result['log_dir']).parent.parent}"
    return "\n".join(f"{name:<15}{value}" for name, value in lines.items())


def parser() -> Parser:
    parser = Parser(description="LeNet-5 on CIFAR-10.", usage="%(prog)s [flags]")
    parser.add_function_arguments(train, skip={"fast_dev_run", "quiet"})
    parser.add_argument("--fast_dev_run", action="store_true", help="One batch of everything; nothing is saved.")
    parser.add_argument("--quiet", action="store_true", help="Nothing is printed but the summary.")
    parser.add_argument("--config", action=RecipeFile, help="YAML file of flags, such as those in recipes/.")
    parser.add_argument("--test", type=Path, metavar="CHECKPOINT", help="Only evaluate a checkpoint on the test set.")
    parser.add_argument(
        "--tta", action="store_true", default=SUPPRESS, help="With --test: each image together with its mirror."
    )
    parser.add_argument(
        "--release", type=Path, metavar="FILE", default=SUPPRESS, help="With --test: write its weights for publication."
    )
    parser.add_argument(
        "--find_lr", action="store_true", default=SUPPRESS, help="Only test learning rates, and suggest one."
    )
    return parser


def main() -> None:
    flags = parser().parse_args(defaults=False).as_dict()
    flags.pop("config", None)
    checkpoint, resume = flags.pop("test", None), flags.pop("resume", None)
    finding, tta, target = flags.pop("find_lr", False), flags.pop("tta", False), flags.pop("release", None)
    if (tta or target) and not checkpoint:
        raise UsageError("--tta, --release: only with --test")
    if target and (tta or flags.keys() & TEST_MAY_CHANGE):  # it states the accuracy of the checkpoint as it is
        raise UsageError(f"--release: not with --tta, --{', --'.join(sorted(TEST_MAY_CHANGE))}")
    if finding and (checkpoint or resume):
        raise UsageError("--find_lr: not with --test or --resume")
    if checkpoint:
        if unused := flags.keys() - {"data_dir", "mirror"} - TEST_MAY_CHANGE:
            raise UsageError(f"--{min(unused)}: not with --test, which takes the flags of the checkpoint")
        figures = test(checkpoint, **flags, tta=tta)
        for name, value in figures.items():
            print(f"{name:<15}{value:.4f}")
        if target:
            from training.checkpoints import release

            release(checkpoint, target, figures["test/acc"])
            print(f"{'released':<15}{target}")
        return
    if resume:
        flags = resumed_flags(resume, flags)
    flags = parser().parse_object(flags).as_dict()
    if finding:
        lr, picture = find_lr(flags)
        again = [argument for argument in sys.argv[1:] if argument != "--find_lr"]
        print(f"suggested      {lr:g}\npicture        {picture}")
        print(f"next           {shlex.join(['python', 'train.py', *again, '--lr', f'{lr:g}'])}")
        return
    result = finished(flags) if resume else None
    result = result or train(**{name: flags[name] for name in flags.keys() - {"config", "test"}})
    if result:
        print(summary(result))


if __name__ == "__main__":
    sys.exit(exit_status(main))
