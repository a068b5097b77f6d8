"""What a person sees when a run is over: what its best model gets right and wrong, and the trend of its curves."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from analysis import diagnosis, figures, reports
from analysis.charts import plot_heat_map
from analysis.tensorboard import Scalars, add_figure, add_projector, read_curves
from cifar10.records import CLASS_NAMES
from cifar_datamodule import CIFAR10DataModule
from core.files import write_bytes
from models.attribution import layer_outputs
from models.calibration import fit_temperature
from models.classifier import compute_logits
from training.config import RunConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECTED = 500  # images in the projector
SHOWN_IMAGES = 30  # of the first training batch
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
class BestModel:
    """What the best weights make of images, and of one of them."""

    predictions: Predictions  # of the validation images
    clean_acc: float  # accuracy on whole training images
    maps: dict[str, Tensor]  # of the first image, see `layer_outputs`
    filters: Tensor | None  # of the first convolution


def show_run(
    writer: SummaryWriter, module: pl.LightningModule, datamodule: CIFAR10DataModule, config: RunConfig, about: str
) -> tuple[diagnosis.Trend | None, float | None]:
    """Classify the validation images with a run's best weights, and write what they make of them for TensorBoard and,
    all but the projector, as files into the log folder.

    Without validation there are the pictures of the training alone.

    Args:
        module: Has the best weights.
        about: What was trained, for the titles of the pictures.

    Returns:
        The trend, and the temperature of `fit_temperature`; both None without validation.
    """
    datamodule.trainer = None  # so that its loaders have the images of all processes
    loader = datamodule.val_dataloader()
    best = evaluate_best(module, loader, datamodule) if loader else None
    writer.flush()
    pictures = Pictures(writer, config, about, datamodule, read_curves(Path(writer.log_dir)))
    trend, temperature = None, None
    if best:
        trend = pictures.write_trend(best)
        if config.select_on != "test":  # whose images choose nothing more than the epoch
            temperature = fit_temperature(best.predictions.logits, best.predictions.labels)
    if config.pictures:
        pictures.draw_inputs(module)
        pictures.draw_curves(best, trend)
        if best:
            pictures.draw_predictions(best, temperature or 1)
    writer.flush()
    return trend, temperature


def evaluate_best(module: pl.LightningModule, loader: Any, datamodule: CIFAR10DataModule) -> BestModel:
    """Classify the images of the validation's loader, and clean training images."""
    predictions = predict(module, loader, PROJECTED)
    clean = predict(module, datamodule.clean_train_dataloader(), 1)
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    filters = convolutions[0].weight.detach() if convolutions else None
    return BestModel(predictions, clean.accuracy, layer_outputs(module, predictions.images[:1]), filters)


@dataclass(frozen=True)
class Pictures:
    """What is written about a run whose training is over."""

    writer: SummaryWriter
    config: RunConfig
    about: str
    datamodule: CIFAR10DataModule
    curves: Scalars  # of the run

    @property
    def folder(self) -> Path:
        return Path(self.writer.log_dir)

    @property
    def images(self) -> str:
        """What the images are called on which the network is judged."""
        return diagnosis.SPLITS[self.config.select_on]

    @property
    def by_class(self) -> dict[str, dict[int, float]]:
        """Return the accuracy of each class over epochs, by the classes' names."""
        tags = {name: f"{self.config.select_on}_acc_by_class/{name}" for name in CLASS_NAMES}
        return {name: dict(self.curves[tag]) for name, tag in tags.items() if tag in self.curves}

    def add(self, tag: str, file: str, figure: Any) -> None:
        """Show a figure in TensorBoard, and write it as a file."""
        add_figure(self.writer, tag, figure, self.config.epochs, self.folder / file)

    def write_trend(self, best: BestModel) -> diagnosis.Trend | None:
        """Write the tables and the trend, and return the trend; None if the curves were lost."""
        found, stage = best.predictions, self.config.select_on
        reports.write_tables(self.folder, found.logits, found.labels, CLASS_NAMES)
        curves = [self.curves.get(name, {}) for name in ("train/loss", "train/acc", f"{stage}/loss", f"{stage}/acc")]
        epochs = sorted(set.intersection(*map(set, curves)))
        if not epochs:
            return None
        train_loss, train_acc, val_loss, val_acc = ([curve[epoch] for epoch in epochs] for curve in curves)
        trend = diagnosis.analyse(
            *(train_loss, train_acc, val_loss, val_acc, CLASS_NAMES),
            first_epoch=epochs[0],
            confusion=found.confusion_matrix().numpy(),
            config=self.config.plain(),
            clean_acc=best.clean_acc,
            by_class={name: [*curve.values()] for name, curve in self.by_class.items()},
            images=self.images,
        )
        text = diagnosis.markdown(trend)
        write_bytes(self.folder / reports.TREND, text.encode())
        self.writer.add_text("trend", text, self.config.epochs)
        self.writer.add_scalar("train/clean_acc", best.clean_acc, trend.best_epoch)
        return trend

    def draw_inputs(self, module: pl.LightningModule) -> None:
        """Show what goes into the network: the run's first training batch, augmented, and an image of each class before
        and after preprocessing; and the graph, traced with the first image.
        """
        loader = self.datamodule.train_dataloader()
        images, labels = next(iter(loader))[:2]
        done = loader.dataset.describe(next(iter(loader.sampler)))  # type: ignore[attr-defined]
        pairs = zip(labels.tolist(), done, strict=True)
        captions = [f"{CLASS_NAMES[label]}\n{textwrap.fill(text, 20)}" for label, text in pairs]
        title = f"First training batch, as the network gets it\n{self.about}"
        figure = figures.plot_sheet(figures.pixels(images)[:SHOWN_IMAGES], captions[:SHOWN_IMAGES], title)
        add_figure(self.writer, "what_it_sees/training_batch", figure, 0, self.folder / reports.TRAINING_BATCH)
        with warnings.catch_warnings(action="ignore"):  # PyTorch deprecates the tracer that TensorBoard needs
            self.writer.add_graph(module, images[:1].to(module.device, next(module.parameters()).dtype))
        rows = self.datamodule.examples()
        if len(rows) > 1:
            title = f"An image of each class before and after preprocessing\n{self.about}"
            names = [textwrap.fill(name, 16) for name in rows]
            tiles, captions = np.concatenate(list(rows.values())), [*CLASS_NAMES] * len(rows)
            figure = figures.plot_sheet(tiles, captions, title, len(CLASS_NAMES), names)
            add_figure(self.writer, "what_it_sees/preprocessing", figure, 0, self.folder / reports.PREPROCESSING)

    def draw_curves(self, best: BestModel | None, trend: diagnosis.Trend | None) -> None:
        """Draw loss and accuracy over epochs, and the accuracy of each class; write the guide to TensorBoard's tabs."""
        train, val = (
            {name: self.curves[f"{stage}/{name}"] for name in ("loss", "acc") if f"{stage}/{name}" in self.curves}
            for stage in ("train", self.config.select_on)
        )
        measured, loss_measured = diagnosis.describe_measurement(self.config.plain())
        epoch, clean = trend.best_epoch if trend else None, best.clean_acc if best else None
        curves = figures.Curves(train, val, epoch, self.images, measured, loss_measured, clean)
        figure = figures.plot_curves(curves, f"Loss and accuracy over epochs\n{self.about}")
        self.add("whole_run/curves", reports.CURVES, figure)
        if best:
            title = f"Best epoch {epoch}, {self.images} accuracy {best.predictions.accuracy:.2%}\n{self.about}"
            figure = figures.plot_overview(curves, best.predictions.confusion_matrix(), CLASS_NAMES, title)
            self.add("whole_run/overview", reports.OVERVIEW, figure)
        if by_class := self.by_class:
            epochs = reports.choose(sorted(by_class[CLASS_NAMES[0]]))
            table = np.array([[100 * curve[each] for each in epochs] for curve in by_class.values()])
            title = f"{self.images.capitalize()} accuracy of each class over epochs, %\n{self.about}"
            figure = plot_heat_map(table, CLASS_NAMES, [str(each) for each in epochs], title)
            figure.axes[0].set_xlabel("epoch")
            self.add("whole_run/class_accuracy", reports.CLASS_CURVES, figure)
        words = {"measured": measured, "loss_measured": loss_measured, "images": self.images, "projected": PROJECTED}
        self.writer.add_text("what_is_where", GUIDE.read_text(encoding="utf-8").format(**words), self.config.epochs)

    def draw_predictions(self, best: BestModel, temperature: float) -> None:
        """Show what the best weights get wrong, and what they have learned."""
        found, split = best.predictions, self.datamodule.validation_images()
        probabilities = (found.logits / temperature).softmax(1)
        reports.write_predictions(self.folder, split.indices.tolist(), probabilities, found.labels, CLASS_NAMES)
        about = f"{self.about}; {len(found.labels):,} {self.images} images"
        drawn = reports.draw(found.logits, found.labels, split.originals, CLASS_NAMES, about, temperature)
        for file, figure in drawn.items():
            self.add(f"where_it_fails/{Path(file).stem}", file, figure)
        if best.filters is not None:
            title = f"Filters of the first convolution (grey is 0)\n{self.about}"
            figure = figures.plot_sheet(figures.filter_tiles(best.filters), (), title, min(9, len(best.filters)))
            figures.save(self.folder / reports.FILTERS, figure)
        first = slice(PROJECTED)
        pairs = zip(found.labels[first].tolist(), found.logits[first].argmax(1).tolist(), strict=True)
        names = [(CLASS_NAMES[label], CLASS_NAMES[predicted]) for label, predicted in pairs]
        title = "One image through the network: true class {}, predicted {}\n".format(*names[0]) + self.about
        picture = figures.pixels(found.images[first])[0]
        figure = figures.plot_feature_maps(picture, best.maps, probabilities[0], CLASS_NAMES, title)
        self.add("what_it_learned/feature_maps", reports.FEATURE_MAPS, figure)
        if found.features is not None:
            add_projector(self.writer, found.features[first], names, split.originals[first], self.config.epochs)


@torch.no_grad()
def predict(module: pl.LightningModule, loader: Iterable[Any], keep: int) -> Predictions:
    """Classify all batches (images, labels) of `loader` with the module as it is.

    The first `keep` images are kept, whole batches of them: as float32 all of them would weigh more than a run does.
    """
    features: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0].float().cpu()))
        for layer in [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1:]
    ]
    kept, count, batches = [], 0, []
    for images, labels in loader:
        if count < keep:
            kept.append(images)
        count += len(images)
        batches.append((labels, compute_logits(module, images).cpu()))
    for handle in handles:
        handle.remove()
    labels, logits = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Predictions(torch.cat(kept), labels, logits, torch.cat(features) if features else None)
