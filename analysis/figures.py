"""Pictures of what a network sees, has learned and gets wrong: pure functions from arrays to figures.

A figure is matplotlib's `Figure`. Figures have a white ground, so that they can be read on paper, in a light and in a
dark page. Their titles are given by the caller, who knows what was trained and on which images. pyplot's global state
is never touched.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

CALIBRATION_BINS = 15  # customary since Guo et al. 2017, On Calibration of Modern Neural Networks
# Eight colours that colour-blind people tell apart (Okabe and Ito 2008), the one that is pale on paper last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLES = ("-", "--", "-.", ":")
TRAIN_COLOUR, VAL_COLOUR, BEST_COLOUR = COLOURS[:3]
DPI = 100  # 135 on paper, where pictures are made to fit
SIDE, GAP = 96, 34  # pixels of an image in a sheet, at most, and between two
ARROW = "\N{RIGHTWARDS ARROW}"


def png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas, buffer = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()  # once, where `savefig` draws a figure with a layout twice
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(buffer, "png")
    return buffer.getvalue()


def save(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    write_bytes(path, png(figure))


def new_figure(width: float, height: float, title: str, layout: str | None = "constrained") -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")  # type: ignore[arg-type]
    figure.suptitle(wrap_title(title, width), fontsize=10)
    return figure


def wrap_title(title: str, width: float) -> str:
    """Return a title of several lines, none wider than so many inches."""
    return "\n".join(textwrap.fill(line, int(11 * width)) for line in title.strip().split("\n"))


def pixels(images: Tensor) -> np.ndarray:
    """Return images, float [N, 3, H, W], as pixels to look at, uint8 [N, H, W, 3], whatever they were normalised by.

    Each channel's range over all these images becomes 0 to 255. Where the images hold both its darkest and its
    brightest value, as a few dozen photographs do, these are the original pixels.
    """
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    scaled = (images - low) / (high - low).clamp(min=1e-12) * 255
    return scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def filter_tiles(weight: Tensor, scale: int = 12) -> np.ndarray:
    """Return the filters of a convolution, float [O, C, K, K], as uint8 [O, H, W, 3], all over the same scale: middle
    grey is 0. With C other than 3 the mean over the channels is shown; a weight has `scale` x `scale` pixels.
    """
    weight = weight.detach().cpu().float()
    if weight.shape[1] != 3:
        weight = weight.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    grey = 0.5 + weight / weight.abs().max().clamp(min=1e-12) / 2
    return (grey * 255).round().byte().permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)


def mosaic(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Return tiles [N, h, w, ...] in rows of `columns`, `gap` white pixels between them (NaN, if they are float)."""
    count, height, width = tiles.shape[:3]
    rows = -(-count // columns)
    ground = 255 if tiles.dtype == np.uint8 else np.nan
    size = rows * (height + gap) + gap, columns * (width + gap) + gap
    picture = np.full((*size, *tiles.shape[3:]), ground, tiles.dtype)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + gap) + gap, (number % columns) * (width + gap) + gap
        picture[top : top + height, left : left + width] = tile
    return picture


def plot_sheet(
    images: np.ndarray, captions: Sequence[str], title: str, columns: int = 6, row_names: Sequence[str] = ()
) -> Figure:
    """Draw images, uint8 [N, H, W, 3], in rows, each with its caption below, if it has one. Pixels are repeated, never
    interpolated.
    """
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    rows, scale = max(1, -(-len(images) // columns)), max(1, SIDE // images.shape[1])
    side, below = scale * images.shape[1], 12 + 12 * lines
    left, wide = (95, 95 + columns * (side + GAP)) if row_names else (17, 17 + columns * (side + GAP))
    title = wrap_title(title, wide / DPI)
    top = 32 + 17 * title.count("\n")
    high = top + rows * (side + below)
    margins = (0, 0), (0, below), (0, GAP), (0, 0)
    tiles = np.pad(images.repeat(scale, 1).repeat(scale, 2), margins, constant_values=255)
    figure = new_figure(wide / DPI, high / DPI, "", layout=None)
    figure.suptitle(title, y=1 - 10 / high, va="top", fontsize=10)
    figure.figimage(mosaic(tiles, columns, gap=0), left)
    for number, caption in enumerate(captions):
        x, y = left + number % columns * (side + GAP) + side / 2, top + number // columns * (side + below) + side + 4
        figure.text(x / wide, 1 - y / high, caption, ha="center", va="top", fontsize=7.5, linespacing=1.1)
    for row, name in enumerate(row_names):
        figure.text(10 / wide, 1 - (top + row * (side + below) + side / 2) / high, name, va="center", fontsize=8)
    return figure


def plot_confusion(matrix: Tensor, class_names: Sequence[str], title: str) -> Figure:
    """Draw the confusion matrix, int64 [C, C], rows true and columns predicted: percent of the row, and images."""
    shares = (matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    figure = new_figure(8.6, 7.2, title)
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the true class", shrink=0.8)
    axes.set_xticks(range(len(class_names)), class_names, fontsize=8)
    axes.set_yticks(range(len(class_names)), class_names, fontsize=8)
    axes.set(xlabel="predicted class", ylabel="true class")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else "black" if matrix[row, column] else "lightgrey"
        text = f"{share:.0%}\n{matrix[row, column]}" if matrix[row, column] else "0"
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
        axes.text(column, row, text, **style).set_in_layout(False)  # type: ignore[arg-type]
    return figure


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error (Naeini et al. 2015): the mean distance between confidence and accuracy
    over CALIBRATION_BINS of confidence, weighted by images. `probabilities` are float [N, C], `labels` int64 [N].
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes = probabilities.shape[1]
    return multiclass_calibration_error(probabilities, labels, classes, n_bins=CALIBRATION_BINS).item()


def plot_reliability(probabilities: Tensor, labels: Tensor, title: str) -> Figure:
    """Draw the reliability diagram: the accuracy at each confidence, and how many images had it, as the size of a dot
    and as a bar. `probabilities` are float [N, C], `labels` int64 [N].
    """
    confidence, predicted = probabilities.max(1)
    weights = (None, (predicted == labels).double(), confidence.double())
    count, right, sure = (np.histogram(confidence, CALIBRATION_BINS, (0, 1), weights=each)[0] for each in weights)
    some = count > 0

    figure = new_figure(6.4, 6.0, title)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], "--", color="black", label="as often right as confident")
    mean, accuracy, area = sure[some] / count[some], right[some] / count[some], 20 + 600 * count[some] / count.max()
    top.scatter(mean, accuracy, area, COLOURS[0], alpha=0.8, label="images of similar confidence")
    top.set(ylim=(-0.05, 1.05), ylabel="accuracy")
    top.legend(loc="upper left", fontsize=8)
    top.grid(alpha=0.3)
    bottom.bar((np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS, count, 0.92 / CALIBRATION_BINS, color=COLOURS[0])
    bottom.set(xlim=(0, 1.02), xlabel="confidence: probability of the predicted class", ylabel="images")
    return figure


@dataclass(frozen=True)
class Curves:
    """Loss and accuracy of a run over its epochs, and what they are called; `loss` and `acc` by epoch, or neither."""

    train: Mapping[str, Mapping[int, float]]
    val: Mapping[str, Mapping[int, float]]
    best: int | None = None  # the epoch to mark
    images: str = "validation"  # of `val`
    measured: str = ""  # how the training curves were measured
    loss_measured: str = ""  # the same of their loss
    clean_acc: float | None = None  # training accuracy in the best epoch, measured as that of `val`

    def draw(self, loss: Axes, accuracy: Axes) -> None:
        charts = (loss, "loss", "loss", self.loss_measured, 1), (accuracy, "acc", "accuracy, %", self.measured, 100)
        for axes, name, label, measured, factor in charts:
            train = f"training {measured}".strip(), self.train, "o-", TRAIN_COLOUR
            val = self.images, self.val, "s--", VAL_COLOUR  # apart in grey too
            for part, values, style, colour in (train, val):
                if name in values:
                    epochs, points = zip(*sorted(values[name].items()), strict=True)
                    axes.plot(epochs, [factor * point for point in points], style, ms=3, color=colour, label=part)
            if self.best is not None:
                axes.axvline(self.best, color=BEST_COLOUR, ls=":", label=f"best epoch, {self.best}")
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # type: ignore[call-arg]
            axes.grid(alpha=0.3)
        if self.best is not None and self.clean_acc is not None:
            clean = "training (whole images, not augmented)"
            accuracy.plot([self.best], [100 * self.clean_acc], "*", ms=12, color=TRAIN_COLOUR, label=clean)
        for axes in (loss, accuracy):
            axes.legend(fontsize=8)


def plot_curves(curves: Curves, title: str) -> Figure:
    """Draw the loss and the accuracy of a run."""
    figure = new_figure(9.6, 4.0, title)
    curves.draw(*figure.subplots(1, 2))
    return figure


def plot_overview(curves: Curves, matrix: Tensor, class_names: Sequence[str], title: str) -> Figure:
    """Draw a run at a glance: its curves, the accuracy of each class and the most frequent mistakes, by the confusion
    matrix of its best epoch, int64 [C, C], rows true.
    """
    figure = new_figure(9.6, 7.0, title)
    (loss, accuracy), (left, right) = figure.subplots(2, 2)
    curves.draw(loss, accuracy)
    shares = 100 * matrix.diagonal() / matrix.sum(1).clamp(min=1)
    high, order = shares.sort(descending=True, stable=True)
    bars = left.barh([class_names[label] for label in order], high.numpy(), color=VAL_COLOUR)
    left.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    left.set(xlim=(0, 108), xlabel=f"{curves.images} accuracy of each class, %")
    mistakes = (matrix - matrix.diagonal().diag()).flatten()
    count, order = mistakes.sort(descending=True, stable=True)
    pairs = [divmod(int(index), len(matrix)) for index in order[: len(matrix)]]
    names = [f"{class_names[true]} {ARROW} {class_names[predicted]}" for true, predicted in pairs]
    right.bar_label(right.barh(names, count[: len(names)].numpy(), color=COLOURS[3]), padding=2, fontsize=8)
    right.set(xlabel=f"most frequent mistakes, {curves.images} images")
    right.margins(x=0.1)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=8)
    return figure


def plot_lr_range(
    lrs: np.ndarray, losses: np.ndarray, valley: tuple[float, float], suggestion: float, title: str
) -> Figure:
    """Draw the learning-rate range test: training loss, float [N], over learning rate, float [N]."""
    figure = new_figure(6.4, 4.2, title)
    axes = figure.subplots()
    axes.semilogx(lrs, losses, color=TRAIN_COLOUR)
    axes.axvspan(*valley, color=BEST_COLOUR, alpha=0.15, label="valley: nearly the lowest loss")
    axes.axvline(suggestion, color=BEST_COLOUR, label=f"suggested, its middle: {suggestion:g}")
    axes.set(xlabel="learning rate, growing from step to step", ylabel="training loss, smoothed")
    axes.set_ylim(losses.min() - 0.1 * losses[0], 1.3 * losses[0])  # where it diverges, it leaves the picture
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_feature_maps(
    image: np.ndarray, maps: Mapping[str, Tensor], probabilities: Tensor, class_names: Sequence[str], title: str
) -> Figure:
    """Draw an image on its way through the network: the image, what each layer makes of it, and the prediction.

    Args:
        image: uint8 [H, W, 3].
        maps: Of each layer, by its name, float [channels, h, w] or [units], before ReLU. They may be none.
        probabilities: float [C].
    """
    figure = new_figure(9.6, 6.8, title)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 3))[0]
    first, prediction = left.subplots(2, 1)
    first.imshow(image, interpolation="nearest")
    first.set_title("input", fontsize=9)
    first.set_axis_off()
    prediction.barh(class_names, probabilities.numpy(), color=TRAIN_COLOUR)
    prediction.invert_yaxis()
    prediction.set_xlim(0, 1)
    prediction.set_title("output: probability", fontsize=9)
    heights = [values.ndim for values in maps.values()]
    rows = right.subplots(len(maps), 1, height_ratios=heights, squeeze=False)[:, 0] if maps else ()
    for axes, (name, values) in zip(rows, maps.items(), strict=True):
        kind, count, gap = ("maps", 3, 1) if values.ndim == 3 else ("units", 6, 0)  # rows, pixels between tiles
        tiles = values.clamp(min=0).cpu().float().reshape(len(values), *(values.shape[1:] or (1, 1))).numpy()
        axes.imshow(mosaic(tiles, -(-len(tiles) // count), gap), cmap="viridis", interpolation="nearest")
        axes.set_title(f"{name} after ReLU, {len(tiles)} {kind}", fontsize=9)
        axes.set_axis_off()
    return figure
