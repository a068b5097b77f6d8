"""The learning-rate range test: how the loss goes while the learning rate grows from step to step.

    python train.py --optimizer adam --find_lr

After Smith 2017, Cyclical Learning Rates for Training Neural Networks. Suggested is the middle of the valley of the
loss, on the logarithmic axis: near the highest rate that still trains, and so what a schedule that warms up may rise
to. It is a start, no more: for some optimizers whole runs want several times as much or as little, as a sweep shows.
The point of steepest fall, Lightning's own suggestion, is lower still.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from analysis import figures
from analysis.tensorboard import add_figure
from core.signals import StopSignals
from training.callbacks import ProgressBar
from training.config import RunConfig
from training.run import complete, make_modules, prepare_process, refuse_second_run
from training.trainer import make_trainer, refuse_hardware

STEPS = 300
LOWEST, HIGHEST = 1e-3, 30.0  # rates at the start and the end, in units of the module's own
WINDOW = 21  # steps over which the losses are averaged
VALLEY = 0.9  # share of the loss's whole fall that is kept everywhere in the valley


@dataclass(frozen=True)
class LRRange:
    """The losses of the test, and what follows from them."""

    lrs: np.ndarray  # float64 [N], learning rates, each the middle of a window
    losses: np.ndarray  # float64 [N], training losses averaged over the windows

    @property
    def valley(self) -> tuple[float, float]:
        """Return the learning rates between which the loss stays close to its lowest."""
        lowest = int(np.argmin(self.losses))
        limit = VALLEY * self.losses[lowest] + (1 - VALLEY) * self.losses[0]
        outside = np.flatnonzero(self.losses > limit)
        first = outside[outside < lowest].max(initial=-1) + 1
        last = outside[outside > lowest].min(initial=len(self.losses)) - 1
        return float(self.lrs[first]), float(self.lrs[last])

    @property
    def suggestion(self) -> float:
        """Return the middle of the valley, a geometric mean, to two digits."""
        return float(f"{np.sqrt(np.prod(self.valley)):.2g}")


class GrowingRate(Callback):
    """A learning rate that grows from step to step, by an optimizer whose own is constant; records both."""

    def __init__(self) -> None:
        self.lrs: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        self.lrs.append(module.config.lr * LOWEST * (HIGHEST / LOWEST) ** (trainer.global_step / STEPS))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.lrs[-1]

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(outputs["loss"].item())


def find_lr(config: RunConfig) -> tuple[float, Path]:
    """Test learning rates around that of a run, with a constant schedule.

    Returns:
        The suggested rate, and the picture of the test.

    Raises:
        FloatingPointError: The loss was not finite after the first few steps.
        UsageError, DataError, Stopped: As of `run.train`.
    """
    with refuse_second_run(), StopSignals(lambda: "no learning rate was found yet"):
        refuse_hardware(config)
        config = complete(config)
        prepare_process(config)
        found = record_losses(config)
        name = f"{config.optimizer}-bs{config.batch_size}-seed{config.seed}"
        return found.suggestion, save(found, config.log_dir, name)


def record_losses(config: RunConfig) -> LRRange:
    """Train with a growing rate, and return the losses."""
    datamodule, module = make_modules(replace(config, schedule="constant"))
    grown = GrowingRate()
    trainer = make_trainer(
        replace(config, devices=1, num_nodes=1, strategy="auto"),
        max_epochs=STEPS,
        max_steps=STEPS,
        limit_val_batches=0,
        enable_checkpointing=False,
        callbacks=[grown, ProgressBar()],
    )
    with suppress(FloatingPointError):  # a loss that is not finite ends the test
        trainer.fit(module, datamodule=datamodule)
    losses = np.array(grown.losses)
    if len(losses) < WINDOW:
        raise FloatingPointError(f"the training loss was not finite at learning rate {grown.lrs[-1]:.2g}")
    lrs = np.array(grown.lrs)[WINDOW // 2 :][: len(losses) - WINDOW + 1]
    return LRRange(lrs, np.convolve(losses, np.ones(WINDOW) / WINDOW, "valid"))


def save(found: LRRange, log_dir: Path, name: str) -> Path:
    """Draw the test for TensorBoard and into a PNG file, whose path is returned; both in `log_dir`/find_lr/`name`."""
    logger = TensorBoardLogger(log_dir, "find_lr", name, default_hp_metric=False)
    figure = figures.plot_lr_range(
        found.lrs, found.losses, found.valley, found.suggestion, f"Learning-rate range test, {name}"
    )
    path = Path(logger.log_dir) / "lr_range_test.png"
    add_figure(logger.experiment, "whole_run/lr_range_test", figure, 0, path)
    logger.experiment.close()
    return path
