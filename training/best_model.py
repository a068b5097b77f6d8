"""What a person sees when a run is over: what its best model gets right and wrong, and the trend of its curves.

pl.Trainer(callbacks=[ModelCheckpoint(monitor="val/acc", mode="max"), BestModel()], ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

from analysis import diagnosis, figures, reports
from analysis.charts import plot_heat_map
from analysis.tensorboard import Scalars, add_figure, add_projector, read_curves, writer_of
from cifar10.records import CLASS_NAMES
from cifar_datamodule import CIFAR10DataModule
from core.files import write_bytes
from models.attribution import layer_outputs
from models.calibration import fit_temperature
from models.classifier import compute_logits
from training.callbacks import best_checkpoint
from training.hardware import return_freed_memory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECTED = 500  # images in the projector
GUIDE = Path(reports.__file__).with_name("guide.md")  # to TensorBoard's tabs


@dataclass(frozen=True)
class Predictions:
    """What a network makes of N labelled images, in float32; all on the CPU."""

    images: Tensor  # float32 [M, 3, H, W], the first M of them, as the network gets them
    labels: Tensor  # int64 [N]
    logits: Tensor  # float32 [N, C]
    features: Tensor | None  # float32 [N, F], what the last linear layer gets; None of a network without one

    @property
    def accuracy(self) -> float:
        return (self.logits.argmax(1) == self.labels).float().mean().item()

    def confusion_matrix(self) -> Tensor:
        """Return int64 [C, C], rows true, columns predicted."""
        return multiclass_confusion_matrix(self.logits, self.labels, self.logits.shape[1])


@dataclass(frozen=True)
class Learned:
    """What the best weights make of images, and of one of them."""

    predictions: Predictions  # of the validation images
    clean_acc: float | None  # accuracy on whole training images, of a data module that has them
    maps: dict[str, Tensor]  # of the first image, see `layer_outputs`
    filters: Tensor | None  # of the first convolution


class BestModel(Callback):
    """Classify the validation images with the best checkpoint when training ends, and show what it makes of them.

    All but the projector are files in the log folder, too. Without a checkpoint that monitors a metric the last weights
    are taken. Without validation there are only the curves of the training; without TensorBoard's logger, nothing.

    Args:
        stage: What the metrics of the validation are called.
        draw: Whether there are pictures, or the trend alone.
        config: As `diagnosis.analyse` takes it.
        about: What was trained, for the titles of the pictures.

    Attributes:
        trend, temperature: After the run, in the first process, if there is validation; see `fit_temperature`.
    """

    def __init__(
        self,
        stage: str = "val",
        class_names: Sequence[str] = CLASS_NAMES,
        draw: bool = True,
        config: Mapping[str, Any] | None = None,
        about: str = "",
    ) -> None:
        self.stage, self.class_names, self.draw, self.config, self.about = stage, class_names, draw, config or {}, about
        self.images = diagnosis.SPLITS[stage]  # which are classified
        self.trend: diagnosis.Trend | None = None
        self.temperature: float | None = None
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
        if isinstance(loaders, list | tuple):
            loaders = loaders[0] if loaders else None
        known = isinstance(trainer.datamodule, CIFAR10DataModule)  # type: ignore[attr-defined]
        datamodule = trainer.datamodule if known else None  # type: ignore[attr-defined]
        learned = None if loaders is None else self._evaluate(trainer, pl_module, loaders, datamodule)
        if not (writer := writer_of(trainer)):
            return
        writer.flush()
        curves = read_curves(Path(writer.log_dir))
        if learned:
            self._analyse(writer, curves, learned, trainer.current_epoch)
        if self.draw:
            self._draw_curves(writer, curves, learned, trainer.current_epoch)
        if self.draw and learned:
            self._draw_predictions(writer, learned, datamodule, trainer.current_epoch)
        writer.flush()

    def _evaluate(self, trainer: pl.Trainer, module: pl.LightningModule, loader: Any, datamodule: Any) -> Learned:
        module.to(trainer.strategy.root_device)  # after `fit` it is on the CPU, where not all processes exchange
        with best_weights(trainer, module):
            predictions = gather(predict(module, loader, PROJECTED if datamodule else None), module.device)
            clean = datamodule and gather(predict(module, datamodule.clean_train_dataloader(), 1), module.device)
            convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
            filters = convolutions[0].weight.detach().clone() if convolutions else None
            maps = layer_outputs(module, predictions.images[:1])
        return Learned(predictions, clean.accuracy if clean else None, maps, filters)

    def _analyse(self, writer: SummaryWriter, curves: Scalars, learned: Learned, epoch: int) -> None:
        """Write the tables, the temperature and the trend."""
        found, folder = learned.predictions, Path(writer.log_dir)
        if self.stage != "test":  # whose images choose nothing more than the epoch
            self.temperature = fit_temperature(found.logits, found.labels)
        reports.write_tables(folder, found.logits, found.labels, self.class_names)
        names = ("train/loss", "train/acc", f"{self.stage}/loss", f"{self.stage}/acc")
        epochs = sorted(set.intersection(*(set(curves.get(name, ())) for name in names)))
        if epochs:
            train_loss, train_acc, val_loss, val_acc = ([curves[name][each] for each in epochs] for name in names)
            more: dict[str, Any] = {"first_epoch": epochs[0], "config": self.config, "images": self.images}
            more |= {"confusion": found.confusion_matrix().numpy(), "clean_acc": learned.clean_acc}
            more |= {"by_class": {name: [*curve.values()] for name, curve in self._by_class(curves).items()}}
            self.trend = diagnosis.analyse(train_loss, train_acc, val_loss, val_acc, self.class_names, **more)
            text = diagnosis.markdown(self.trend)
            write_bytes(folder / reports.TREND, text.encode())
            writer.add_text("trend", text, epoch)
        if learned.clean_acc is not None:
            writer.add_scalar("train/clean_acc", learned.clean_acc, self.trend.best_epoch if self.trend else epoch)

    def _by_class(self, curves: Scalars) -> Scalars:
        """Return the accuracy of each class over epochs, by the classes' names."""
        tags = {name: f"{self.stage}_acc_by_class/{name}" for name in self.class_names}
        return {name: curves[tag] for name, tag in tags.items() if tag in curves}

    def _draw_curves(self, writer: SummaryWriter, scalars: Scalars, learned: Learned | None, epoch: int) -> None:
        train, val = (
            {name: scalars[f"{stage}/{name}"] for name in ("loss", "acc") if f"{stage}/{name}" in scalars}
            for stage in ("train", self.stage)
        )
        measured, loss_measured = diagnosis.describe_measurement(self.config)
        folder = Path(writer.log_dir)
        if train or val:
            clean = learned.clean_acc if learned else None
            best = self.trend.best_epoch if self.trend else None
            curves = figures.Curves(train, val, best, self.images, measured, loss_measured, clean)
            figure = figures.plot_curves(curves, f"Loss and accuracy over epochs\n{self.about}")
            add_figure(writer, "whole_run/curves", figure, epoch, folder / reports.CURVES)
            if learned:
                title = f"Best epoch {best}, {self.images} accuracy {learned.predictions.accuracy:.2%}\n{self.about}"
                figure = figures.plot_overview(curves, learned.predictions.confusion_matrix(), self.class_names, title)
                add_figure(writer, "whole_run/overview", figure, epoch, folder / reports.OVERVIEW)
        if by_class := self._by_class(scalars):
            epochs = reports.choose(sorted(next(iter(by_class.values()))))
            table = np.array([[100 * curve[each] for each in epochs] for curve in by_class.values()])
            title = f"{self.images.capitalize()} accuracy of each class over epochs, %\n{self.about}"
            figure = plot_heat_map(table, list(by_class), [str(each) for each in epochs], title)
            figure.axes[0].set_xlabel("epoch")
            add_figure(writer, "whole_run/class_accuracy", figure, epoch, folder / reports.CLASS_CURVES)
        words = {"measured": measured, "loss_measured": loss_measured, "images": self.images, "projected": PROJECTED}
        writer.add_text("what_is_where", GUIDE.read_text(encoding="utf-8").format(**words), epoch)

    def _draw_predictions(self, writer: SummaryWriter, learned: Learned, datamodule: Any, epoch: int) -> None:
        found, folder, temperature = learned.predictions, Path(writer.log_dir), self.temperature or 1
        split = datamodule.validation_images() if datamodule else None
        shown = split.originals if split else figures.pixels(found.images)
        indices = split.indices.tolist() if split else range(len(shown))
        probabilities = (found.logits / temperature).softmax(1)
        reports.write_predictions(folder, indices, probabilities, found.labels, self.class_names)
        about = "; ".join(filter(None, [self.about, f"{len(found.labels):,} {self.images} images"]))
        drawn = reports.draw(found.logits, found.labels, shown, self.class_names, about, temperature)
        for file, figure in drawn.items():
            add_figure(writer, f"where_it_fails/{Path(file).stem}", figure, epoch, folder / file)
        if learned.filters is not None:
            title = f"Filters of the first convolution (grey is 0)\n{self.about}"
            figure = figures.plot_sheet(figures.filter_tiles(learned.filters), (), title, min(9, len(learned.filters)))
            figures.save(folder / reports.FILTERS, figure)
        first = slice(PROJECTED)
        pairs = zip(found.labels[first].tolist(), found.logits[first].argmax(1).tolist(), strict=True)
        names = [(self.class_names[label], self.class_names[predicted]) for label, predicted in pairs]
        title = "One image through the network: true class {}, predicted {}\n".format(*names[0]) + self.about
        picture = figures.pixels(found.images[first])[0]
        figure = figures.plot_feature_maps(picture, learned.maps, probabilities[0], self.class_names, title)
        add_figure(writer, "what_it_learned/feature_maps", figure, epoch, folder / reports.FEATURE_MAPS)
        if found.features is not None:
            add_projector(writer, found.features[first], names, shown[first], epoch)


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
        kept, count, batches = [], 0, []
        for images, labels in loader:
            if keep is None or count < keep:
                kept.append(images)
            count += len(images)
            batches.append((labels, compute_logits(module, images).cpu()))
    finally:
        for handle in handles:
            handle.remove()
    labels, logits = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Predictions(torch.cat(kept), labels, logits, torch.cat(features) if features else None)


def gather(predictions: Predictions, device: torch.device) -> Predictions:
    """Return the predictions of all processes together, exchanged through `device`; each process has to call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return predictions
    parts = (predictions.images, predictions.labels, predictions.logits, predictions.features)
    gathered = [part if part is None else torch.cat(gather_all_tensors(part.to(device))).cpu() for part in parts]
    return Predictions(*gathered)  # type: ignore[arg-type]


@contextmanager
def best_weights(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Give the module the weights of the best checkpoint, if there is one; afterwards its own again."""
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
