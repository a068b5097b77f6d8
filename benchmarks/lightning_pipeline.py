"""Plain Lightning, to compare with: the report's data and network, a plain module, Trainer's own defaults."""

import contextlib
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.report_pipeline import Items, network


class PlainModule(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.005, momentum=0.9)


class Clock(pl.Callback):
    """Seconds from the end of the first step, which starts the workers, to the end of the epoch."""

    seconds = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = time.perf_counter() - self._start


def measure_training(data_dir: Path, batch_size: int, workers: int, images: int) -> float:
    """As `report_pipeline.measure_training`; the progress bar is drawn, though nobody sees it."""
    steps, clock, items = images // batch_size, Clock(), Items(data_dir)
    loader = DataLoader(items, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(action="ignore"),
    ):
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=steps + 1,
            logger=TensorBoardLogger(folder),
            callbacks=[clock, TQDMProgressBar()],  # the default, unless Rich is installed, whose bar is slower
            default_root_dir=folder,
        )
        trainer.fit(PlainModule(), loader)
    return steps * batch_size / clock.seconds
