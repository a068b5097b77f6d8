"""Pictures of what a network sees, has learned and gets wrong: pure functions from arrays to figures.

A figure is matplotlib's `Figure`. Figures have a white ground, so that they can be read on paper, in a light and in a
dark page. pyplot's global state is never touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

CALIBRATION_BINS = 15  # customary since Guo et al. 2017, On Calibration of Modern Neural Networks
# Eight colours that colour-blind people tell apart (Okabe and Ito 2008), the one that is pale on paper last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLES = ("-", "--", "-.", ":")
TRAIN_COLOUR, VAL_COLOUR, BEST_COLOUR = "tab:blue", "tab:orange", "tab:green"


def png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    write_bytes(path, png(figure))


def pixels(images: Tensor) -> np.ndarray:
    """Images, float [N, 3, H, W], as pixels to look at, uint8 [N, H, W, 3], whatever they were normalised by.

    Each channel's range over all these images becomes 0 to 255. Where the images hold both its darkest and its
    brightest value, as a few dozen photographs do, these are the original pixels.
    """
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    scaled = (images - low) / (high - low).clamp(min=1e-12) * 255
    return scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def sheet(images: np.ndarray, captions: Sequence[str], title: str, columns: int = 6) -> Figure:
    """Images, uint8 [N, H, W, 3], in rows, each with its caption (one line or two) below."""
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    height, width = images.shape[1:3]
    row, column = height + 2 + 5 * lines, width + 6  # pixels of an image, room for the caption and between
    rows = max(1, -(-len(images) // columns))
    mosaic = np.full((rows * row, columns * column, 3), 255, np.uint8)
    figure = _figure(columns * 0.95, rows * 0.95 * row / column + 0.4, title)
    axes = figure.subplots()
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        top, left = number // columns * row, number % columns * column + 3
        mosaic[top : top + height, left : left + width] = image
        axes.text(left + width / 2, top + height + 1, caption, ha="center", va="top", fontsize=7.5, linespacing=1.0)
    axes.imshow(mosaic, interpolation="nearest", aspect="equal")
    axes.set_axis_off()
    return figure


def before_and_after(rows: Mapping[str, np.ndarray], class_names: Sequence[str], title: str = "") -> Figure:
    """The same N images, uint8 [N, H, W, 3], in several rows, by what was done to them; `class_names` are theirs."""
    figure = _figure(1.0 * len(class_names) + 0.4, 1.25 * len(rows) + 0.4, title)
    grid = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        side = images.shape[2] + 2
        axes.imshow(_mosaic(images, len(images), gap=2), interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    centres = [1 + side * (number + 0.5) for number in range(len(class_names))]
    grid[-1].set_xticks(centres, class_names, fontsize=7.5)
    grid[-1].tick_params(length=0)
    return figure


def filters(weight: Tensor, columns: int = 6, scale: int = 12) -> np.ndarray:
    """The filters of a convolution, float [O, C, K, K], as one picture, uint8 [H, W, 3], each over the same scale:
    middle grey is 0. With C other than 3 the mean over the channels is shown; a weight has `scale` x `scale` pixels.
    """
    weight = weight.detach().cpu().float()
    if weight.shape[1] != 3:
        weight = weight.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    grey = 0.5 + weight / weight.abs().max().clamp(min=1e-12) / 2
    tiles = (grey * 255).round().byte().permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)
    return _mosaic(tiles, columns, gap=scale // 2)


def confusion(matrix: Tensor, class_names: Sequence[str], images: str = "images") -> Figure:
    """The confusion matrix, int64 [C, C], rows true and columns predicted, in percent of the row; `images` are named in
    the title.
    """
    from torchmetrics.utilities.plot import plot_confusion_matrix

    shares = (matrix / matrix.sum(1, keepdim=True).clamp(min=1) * 100).round().int()
    figure = _figure(6.8, 6.8, f"Which class is taken for which\n{images}, percent of the true class")
    plot_confusion_matrix(shares, figure.subplots(), labels=list(class_names), cmap="Blues")
    return figure


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """The expected calibration error (Naeini et al. 2015): the mean distance between confidence and accuracy over
    CALIBRATION_BINS of confidence, weighted by images. `probabilities` are float [N, C], `labels` int64 [N].
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes = probabilities.shape[1]
    return multiclass_calibration_error(probabilities, labels, classes, n_bins=CALIBRATION_BINS).item()


def reliability(
    probabilities: Tensor, labels: Tensor, images: str = "images", unscaled: Tensor | None = None
) -> Figure:
    """The reliability diagram: how often the network is right, for each confidence, and the images that had it.

    `probabilities` are float [N, C], `labels` int64 [N]; `unscaled` are the probabilities before temperature scaling.
    """
    error = f"Expected calibration error {calibration_error(probabilities, labels):.1%}"
    if unscaled is not None:
        error += f", {calibration_error(unscaled, labels):.1%} before temperature scaling"
    confidence, predicted = probabilities.max(1)
    right = (predicted == labels).numpy()
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.digitize(confidence.numpy(), edges[1:-1])
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    accuracy = np.bincount(bins, right, CALIBRATION_BINS) / np.maximum(count, 1)

    figure = _figure(6.4, 6.4, f"Can the confidence be believed? {images}\n{error}")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    centres, width = (edges[:-1] + edges[1:]) / 2, 1 / CALIBRATION_BINS
    top.bar(centres, accuracy, width * 0.92, color=TRAIN_COLOUR, label="accuracy of the images with this confidence")
    top.plot([0, 1], [0, 1], "--", color="black", label="perfect: as often right as confident")
    top.set(ylim=(0, 1), ylabel="accuracy")
    top.legend(loc="upper left")
    bottom.bar(centres, count, width * 0.92, color="tab:grey")
    bottom.set(xlim=(0, 1), xlabel="confidence: probability of the predicted class", ylabel="images")
    return figure


def curves(
    train: Mapping[str, Mapping[int, float]],
    val: Mapping[str, Mapping[int, float]],
    best: int | None = None,
    val_name: str = "validation",
    train_loss_name: str = "training",
) -> Figure:
    """Loss and accuracy of a run over its epochs.

    Args:
        train, val: `loss` and `acc`, each value by epoch; `val` may be empty.
        best: The epoch to mark.
        train_loss_name: What the training loss is called; not all training losses are what the validation loss is.
    """
    figure = _figure(9.6, 4.0, "")
    charts = ("loss", "loss", train_loss_name, 1), ("acc", "accuracy, %", "training", 100)
    for axes, (name, label, train_name, factor) in zip(figure.subplots(1, 2), charts, strict=True):
        lines = (train_name, train, "o-", TRAIN_COLOUR), (val_name, val, "s--", VAL_COLOUR)  # apart in grey too
        for part, values, style, colour in lines:
            if name in values:
                epochs, points = zip(*sorted(values[name].items()), strict=True)
                axes.plot(epochs, [factor * point for point in points], style, ms=3, color=colour, label=part)
        if best is not None:
            axes.axvline(best, color=BEST_COLOUR, ls=":", label=f"best epoch, {best}")
        axes.set(xlabel="epoch", ylabel=label, title=label.removesuffix(", %").capitalize())
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def lr_range(lrs: np.ndarray, losses: np.ndarray, valley: tuple[float, float], suggestion: float, title: str) -> Figure:
    """The learning-rate range test: training loss, float [N], over learning rate, float [N]."""
    figure = _figure(6.4, 4.2, title)
    axes = figure.subplots()
    axes.semilogx(lrs, losses, color=TRAIN_COLOUR)
    axes.axvspan(*valley, color=BEST_COLOUR, alpha=0.15, label="valley: nearly the lowest loss")
    axes.axvline(suggestion, color=BEST_COLOUR, label=f"suggested, its middle: {suggestion:g}")
    axes.set(xlabel="learning rate, growing from step to step", ylabel="training loss, smoothed")
    axes.set_ylim(losses.min() - 0.1 * losses[0], 1.3 * losses[0])  # where it diverges, it leaves the picture
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def feature_maps(
    image: np.ndarray, maps: Mapping[str, Tensor], probabilities: Tensor, class_names: Sequence[str], label: str
) -> Figure:
    """One image on its way through the network: the image, what each layer makes of it, and the answer.

    Args:
        image: uint8 [H, W, 3].
        maps: As of `best_model.layer_outputs`, of which the positive part is shown. They may be none.
        probabilities: float [C].
        label: The true class.
    """
    said = class_names[int(probabilities.argmax())]
    figure = _figure(10.0, 7.2, f"One image through the network: truth {label}, prediction {said}")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 3))[0]
    first, answer = left.subplots(2, 1)
    first.imshow(image, interpolation="nearest")
    first.set_title("what goes in", fontsize=9)
    first.set_axis_off()
    answer.barh(class_names, probabilities.numpy(), color=TRAIN_COLOUR)
    answer.invert_yaxis()
    answer.set_xlim(0, 1)
    answer.set_title("what comes out: probability", fontsize=9)
    heights = [values.ndim for values in maps.values()]
    rows = right.subplots(len(maps), 1, height_ratios=heights, squeeze=False)[:, 0] if maps else ()
    for axes, (name, values) in zip(rows, maps.items(), strict=True):
        tiles = values.clamp(min=0).cpu().float().numpy()
        if tiles.ndim == 1:
            size, picture = f"{len(tiles)} units", _mosaic(tiles[:, None, None], -(-len(tiles) // 6), gap=0)
        else:
            count, height, width = tiles.shape
            size, picture = f"{count} maps of {height} x {width}", _mosaic(tiles, -(-count // 3), gap=1)
        axes.imshow(picture, cmap="viridis", interpolation="nearest")
        axes.set_title(f"{name}: {size}, positive part", fontsize=9)
        axes.set_axis_off()
    return figure


def _figure(width: float, height: float, title: str, dpi: int = 150) -> Figure:
    """An empty figure of this many inches; at 150 pixels each it is sharp on paper."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
    if title:
        figure.suptitle(title)
    return figure


def _mosaic(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Tiles [N, h, w, ...] in rows of `columns`, `gap` white pixels between them (NaN, if they are float)."""
    count, height, width = tiles.shape[:3]
    rows = -(-count // columns)
    ground = 255 if tiles.dtype == np.uint8 else np.nan
    size = rows * (height + gap) + gap, columns * (width + gap) + gap
    mosaic = np.full((*size, *tiles.shape[3:]), ground, tiles.dtype)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + gap) + gap, (number % columns) * (width + gap) + gap
        mosaic[top : top + height, left : left + width] = tile
    return mosaic
