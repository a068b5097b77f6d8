"""Training of LeNet-5 on 32 x 32 colour images, as a LightningModule.

`LeNetModule` adds loss, metrics, optimizer and schedule to a network of models/networks.py or of your own. It trains on
any loader that gives (float images [B, 3, 32, 32], int64 labels [B]):

    pl.Trainer(max_epochs=10).fit(LeNetModule(optimizer="adam"), train_dataloaders=loader)

`LightningCLI(LeNetModule, CIFAR10DataModule)` is a whole program.
"""

import math
from typing import Any, Self

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from core.errors import UsageError
from core.settings import FORMAT, check_format
from models.checkpoint import TEMPERATURE
from models.classifier import compute_logits
from models.config import ModelConfig
from models.distillation import compute_distillation_loss
from models.networks import LeNet5
from models.optimizers import make_optimizer, make_schedule
from models.registry import NETWORKS, check_network, make_network, missing_code, name_network

__all__ = ["LeNet5", "LeNetModule"]


class LeNetModule(pl.LightningModule):
    """Train LeNet-5, or another network, with cross-entropy.

    Metrics are logged once an epoch over the number of epochs done: `train/loss`, `train/acc`, `val/loss`, `val/acc`,
    and in a test `test/loss`, `test/acc`. `train/loss_step` is logged over steps. `Trainer.test` and `Trainer.validate`
    return theirs, and the number of epochs done as `step`. Accuracies are fractions in [0, 1]. Label smoothing and
    distillation change the training loss only, so that the other losses compare across runs. For the same reason the
    Trainer's `precision` is used in training steps only; evaluation and prediction are in float32.

    A checkpoint holds no code: pass a network of your own to `load_from_checkpoint` again.

    Args:
        config: Settings such as a run's configuration; None is the defaults.
        val_name: Prefix of the metrics of the validation loader; "test" where that has the test set.
        may_run_file: Whether the file of a network "file.py:Class" may be run, which only its user can know.
        flags: Settings of `ModelConfig` that replace those of `config`, such as `optimizer="adam"`. `network` may also
            be an object: `network=Net()`. `teacher_weight` is the share of distillation in the training loss of a batch
            whose third part is a teacher's logits [B, 10].

    Raises:
        SettingError: A setting is out of its range.
        UsageError: The network's file cannot be run, or its logits have a wrong shape.
        FloatingPointError: The training loss is no longer finite.
    """

    def __init__(
        self, config: ModelConfig | None = None, *, val_name: str = "val", may_run_file: bool = True, **flags: Any
    ) -> None:
        super().__init__()
        network = flags.get("network")
        if isinstance(network, nn.Module):
            check_network(network)
            flags = flags | {"network": name_network(network), "network_sha256": None}
        # LightningCLI finds its arguments by the call that takes the flags.
        config = ModelConfig(**flags) if config is None else config.changed(flags)
        self.config = config.group(ModelConfig)
        self.save_hyperparameters(self.config.plain() | {"val_name": val_name}, logger=False)
        if not isinstance(network, nn.Module):
            if self.config.network not in NETWORKS and not may_run_file:
                raise UsageError(missing_code(self.config.network))
            network = make_network(self.config.network, self.config.width, self.config.network_sha256)
        self.model: Any = network
        self.train_metrics = _make_metrics("train/")
        self.val_metrics = _make_metrics(f"{val_name}/")
        self.test_metrics = _make_metrics("test/")
        self.temperature = 1.0  # of `predict_step`; a checkpoint may have another
        self._trained: list[tuple[Tensor, Tensor, Tensor]] = []  # each batch's mean loss, predictions and labels

    @_restricted_classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a module as Lightning does, but run no Python file that only the checkpoint names.

        If the checkpoint's network is one of your own, pass it as `network`, an object or "file.py:Class"; UsageError
        without it.
        """
        return super().load_from_checkpoint(*args, **kwargs, may_run_file="network" in kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, float32 [B, 10], of float images [B, 3, 32, 32], whose precision may be lower."""
        return self.model(images).float()

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Tensor]:
        images, labels, *teacher_logits = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        if teacher_logits:
            loss = torch.lerp(loss, compute_distillation_loss(logits, teacher_logits[0]), self.config.teacher_weight)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss.item()} in epoch {self.current_epoch + 1}, step {self.global_step}, at "
                f"learning rate {self.trainer.optimizers[0].param_groups[0]['lr']:.3g}: try a lower one"
            )
        self._trained.append((loss.detach(), logits.detach().argmax(1), labels))
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:  # asked in each step, `log` takes as long as the metrics
            self.log("train/loss_step", loss, prog_bar=True, logger=False)
            for logger in self.loggers:  # by `log` there would be a curve of the epoch over steps beside it
                logger.log_metrics({"train/loss_step": loss.item()}, step=self.global_step)
        return {"loss": loss, "logits": logits.detach()}

    def on_train_epoch_start(self) -> None:
        self._trained.clear()  # of an epoch that was interrupted

    def on_train_epoch_end(self) -> None:
        # All batches at once: in each step the metrics would take as long as the optimizer.
        losses, predictions, labels = zip(*self._trained, strict=True)
        sizes = torch.tensor([len(each) for each in labels], device=self.device)
        counted = {"preds": torch.cat(predictions), "target": torch.cat(labels)}
        self.train_metrics.update(value=torch.stack(losses), weight=sizes, **counted)
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

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute probabilities, float32 [B, 10], of a batch of images or of (images, anything else)."""
        logits = compute_logits(self, batch if isinstance(batch, Tensor) else batch[0])
        return (logits / self.temperature).softmax(1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["format"] = FORMAT

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_format(checkpoint)
        self.temperature = float(checkpoint.get(TEMPERATURE, 1))

    def configure_optimizers(self) -> Any:
        bfloat16 = str(self.trainer.precision).startswith("bf16")
        c: Any = self.config
        rates = c.optimizer, c.lr, c.weight_decay, c.momentum, c.nesterov
        optimizer = make_optimizer(self.parameters(), *rates, bfloat16)
        schedule = make_schedule(optimizer, c.schedule, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "train/lr"}}

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection) -> Tensor:
        """Update `metrics` and return the logits [B, 10]."""
        images, labels = batch
        logits = compute_logits(self, images)
        metrics.update(value=F.cross_entropy(logits, labels), weight=len(labels), preds=logits, target=labels)
        return logits

    def _log_epoch(self, metrics: MetricCollection) -> None:
        """Log an epoch's metrics over the number of epochs done, which compares batch sizes as steps cannot."""
        values = metrics.compute()
        metrics.reset()
        if self.trainer.state.fn != TrainerFn.FITTING:
            self.log_dict(values | {"step": float(self.current_epoch)})  # Lightning's name of the x axis
            return
        epochs_done = self.current_epoch + 1
        self.log_dict(values | {"epoch": float(epochs_done)}, logger=False)
        for logger in [] if self.trainer.sanity_checking else self.loggers:
            logger.log_metrics({name: value.item() for name, value in values.items()}, step=epochs_done)
            logger.save()


def _make_metrics(prefix: str) -> MetricCollection:
    """Make the mean loss and the accuracy of a stage; `update` takes value, weight (its images), preds and target."""
    # A loss that is NaN stays so; "disable" would weigh all batches alike.
    loss = MeanMetric(nan_strategy=math.nan)
    accuracy = MulticlassAccuracy(10, average="micro", validate_args=False)
    return MetricCollection({"loss": loss, "acc": accuracy}, prefix=prefix, compute_groups=False)
