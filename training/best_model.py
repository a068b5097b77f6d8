"""What a person sees when a run is over: what its best model gets right and wrong, and the trend of its curves.

pl.Trainer(callbacks=[ModelCheckpoint(monitor="val/acc", mode="max"), BestModel()], ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.utilities.distributed import gather_all_tensors

from analysis import diagnosis, figures
from analysis import reports as findings
from analysis.reports import CURVES, TREND
from analysis.tensorboard import add_figure, add_projector, read_curves, writer_of
from cifar10.records import CLASS_NAMES
from core.files import write_bytes
from models.calibration import fit_temperature
from models.classifier import compute_logits
from training.callbacks import best_checkpoint
from training.hardware import return_freed_memory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECTED = 500  # images in the projector
GUIDE = """
- **Time Series** and **Scalars**: loss, accuracy and images/s over epochs (the axis says Step); `train/lr`,
  `train/loss_step` and `train/grad_norm` over training steps. What is in `whole_run` has one value a run. Set
  *Smoothing* to 0: a curve of few epochs, smoothed, lags behind its values.
- **Custom Scalars**: training and {images} in one chart; the accuracy of each class. *Matches* tells the lines.{loss}
- **Images**: `what_it_sees`, a training batch as the network gets it, and an image of each class before and after
  preprocessing; `what_it_learned`, the first layer's filters after each epoch (grey is 0; move the slider) and what
  each layer makes of one image; `where_it_fails`, the best epoch's mistakes on the {images} images; `whole_run`,
  the curves. Tick *Show actual image size* to read them.
- **Graphs**: the network; a double click opens a box.
- **HParams**: all runs in one table, with their flags and results; tick on the left what to compare. The best accuracy
  is that on the images named by `select_on`. Parallel coordinates leave out runs without a value in a ticked column.
- **Projector**: {projected} {images} images, placed by what the last layer gets. Colour by class, and try T-SNE.
- **Text**: results, settings, and the trend of the run with its advice.

The run's log folder has curves, tables and pictures as files, and `report.md`, which shows them.

All that is shown of the best epoch is computed in float32, also where training steps were not.
"""
OTHER_LOSS = """
  The loss named {name} is more than the cross-entropy of the labels, which the {images} loss is: compare when they
  fall and rise, not how high they are."""


@dataclass(frozen=True)
class Predictions:
    """What a network makes of N labelled images, in float32; all on the CPU."""

    images: Tensor  # float32 [M, 3, H, W], the first M of them, as the network gets them
    labels: Tensor  # int64 [N]
    logits: Tensor  # float32 [N, C]
    features: Tensor | None  # float32 [N, F], what the last linear layer gets; None of a network without one

    def confusion_matrix(self) -> Tensor:
        """int64 [C, C], rows true, columns predicted."""
        return multiclass_confusion_matrix(self.logits, self.labels, self.logits.shape[1])


class BestModel(Callback):
    """When training ends, classifies the validation images with the best checkpoint, and shows what it makes of them.

    All but the feature maps and the projector are files in the log folder, too. Without a checkpoint that monitors a
    metric the last weights are taken. Without validation there are only the curves of the training; without
    TensorBoard's logger, nothing.

    Args:
        stage: What the metrics of the validation are called.
        draw: Whether there are pictures, or the trend alone.
        config: As `diagnosis.analyse` takes it.
    """

    def __init__(
        self,
        stage: str = "val",
        class_names: Sequence[str] = CLASS_NAMES,
        draw: bool = True,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.stage, self.class_names, self.draw, self.config = stage, class_names, draw, config
        self.train_loss_name = diagnosis.train_loss_name(config or {})
        # After the run, in the first process, if there is validation:
        self.trend: diagnosis.Trend | None = None
        self.temperature: float | None = None  # of `fit_temperature`
        self.images = diagnosis.SPLITS[stage]  # which are classified
        self._shown = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.show(trainer, pl_module, trainer.val_dataloaders)

    def show(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loaders: Any) -> None:
        """Do what is due when training ends, unless it is done; all processes have to call this.

        To be called after `fit`: Lightning leaves out the end of a training whose checkpoint is of the last epoch.
        `loaders` is the validation's, or a list of them, of which the first is taken; None or empty if there is none.
        """
        if self._shown or not any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            return
        self._shown = True
        return_freed_memory()
        predictions, maps = None, {}
        if isinstance(loaders, list | tuple):
            loaders = loaders[0] if loaders else None
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        known = hasattr(datamodule, "validation_pictures")
        if loaders is not None:
            pl_module.to(trainer.strategy.root_device)  # after `fit` it is on the CPU, where not all processes exchange
            with best_weights(trainer, pl_module):
                found = predict(pl_module, loaders, PROJECTED if known else None)
                predictions = gather(found, pl_module.device)
                maps = layer_outputs(pl_module, predictions.images[:1])
        if not (writer := writer_of(trainer)):
            return
        writer.flush()
        curves = read_curves(Path(writer.log_dir))
        if predictions:
            if self.stage != "test":  # whose images choose nothing more than the epoch
                self.temperature = fit_temperature(predictions.logits, predictions.labels)
            findings.write_tables(Path(writer.log_dir), predictions.logits, predictions.labels, self.class_names)
            self._analyse(writer, curves, predictions, trainer.current_epoch)
        if self.draw:
            self._draw_curves(writer, curves, trainer.current_epoch)
        if self.draw and predictions:
            shown = datamodule.validation_pictures() if known else figures.pixels(predictions.images)
            self._draw_predictions(writer, predictions, shown, maps, trainer.current_epoch)
        writer.flush()

    def _analyse(
        self, writer: SummaryWriter, curves: dict[str, dict[int, float]], predictions: Predictions, epoch: int
    ) -> None:
        names = ("train/loss", "train/acc", f"{self.stage}/loss", f"{self.stage}/acc")
        epochs = sorted(set.intersection(*(set(curves.get(name, ())) for name in names)))
        if epochs:
            train_loss, train_acc, val_loss, val_acc = ([curves[name][epoch] for epoch in epochs] for name in names)
            confusion = predictions.confusion_matrix().numpy()
            by_class = {
                name: [curve[epoch] for epoch in epochs]
                for name in self.class_names
                if set(epochs) <= set(curve := curves.get(f"{self.stage}_acc_by_class/{name}", {}))
            }
            self.trend = diagnosis.analyse(
                train_loss,
                train_acc,
                val_loss,
                val_acc,
                self.class_names,
                confusion,
                epochs[0],
                self.config,
                by_class=by_class,
                images=self.images,
            )
            text = diagnosis.markdown(self.trend)
            write_bytes(Path(writer.log_dir) / TREND, text.encode())
            writer.add_text("trend", text, epoch)

    def _draw_curves(self, writer: SummaryWriter, curves: dict[str, dict[int, float]], epoch: int) -> None:
        train, val = (
            {name: curves[f"{stage}/{name}"] for name in ("loss", "acc") if f"{stage}/{name}" in curves}
            for stage in ("train", self.stage)
        )
        if train or val:
            best = self.trend.best_epoch if self.trend else None
            figure = figures.curves(train, val, best, self.images, self.train_loss_name)
            add_figure(writer, "whole_run/curves", figure, epoch, Path(writer.log_dir) / CURVES)
        other = (
            ""
            if self.train_loss_name == diagnosis.TRAINING
            else OTHER_LOSS.format(name=self.train_loss_name, images=self.images)
        )
        writer.add_text("what_is_where", GUIDE.format(loss=other, projected=PROJECTED, images=self.images), epoch)

    def _draw_predictions(
        self, writer: SummaryWriter, predictions: Predictions, shown: np.ndarray, maps: dict[str, Tensor], epoch: int
    ) -> None:
        logits, labels, temperature = predictions.logits, predictions.labels, self.temperature or 1
        found = findings.draw(logits, labels, shown, self.class_names, self.images, temperature)
        for file, figure in found.items():
            add_figure(writer, f"where_it_fails/{Path(file).stem}", figure, epoch, Path(writer.log_dir) / file)
        first = slice(PROJECTED)
        pairs = zip(predictions.labels[first].tolist(), predictions.logits[first].argmax(1).tolist(), strict=True)
        names = [(self.class_names[label], self.class_names[answer]) for label, answer in pairs]
        picture, answer = figures.pixels(predictions.images[first])[0], (logits[0] / temperature).softmax(0)
        figure = figures.feature_maps(picture, maps, answer, self.class_names, names[0][0])
        add_figure(writer, "what_it_learned/feature_maps", figure, epoch)
        if predictions.features is not None:
            add_projector(writer, predictions.features[first], names, shown[first], epoch)


@torch.no_grad()
def predict(module: pl.LightningModule, loader: Iterable[Any], keep: int | None = None) -> Predictions:
    """Classify all batches (images, labels) of `loader` with the module as it is.

    The first `keep` images are kept, whole batches of them, None is all: as float32 they weigh more than a run does.
    """
    features: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0].float().cpu()))
        for layer in [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1:]
    ]
    try:
        kept, count = [], 0
        answers = []
        for images, labels in loader:
            if keep is None or count < keep:
                kept.append(images)
            count += len(images)
            answers.append((labels, compute_logits(module, images).cpu()))
    finally:
        for handle in handles:
            handle.remove()
    labels, logits = (torch.cat(parts) for parts in zip(*answers, strict=True))
    return Predictions(torch.cat(kept), labels, logits, torch.cat(features) if features else None)


def gather(predictions: Predictions, device: torch.device) -> Predictions:
    """The predictions of all processes together, exchanged through `device`; each process has to call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return predictions
    parts = (predictions.images, predictions.labels, predictions.logits, predictions.features)
    gathered = [part if part is None else torch.cat(gather_all_tensors(part.to(device))).cpu() for part in parts]
    return Predictions(*gathered)  # type: ignore[arg-type]


@torch.no_grad()
def layer_outputs(module: pl.LightningModule, image: Tensor) -> dict[str, Tensor]:
    """What each convolution and linear layer but the last makes of an image, float [1, 3, H, W]: before the activation,
    float [channels, h, w] or [units], by the layers' names, in order.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[name.removeprefix("model.")] = output[0].float().cpu()

    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(partial(keep, name)) for name, layer in layers[:-1]]
    try:
        compute_logits(module, image)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


@contextmanager
def best_weights(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Within it the module has the weights of the best checkpoint, if there is one; afterwards its own again."""
    path = best_checkpoint(trainer)
    if not path:
        yield
        return
    own = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(torch.load(path, map_location=module.device, weights_only=True)["state_dict"])
    try:
        yield
    finally:
        module.load_state_dict(own)
