"""What a person sees while a run goes on."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from tqdm import tqdm


class EpochLines(Callback):
    """A progress bar while an epoch trains (on a terminal), and one line that stays when it is over.

    The line's images/s are training images over the whole time of the epoch: validation, logging and checkpoint too.
    """

    def __init__(self) -> None:
        self.images = 0  # trained on in all epochs
        self.seconds = 0.0  # that they took

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.images else 0.0

    @rank_zero_only
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.images:
            self._end_epoch(trainer)
        self._epoch_images = 0
        self._epoch_start = time.perf_counter()
        self._bar = tqdm(
            total=int(trainer.num_training_batches),
            desc=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            unit="batch",
            leave=False,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images = len(batch[1]) * trainer.world_size
        self._epoch_images += images
        self.images += images
        if self._bar.update():  # true whenever the bar was drawn anew
            shown = {name: f"{value:.3f}" for name, value in trainer.progress_bar_metrics.items()}
            speed = self._epoch_images / (time.perf_counter() - self._epoch_start)
            self._bar.set_postfix(shown | {"images/s": f"{speed:,.0f}"}, refresh=False)
        if batch_idx + 1 == trainer.num_training_batches:
            self._bar.close()

    @rank_zero_only
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_epoch(trainer)

    def _end_epoch(self, trainer: pl.Trainer) -> None:
        """Called when the next epoch starts: before, the metrics are not complete and the checkpoint not written."""
        seconds = time.perf_counter() - self._epoch_start
        self.seconds += seconds
        values = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch:>{len(str(trainer.max_epochs))}}/{trainer.max_epochs}"]
        for stage in ("train", "val", "test"):
            if f"{stage}/acc" in values:
                parts.append(f"{stage} loss {values[f'{stage}/loss']:.3f} acc {values[f'{stage}/acc']:.2%}")
        parts.append(f"lr {trainer.optimizers[0].param_groups[0]['lr']:.2g}")
        parts.append(f"{self._epoch_images / seconds:,.0f} images/s")
        print("  ".join(parts), flush=True)
