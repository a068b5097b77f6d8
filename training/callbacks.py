"""What a person sees while a run goes on: lines on the terminal, curves and pictures in TensorBoard.

Each callback is one part of a run:

    pl.Trainer(callbacks=[EpochLine(clock), clock, ProgressBar(), GradientNorm()], ...)

What is logged once an epoch is logged over the number of epochs done, before the checkpoint is written; so a killed
and resumed run has whole curves.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from analysis import figures
from analysis.diagnosis import SPLITS
from analysis.reports import HISTORY, write_csv
from analysis.tensorboard import writer_of
from cifar10.records import CLASS_NAMES
from core.streams import Stream


class RunClock(Callback):
    """Count the images and the seconds of a run.

    Both are part of the checkpoint, so that a resumed run adds them up; one that was killed counts up to its last
    checkpoint. The seconds of an epoch are those of all of it: validation, logging and checkpoint too.

    Args:
        started: `time.time()` when the command started; None is now.

    Attributes:
        images: Number of images trained on in all epochs, those of all processes together.
        seconds: Seconds of all finished epochs.
        epoch_images: Number of images trained on in the running epoch.
    """

    state_key = "EpochLines"  # its name in checkpoints since format 4

    def __init__(self, started: float | None = None) -> None:
        self.started = time.time() if started is None else started
        self.images = self.epoch_images = 0
        self.seconds = 0.0
        self._seconds_before_resume = 0.0
        self._epoch_start: float | None = None  # while an epoch runs

    @property
    def epoch_seconds(self) -> float:
        """Seconds since the running epoch began; 0 if none is running."""
        return 0.0 if self._epoch_start is None else time.perf_counter() - self._epoch_start

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.images else 0.0

    @property
    def seconds_elapsed(self) -> float:
        """Seconds of the whole run with its start and its end, without the time between a stop and its resume."""
        return self._seconds_before_resume + time.time() - self.started

    def state_dict(self) -> dict[str, Any]:
        # Checkpoints are written while an epoch ends: its images are counted already, its seconds are not.
        seconds = self.seconds + self.epoch_seconds
        return {"images": self.images, "seconds": seconds, "seconds_elapsed": self.seconds_elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]
        self._seconds_before_resume = state_dict["seconds_elapsed"]

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.on_train_end(trainer, module)
        self.epoch_images, self._epoch_start = 0, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.epoch_images += len(batch[1]) * trainer.world_size
        self.images += len(batch[1]) * trainer.world_size

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        log_epoch(trainer, {"train/images_per_second": self.epoch_images / self.epoch_seconds})

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.seconds += self.epoch_seconds
        self._epoch_start = None

    def epoch_values(self, trainer: pl.Trainer) -> dict[str, float]:
        """Return loss and accuracy of each stage, learning rate and speed of the epoch that ends, by their columns in
        HISTORY."""
        names = [f"{stage}/{name}" for stage in SPLITS for name in ("loss", "acc")]
        metrics = trainer.callback_metrics
        values = {name.replace("/", "_"): metrics[name].item() for name in names if name in metrics}
        values |= {"lr": trainer.optimizers[0].param_groups[0]["lr"], "seconds": self.epoch_seconds}
        return values | {"images_per_second": self.epoch_images / self.epoch_seconds}


class ProgressBar(Callback):
    """Show a bar on a terminal while a run trains: the loss of the latest step, and the time left of the run."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._bar = tqdm(
            total=trainer.estimated_stepping_batches,
            initial=trainer.global_step,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}, {remaining} left",
            leave=False,
            smoothing=0,
            dynamic_ncols=True,
            disable=None if trainer.is_global_zero else True,  # None draws on a terminal alone
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._bar.set_description_str(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if self._bar.update():  # true whenever the bar was drawn anew
            self._bar.set_postfix_str(f"loss {outputs['loss'].item():.3f}", refresh=False)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._bar.close()


class EpochLine(Callback):
    """Print a line when an epoch is over.

    That is when the next one starts: before, the metrics are not complete and the checkpoint is not written. In the
    Trainer's list it stands before its clock, which that moment sets back.
    """

    def __init__(self, clock: RunClock) -> None:
        self.clock = clock

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._best = best_checkpoint(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.on_train_end(trainer, module)

    @rank_zero_only
    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if not self.clock.epoch_seconds:
            return
        values = self.clock.epoch_values(trainer)
        parts = [f"epoch {trainer.current_epoch:>{len(str(trainer.max_epochs))}}/{trainer.max_epochs}"]
        for stage in SPLITS:
            if f"{stage}_acc" in values:
                parts.append(f"{stage} loss {values[f'{stage}_loss']:.3f} acc {values[f'{stage}_acc']:.2%}")
        speed = f"{values['images_per_second']:,.0f} images/s"
        parts += [f"lr {values['lr']:.2g}", f"{values['seconds']:.1f} s", speed]
        if best_checkpoint(trainer) != self._best:
            self._best = best_checkpoint(trainer)
            parts.append("best so far")
        with tqdm.external_write_mode():  # above the progress bar
            print("  ".join(parts), flush=True)


class EpochHistory(Callback):
    """Write the values of all epochs to HISTORY in the run's log folder, with each checkpoint.

    They are part of the checkpoint, so that a resumed run has the rows of all its epochs.
    """

    def __init__(self, clock: RunClock) -> None:
        self.clock = clock
        self._rows: dict[int, dict[str, float]] = {}  # by epoch

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: Any) -> None:
        if self.clock.epoch_seconds:
            epoch = trainer.current_epoch + 1
            self._rows[epoch] = {"epoch": epoch} | self.clock.epoch_values(trainer)
            self._write(trainer)
        checkpoint["history"] = self._rows

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: Any) -> None:
        self._rows = checkpoint.get("history", {})
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        writer, rows = writer_of(trainer), list(self._rows.values())
        if writer and rows:
            write_csv(Path(writer.log_dir) / HISTORY, list(rows[0]), (list(row.values()) for row in rows))


class CustomCharts(Callback):
    """Lay out TensorBoard's Custom Scalars tab: training and validation in one chart, and a chart for each class.

    Both are written as two runs of TensorBoard, too, which gives each a colour of its own. That is done with each
    checkpoint, when the metrics are complete, so that a resumed run has whole curves.

    Args:
        stage: What the metrics of the validation are called.
        loss_measured: How the training loss is measured.
    """

    def __init__(self, clock: RunClock, stage: str, loss_measured: str) -> None:
        self.clock, self.stage, self.loss_measured = clock, stage, loss_measured
        self._writers: dict[str, Any] = {}  # by stage
        self._written = 0  # the last epoch

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if not (writer := writer_of(trainer)):
            return
        images = SPLITS[self.stage]
        # TensorBoard reads the names as regular expressions that match from their start.
        both = {
            f"loss; training {self.loss_measured}": ["Multiline", ["curves/loss$"]],
            "accuracy": ["Multiline", ["curves/accuracy$"]],
        }
        by_class = {name: ["Multiline", [f"{self.stage}_acc_by_class/{name}$"]] for name in CLASS_NAMES}
        title = f"{images.capitalize()} accuracy of each class, over epochs"
        writer.add_custom_scalars({f"Training and {images}, over epochs": both, title: by_class})

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes long to import

        writer, epoch = writer_of(trainer), trainer.current_epoch + 1
        if not (writer and self.clock.epoch_seconds) or epoch == self._written:  # of two checkpoints, the first
            return
        self._written = epoch
        values = self.clock.epoch_values(trainer)
        for stage in ("train", self.stage):
            if f"{stage}_acc" not in values:  # there is no validation
                continue
            if stage not in self._writers:
                self._writers[stage] = SummaryWriter(Path(writer.log_dir) / SPLITS[stage])
            self._writers[stage].add_scalar("curves/accuracy", values[f"{stage}_acc"], epoch)
            self._writers[stage].add_scalar("curves/loss", values[f"{stage}_loss"], epoch)
            self._writers[stage].flush()


class ClassAccuracy(Callback):
    """Validation accuracy of each class once an epoch: the share of its images that are recognised."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.metric = MulticlassAccuracy(len(CLASS_NAMES), average="none", validate_args=False)

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.metric.to(module.device).reset()

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, logits: Any, batch: Any, *rest: int) -> None:
        self.metric.update(logits, batch[1])

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        accuracies = self.metric.compute().tolist()  # of all processes
        names = [f"{self.stage}_acc_by_class/{name}" for name in CLASS_NAMES]
        log_epoch(trainer, dict(zip(names, accuracies, strict=True)))


class SeededEpochs(Callback):
    """Random numbers that a network draws while it trains, as for dropout, are a function of seed, epoch and process:
    so a resumed run draws those of one that was not stopped."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        if index == 0:  # after all that Lightning itself draws
            key = [Stream.NETWORK, self.seed, trainer.current_epoch, trainer.global_rank]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


class GradientNorm(Callback):
    """`train/grad_norm`, the Euclidean norm of the gradient of all weights, over steps, in those that are logged."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
            norm = nn.utils.get_total_norm(gradients).item()
            for logger in trainer.loggers:
                logger.log_metrics({"train/grad_norm": norm}, step=trainer.global_step)


class FilterPictures(Callback):
    """Show the filters of the first convolution before training and after each epoch, if there is a convolution."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.current_epoch == 0:
            self._draw(trainer, module, epochs=0)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._draw(trainer, module, epochs=trainer.current_epoch + 1)

    def _draw(self, trainer: pl.Trainer, module: Any, epochs: int) -> None:
        layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
        if layers and (writer := writer_of(trainer)):
            name, layer = layers[0]
            picture = figures.mosaic(figures.filter_tiles(layer.weight), columns=6, gap=6)
            writer.add_image(f"what_it_learned/filters_{name.split('.')[-1]}", picture, epochs, dataformats="HWC")


def log_epoch(trainer: pl.Trainer, values: dict[str, float]) -> None:
    """Log values of the epoch that is ending over the number of epochs done."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.current_epoch + 1)


def best_checkpoint(trainer: pl.Trainer) -> str:
    """Return the file of the best epoch so far; empty if no checkpoint callback monitors a metric."""
    checkpoint = trainer.checkpoint_callback
    return checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor else ""
