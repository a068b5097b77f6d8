"""How LeNet-5 learns to classify 32 x 32 colour images.

`LeNetModule` adds loss, metrics, optimizer and schedule to a network of `networks.py`. It trains on any loader that
gives (float images [B, 3, 32, 32], int64 labels [B]):

    pl.Trainer(max_epochs=10).fit(LeNetModule(optimizer="adam"), train_dataloaders=loader)
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from models.networks import NETWORKS, LeNet5
from models.optimizers import OPTIMIZERS, make_optimizer, make_schedule

__all__ = ["LeNet5", "LeNetModule"]

TEMPERATURE = 4.0  # of `distillation`


class LeNetModule(pl.LightningModule):
    """Cross-entropy training of `LeNet5`, or of another network.

    Logged once an epoch, over the epoch's number (counted from 1): `train/loss`, `train/acc`, `val/loss`, `val/acc`,
    and in a test `test/loss`, `test/acc`; while training, over steps: `train/loss_step`. Accuracies are fractions
    in [0, 1]. Label smoothing and distillation are in the training loss alone, so that the others compare across runs.

    Args:
        width: Factor on the classic layer widths.
        optimizer: A name of `optimizers.OPTIMIZERS`.
        lr: Peak learning rate; None takes the optimizer's default.
        weight_decay: None takes the optimizer's default.
        momentum: SGD's.
        nesterov: SGD's.
        schedule: A name of `optimizers.SCHEDULES`.
        label_smoothing: Share of the target that is spread evenly over all classes.
        network: A name of `networks.NETWORKS`.
        teacher_weight: Share of `distillation` in the training loss, for batches with a teacher's logits, [B, 10], as
            third part.
        val_name: What the metrics of the validation loader are called; "test" where it holds the test set.

    Raises:
        FloatingPointError: While training, the loss is no longer finite.
    """

    def __init__(
        self,
        width: int = 3,
        optimizer: str = "sgd",
        lr: float | None = None,
        weight_decay: float | None = None,
        momentum: float = 0.9,
        nesterov: bool = True,
        schedule: str = "onecycle",
        label_smoothing: float = 0.0,
        network: str = "lenet5",
        teacher_weight: float = 0.9,
        val_name: str = "val",
    ) -> None:
        super().__init__()
        defaults = OPTIMIZERS[optimizer]
        lr = defaults.lr if lr is None else lr
        weight_decay = defaults.weight_decay if weight_decay is None else weight_decay
        self.save_hyperparameters(logger=False)
        self.model = NETWORKS[network](width)
        self.train_metrics = _metrics("train/")
        self.val_metrics = _metrics(f"{val_name}/")
        self.test_metrics = _metrics("test/")

    def forward(self, images: Tensor) -> Tensor:
        """Float images [B, 3, 32, 32] to logits, float32 [B, 10], in lower precision too: losses need them all."""
        return self.model(images).float()

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Tensor]:
        images, labels, *teacher_logits = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.hparams["label_smoothing"])
        if teacher_logits:
            loss = torch.lerp(loss, distillation(logits, teacher_logits[0]), self.hparams["teacher_weight"])
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss.item()} in epoch {self.current_epoch + 1}, step {self.global_step}, at "
                f"learning rate {self._current_lr():.3g}: try a lower one"
            )
        self.train_metrics.update(value=loss.detach(), weight=len(labels), preds=logits.detach(), target=labels)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:  # asked in each step, `log` takes as long as the metrics
            self.log("train/loss_step", loss, prog_bar=True, logger=False)
            for logger in self.loggers:  # by `log` there would be a curve of the epoch over steps beside it
                logger.log_metrics({"train/loss_step": loss.item()}, step=self.global_step)
        return {"loss": loss, "logits": logits.detach()}

    def on_train_epoch_end(self) -> None:
        # Lightning would write training metrics after the checkpoint, where a kill in between loses them.
        self._log_epoch(self.train_metrics)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        self._log_epoch(self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_epoch(self.test_metrics)

    def configure_optimizers(self) -> Any:
        hparams = self.hparams
        optimizer = make_optimizer(
            self.parameters(),
            hparams["optimizer"],
            hparams["lr"],
            hparams["weight_decay"],
            hparams["momentum"],
            hparams["nesterov"],
        )
        schedule = make_schedule(optimizer, hparams["schedule"], int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection) -> Tensor:
        """Update `metrics` and return the logits [B, 10]."""
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        metrics.update(value=loss, weight=len(labels), preds=logits, target=labels)
        return logits

    def _log_epoch(self, metrics: MetricCollection) -> None:
        """Log an epoch's metrics over the number of epochs done, which compares batch sizes as steps cannot."""
        epochs_done = self.current_epoch + int(self.trainer.state.fn == TrainerFn.FITTING)
        values = metrics.compute()
        self.log_dict(values | {"epoch": float(epochs_done)}, logger=False)
        curve_is_there = self.trainer.testing and self.hparams["val_name"] == "test"
        if not (self.trainer.sanity_checking or curve_is_there):
            for logger in self.loggers:
                logger.log_metrics({name: value.item() for name, value in values.items()}, step=epochs_done)
                logger.save()
        metrics.reset()

    def _current_lr(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]


def distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The loss of Hinton et al. (2015), Distilling the Knowledge in a Neural Network: the divergence from the teacher's
    softened probabilities, times the temperature squared, which keeps gradients as large as those of cross-entropy.

    Args:
        logits, teacher_logits: float [B, C].
    """
    targets = (teacher_logits / TEMPERATURE).softmax(1)
    predictions = (logits / TEMPERATURE).log_softmax(1)
    return F.kl_div(predictions, targets, reduction="batchmean") * TEMPERATURE**2


def _metrics(prefix: str) -> MetricCollection:
    """Mean loss and accuracy of a stage, fed with value and weight, preds and target."""
    return MetricCollection(
        {
            "loss": MeanMetric(nan_strategy="disable"),
            "acc": MulticlassAccuracy(10, average="micro", validate_args=False),
        },
        prefix=prefix,
        compute_groups=False,
    )
