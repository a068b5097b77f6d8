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

from analysis import diagnosis, figures, reports
from analysis.charts import plot_heat_map
from analysis.tensorboard import Scalars, add_figure, add_projector, read_curves
from cifar10.records import CLASS_NAMES
from cifar_datamodule import CIFAR10DataModule
from core.files import write_bytes
from models.attribution import layer_outputs
from models.calibration import fit_temperature
from models.classifier import compute_logits, measure_accuracy
from training.config import RunConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECTED = 500  # images in the projector
SHOWN_IMAGES = 30  # of the first training batch
GUIDE = Path(reports.__file__).with_name("guide.md")  # to TensorBoard's tabs


@dataclass(frozen=True)
class Predictions:
    """What a network makes of N labelled images, in float32; all on the CPU."""

    labels: Tensor  # int64 [N]
    logits: Tensor  # float32 [N, C]
    features: Tensor | None  # float32 [N, F], what the last linear layer gets; None of a network without one


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
    found = predict(module, loader) if loader else None
    writer.flush()
    pictures = Pictures(writer, config, about, datamodule, read_curves(Path(writer.log_dir)))
    trend, temperature = None, None
    if found:
        clean = predict(module, datamodule.clean_train_dataloader())
        trend = pictures.write_trend(found, measure_accuracy(clean.logits, clean.labels))
        if config.select_on != "test":  # whose images choose nothing more than the epoch
            temperature = fit_temperature(found.logits, found.labels)
    if config.pictures:
        pictures.draw_inputs(module)
        pictures.draw_curves(found, trend)
        if found:
            pictures.draw_predictions(module, found, temperature or 1)
    writer.flush()
    return trend, temperature


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
    def by_class(self) -> dict[str, list[float]]:
        """Return the accuracy of each class, an epoch after the other, by the classes' names."""
        return {name: self.values(f"{self.config.select_on}_acc_by_class/{name}") for name in CLASS_NAMES}

    def values(self, tag: str) -> list[float]:
        """Return the values of a curve, an epoch after the other."""
        return [value for _, value in sorted(self.curves[tag].items())]

    def add(self, tag: str, file: str, figure: Any) -> None:
        """Show a figure in TensorBoard, and write it as a file."""
        add_figure(self.writer, tag, figure, self.config.epochs, self.folder / file)

    def write_trend(self, found: Predictions, clean_acc: float) -> diagnosis.Trend | None:
        """Write the tables and the trend, and return it; None if epochs are missing, of a removed log folder.

        `clean_acc` is the accuracy on whole training images.
        """
        stage = self.config.select_on
        reports.write_tables(self.folder, found.logits, found.labels, CLASS_NAMES)
        if len(self.curves.get("train/loss", ())) < self.config.epochs:
            return None
        trend = diagnosis.analyse(
            self.values("train/loss"),
            self.values("train/acc"),
            self.values(f"{stage}/loss"),
            self.values(f"{stage}/acc"),
            clean_acc=clean_acc,
            by_class=self.by_class,
            confusion=reports.confusion_matrix(found.logits, found.labels).numpy(),
            config=self.config.plain(),
            images=self.images,
        )
        text = diagnosis.markdown(trend)
        write_bytes(self.folder / reports.TREND, text.encode())
        self.writer.add_text("trend", text, self.config.epochs)
        self.writer.add_scalar("train/clean_acc", clean_acc, trend.best_epoch)
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

    def draw_curves(self, found: Predictions | None, trend: diagnosis.Trend | None) -> None:
        """Draw loss and accuracy over epochs, and the accuracy of each class; write the guide to TensorBoard's tabs."""
        train, val = (
            {name: self.curves[f"{stage}/{name}"] for name in ("loss", "acc") if f"{stage}/{name}" in self.curves}
            for stage in ("train", self.config.select_on)
        )
        measured, loss_measured = diagnosis.describe_measurement(self.config.plain())
        best, clean_acc = (trend.best_epoch, trend.train_acc) if trend else (None, None)
        curves = figures.Curves(train, val, best, self.images, measured, loss_measured, clean_acc)
        figure = figures.plot_curves(curves, f"Loss and accuracy over epochs\n{self.about}")
        self.add("whole_run/curves", reports.CURVES, figure)
        if found and trend:
            title = f"Best epoch {best}, {self.images} accuracy {trend.best_acc:.2%}\n{self.about}"
            matrix = reports.confusion_matrix(found.logits, found.labels)
            self.add("whole_run/overview", reports.OVERVIEW, figures.plot_overview(curves, matrix, CLASS_NAMES, title))
            epochs = reports.choose(range(1, self.config.epochs + 1))
            table = np.array([[100 * curve[epoch - 1] for epoch in epochs] for curve in self.by_class.values()])
            title = f"{self.images.capitalize()} accuracy of each class over epochs, %\n{self.about}"
            figure = plot_heat_map(table, CLASS_NAMES, [str(epoch) for epoch in epochs], title)
            figure.axes[0].set_xlabel("epoch")
            self.add("whole_run/class_accuracy", reports.CLASS_CURVES, figure)
        words = {"measured": measured, "loss_measured": loss_measured, "images": self.images, "projected": PROJECTED}
        self.writer.add_text("what_is_where", GUIDE.read_text(encoding="utf-8").format(**words), self.config.epochs)

    def draw_predictions(self, module: nn.Module, found: Predictions, temperature: float) -> None:
        """Show what the best weights get wrong, and what they have learned."""
        split = self.datamodule.load_split(self.config.select_on)
        probabilities = (found.logits / temperature).softmax(1)
        reports.write_predictions(self.folder, split.indices.tolist(), probabilities, found.labels, CLASS_NAMES)
        about = f"{self.about}; {len(found.labels):,} {self.images} images"
        drawn = reports.draw(found.logits, found.labels, split.originals, CLASS_NAMES, about, temperature)
        for file, figure in drawn.items():
            self.add(f"where_it_fails/{Path(file).stem}", file, figure)
        if convolutions := [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]:
            tiles = figures.filter_tiles(convolutions[0].weight)
            title = f"Filters of the first convolution (grey is 0)\n{self.about}"
            figures.save(self.folder / reports.FILTERS, figures.plot_sheet(tiles, (), title, min(9, len(tiles))))
        first = slice(PROJECTED)
        pairs = zip(found.labels[first].tolist(), found.logits[first].argmax(1).tolist(), strict=True)
        names = [(CLASS_NAMES[label], CLASS_NAMES[predicted]) for label, predicted in pairs]
        title = "One image through the network: true class {}, predicted {}\n".format(*names[0]) + self.about
        images, _ = next(iter(self.datamodule.val_dataloader()))
        picture, maps = figures.pixels(images)[0], layer_outputs(module, images[:1])
        figure = figures.plot_feature_maps(picture, maps, probabilities[0], CLASS_NAMES, title)
        self.add("what_it_learned/feature_maps", reports.FEATURE_MAPS, figure)
        if found.features is not None:
            add_projector(self.writer, found.features[first], names, split.originals[first], self.config.epochs)


@torch.no_grad()
def predict(module: pl.LightningModule, loader: Iterable[Any]) -> Predictions:
    """Classify all batches (images, labels) of `loader` with the module as it is."""
    features: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0].float().cpu()))
        for layer in [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1:]
    ]
    batches = [(labels, compute_logits(module, images).cpu()) for images, labels in loader]
    for handle in handles:
        handle.remove()
    labels, logits = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Predictions(labels, logits, torch.cat(features) if features else None)
