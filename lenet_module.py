"""How LeNet-5 learns to classify 32 x 32 colour images.

`LeNetModule` adds loss, metrics, optimizer and schedule to a network of `networks.py`. It trains on any loader that
gives (float images [B, 3, 32, 32], int64 labels [B]); batch normalization, the default, needs two images in a batch:

    pl.Trainer(max_epochs=10).fit(LeNetModule(optimizer="adam"), train_dataloaders=loader)

With `CIFAR10DataModule` it is a program of one line, `LightningCLI(LeNetModule, CIFAR10DataModule)`.
"""

from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from models.checkpoint import FLAGS, FORMAT, TEMPERATURE
from models.config import ModelConfig, Network
from models.distillation import distillation
from models.networks import LeNet5
from models.optimizers import make_optimizer, make_schedule
from models.registry import NETWORKS, make_network

__all__ = ["LeNet5", "LeNetModule"]


class LeNetModule(pl.LightningModule):
    """Cross-entropy training of LeNet-5 with batch normalization, or of another network.

    Logged once an epoch, over the epoch's number (counted from 1): `train/loss`, `train/acc`, `val/loss`, `val/acc`,
    and in a test `test/loss`, `test/acc`; while training, over steps: `train/loss_step`. `Trainer.test` and
    `Trainer.validate` return theirs, and the number of epochs done as `step`. Accuracies are fractions in [0, 1].
    Label smoothing and distillation are in the training loss alone, so that the others compare across runs; for the
    same reason the Trainer's `precision` is that of training steps, and evaluation and prediction are in float32.

    A checkpoint brings its network: one of the project, in whatever way it is loaded; one of someone's own by
    `load_from_checkpoint` alone, which runs the file that is named there.

    Args:
        config: What learns and how, such as a run's configuration; None takes the defaults.
        val_name: What the metrics of the validation loader are called; "test" where it holds the test set.
        flags: Single settings of `ModelConfig`, such as `optimizer="adam"`, instead of those of `config`. In a batch
            with a teacher's logits, [B, 10], as third part, `teacher_weight` is their share of the training loss.

    Raises:
        SettingError: A setting is out of its range.
        FloatingPointError: While training, the loss is no longer finite.
    """

    def __init__(self, config: ModelConfig | None = None, *, val_name: str = "val", **flags: Any) -> None:
        super().__init__()
        # LightningCLI finds its arguments by the call that takes the flags.
        config = ModelConfig(**flags) if config is None else replace(config, **flags)
        self.config = config.group(ModelConfig).resolved()
        self.save_hyperparameters(self.config.plain() | {"val_name": val_name}, logger=False)
        self.model: Any = make_network(self.config.network, self.config.width, self.config.network_sha256)
        self.train_metrics = _metrics("train/")
        self.val_metrics = _metrics(f"{val_name}/")
        self.test_metrics = _metrics("test/")
        self.temperature = 1.0  # of `predict_step`, as a checkpoint says
        self._trained: list[tuple[Tensor, Tensor, Tensor]] = []  # each batch's mean loss, predictions and labels

    def forward(self, images: Tensor) -> Tensor:
        """Float images [B, 3, 32, 32] to logits, float32 [B, 10], in lower precision too: losses need them all."""
        return self.model(images).float()

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Tensor]:
        images, labels, *teacher_logits = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        if teacher_logits:
            loss = torch.lerp(loss, distillation(logits, teacher_logits[0]), self.config.teacher_weight)
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
        self.train_metrics.update(loss=torch.stack(losses), images=sizes, **counted)
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
        """Probabilities, float32 [B, 10], of a batch of images or of (images, anything else)."""
        logits = self._exact_logits(batch if isinstance(batch, Tensor) else batch[0])
        return (logits / self.temperature).softmax(1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint decides the network, as it decides the preprocessing of the data module."""
        self.temperature = float(checkpoint.get(TEMPERATURE, 1))
        # Someone's own script leaves hyperparameters alone. Where they name no network, it was the one of format 1.
        known = checkpoint.get(FLAGS) or checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if "width" not in known:
            return
        network = Network.read(known, checkpoint.get(FORMAT, 1))
        if network.network in NETWORKS and network != self.config.group(Network):
            self.config = replace(self.config, **network.plain())
            self.hparams.update(network.plain())
            self.model = make_network(network.network, network.width).train(self.training)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.parameters(), self.config)
        schedule = make_schedule(optimizer, self.config.schedule, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "train/lr"}}

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection) -> Tensor:
        """Update `metrics` and return the logits [B, 10]."""
        images, labels = batch
        logits = self._exact_logits(images)
        loss = F.cross_entropy(logits, labels)
        metrics.update(loss=loss, images=len(labels), preds=logits, target=labels)
        return logits

    def _exact_logits(self, images: Tensor) -> Tensor:
        """Float32 logits, computed in float32 under mixed precision too.

        Weights that the Trainer keeps in another format ("bf16-true") stay in it.
        """
        with torch.autocast(self.device.type, enabled=False):
            return self(images.to(next(self.parameters()).dtype))

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


class MeanLoss(Metric):
    """The mean loss of all images, from the mean of each batch, whatever the sizes of the batches.

    torchmetrics' MeanMetric takes no weights unless it looks for NaN in each step, which takes as long as the rest.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: Tensor | int) -> None:
        """`loss` is the mean of a batch of `images`, or of several batches, float [N], int64 [N]."""
        self.total += torch.sum(loss * images)
        self.images += torch.sum(torch.as_tensor(images))

    def compute(self) -> Tensor:
        return self.total / self.images


def _metrics(prefix: str) -> MetricCollection:
    """Mean loss and accuracy of a stage, fed with loss and images, preds and target."""
    return MetricCollection(
        {"loss": MeanLoss(), "acc": MulticlassAccuracy(10, average="micro", validate_args=False)},
        prefix=prefix,
        compute_groups=False,
    )
