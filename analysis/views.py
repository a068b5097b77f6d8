"""What a network makes of a picture and what a run left, as HTML: pure functions from arrays to text.

Pictures stand in the text as `data:` URLs, so that no file is written. views.css has the look. What can be clicked is a
button with an attribute `data-pick`, whose value the caller chooses.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from analysis import figures
from analysis.diagnosis import SPLITS
from analysis.figures import ARROW
from analysis.reports import COUNTS, HISTORY, PREDICTIONS, TREND
from cifar10.filters import corrupt_in_turn
from cifar10.records import CLASS_NAMES, FOLDER, load_labels, load_some
from models.prediction import find_mistakes

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler
    from torch import Tensor

    from models.classifier import Classifier

CSS = Path(__file__).with_name("views.css")
CURVES = {"loss": "Loss: lower is better", "accuracy": "Accuracy in percent: higher is better"}
SHOWN = 24  # images in a sheet
NO_DATA = f"CIFAR-10 is not here: python train.py downloads it, or --data_dir names the folder that has {FOLDER}."
NO_PREDICTIONS = "The run has no list of its predictions: made with --pictures false or --val_size 0, or not finished."
PICK = """element.addEventListener("click", event => {
  const button = event.target.closest("[data-pick]");
  if (button) trigger("pick", {pick: button.dataset.pick});
});"""  # of Gradio's HTML component: triggers the event "pick"


def show_parts(
    classifiers: Mapping[str, Classifier], pixels: np.ndarray, truth: str | None, levels: Iterable[tuple[str, float]]
) -> list[str]:
    """Show what classifiers, by name, make of one image, uint8 [32, 32, 3], side by side.

    Args:
        truth: The image's class, if that is known.
        levels: By which the image is corrupted first, as `corrupt_in_turn` takes them.

    Returns:
        The answers, where they come from, the preprocessing, and the layers' maps.
    """
    from models.attribution import explain

    pixels = corrupt_in_turn(levels, pixels)
    parts: list[dict[str, str]] = [{}, {}, {}, {}]
    for name, classifier in classifiers.items():
        found = explain(classifier, pixels)
        last = {"normalized": figures.pixels(found.image[None])[0]}
        parts[0][name] = show_answer(found.probabilities, classifier.class_names, truth)
        parts[1][name] = show_relevance(pixels, found.relevance)
        parts[2][name] = show_stages({"32 x 32 pixels": pixels} | found.stages | last)
        parts[3][name] = show_maps(found.maps)
    answers, *others = map(show_columns, parts)
    return [f'<div class="look">{show_picture(pixels, "all it gets: 32 x 32 pixels")}{answers}</div>', *others]


def show_columns(contents: Mapping[str, str]) -> str:
    """Put each network's content beside the others', below its name if there are several."""
    heading = "<h4>{}</h4>" if len(contents) > 1 else ""
    columns = (f"<section>{heading.format(escape(name))}{content}</section>" for name, content in contents.items())
    return f'<div class="columns">{"".join(columns)}</div>'


def show_picture(pixels: np.ndarray, caption: str = "", about: str = "") -> str:
    """Show an image, uint8 [H, W, 3] or, with opacity, [H, W, 4]; `about` is for who cannot see it."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{embed(pixels, about or caption)}{below}</figure>"


def embed(pixels: np.ndarray, about: str, kind: str = "pixels") -> str:
    """Return an image as an `img` element of the class `kind`."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return (
        f'<img class="{kind}" alt="{escape(about)}" src="data:image/png;base64,{b64encode(file.getvalue()).decode()}">'
    )


def show_answer(probabilities: Tensor, class_names: Sequence[str], truth: str | None) -> str:
    """Show the answer, whether it is right if the truth is known, and the probability of each class, float [C]."""
    best = int(probabilities.argmax())
    answer = class_names[best]
    verdict = "" if truth is None else "right" if truth == answer else f"wrong, it is: {truth}"
    rows = []
    for label, (name, share) in enumerate(zip(class_names, probabilities.tolist(), strict=True)):
        kind = "best" if label == best else "true" if name == truth else ""
        rows.append(
            f'<div class="bar {kind}"><span>{escape(name)}</span><i><b style="width:{share:.1%}"></b></i>'
            f"<span data-class='{escape(name)}'>{share:.1%}</span></div>"
        )
    tone = "good" if verdict == "right" else "bad"
    title = f"<strong>{escape(answer)}</strong> {probabilities[best]:.1%} sure"
    note = f' <em class="{tone}">{escape(verdict)}</em>' if verdict else ""
    return f'<p class="answer">{title}{note}</p>{"".join(rows)}'


def show_stages(stages: Mapping[str, np.ndarray]) -> str:
    """Show images, uint8 [32, 32, 3], in a row, in order, each with its name."""
    pictures = (show_picture(pixels, name) for name, pixels in stages.items())
    return f'<div class="stages">{"".join(pictures)}</div>'


def show_relevance(pixels: np.ndarray, relevance: Tensor) -> str:
    """Lay values, float [H, W], over an image, uint8 [H, W, 3]: red where they are above 0, blue where below."""
    values = relevance.numpy() / max(float(relevance.abs().max()), 1e-6)
    colour = np.zeros((*values.shape, 4), np.uint8)
    colour[values > 0] = (230, 30, 20, 0)
    colour[values < 0] = (20, 90, 230, 0)
    colour[..., 3] = 200 * np.abs(values)
    layers = embed(pixels, "the picture") + embed(colour, "red where the answer comes from", "heat")
    return f'<figure class="layers">{layers}</figure>'


def show_maps(maps: Mapping[str, Tensor]) -> str:
    """Show what layers make of an image before ReLU, float [channels, h, w] or [units] by name: the brighter, the
    stronger the response after ReLU.
    """
    shown = []
    for name, values in maps.items():
        tiles = values.clamp(min=0).numpy()
        tiles = tiles / max(float(tiles.max()), 1e-6)
        if tiles.ndim == 1:
            picture, what = figures.mosaic(tiles[:, None, None], 30, gap=0), f"{len(tiles)} units"
        else:
            rows = max(1, round((len(tiles) / 4) ** 0.5))
            picture, what = figures.mosaic(tiles, -(-len(tiles) // rows), gap=1), f"{len(tiles)} maps"
        shown.append(show_picture(colour_map(picture), f"{name} after ReLU, {what}"))
    return f'<div class="maps">{"".join(shown)}</div>'


def colour_map(values: np.ndarray) -> np.ndarray:
    """Return values in [0, 1], float [H, W], in colours, uint8 [H, W, 4]; NaN is transparent."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.ma.masked_invalid(values), bytes=True)


def show_sheet(images: np.ndarray, captions: Iterable[str], picks: Iterable[str]) -> str:
    """Show images, uint8 [N, H, W, 3], as buttons, each with its caption and what it picks."""
    buttons = (
        f'<button data-pick="{escape(pick)}">{show_picture(image, caption)}</button>'
        for image, caption, pick in zip(images, captions, picks, strict=False)
    )
    return f'<div class="sheet">{"".join(buttons)}</div>'


def show_class(classifier: Classifier, data: Path | None, label: int, mistakes: bool) -> str:
    """Show test images of a class, or those of them that are taken for another; each picks "test/its index"."""
    if data is None:
        return NO_DATA
    indices = np.flatnonzero(load_labels(data, train=False) == label)
    if mistakes:
        indices = indices[find_mistakes(classifier, load_some(data, False, indices), label)]
    return show_images(data, False, indices[:SHOWN], [""] * SHOWN)


def show_images(data: Path, train: bool, indices: Iterable[int], captions: Sequence[str]) -> str:
    """Show images of the data set; each picks "train/its index" or "test/its index"."""
    picks = [f"{'train' if train else 'test'}/{index}" for index in indices]
    return show_sheet(load_some(data, train, np.array(list(indices), int)), captions, picks)


def show_predicted(data: Path | None, split: str, rows: pd.DataFrame) -> str:
    """Show the images of some rows of `read_predictions`, the first SHOWN."""
    if data is None:
        return NO_DATA
    rows = rows.head(SHOWN)
    pairs = zip(rows["true class"], rows["predicted class"], rows["confidence"], strict=True)
    captions = [f"{true} {ARROW} {predicted} {confidence:.0%}" for true, predicted, confidence in pairs]
    return show_images(data, split != "test", rows["image"], captions)


def read_example(data: Path, pick: str) -> tuple[np.ndarray, str]:
    """Return the image, uint8 [32, 32, 3], that was picked, and its class."""
    split, _, index = pick.partition("/")
    train = split == "train"
    return load_some(data, train, np.array([int(index)]))[0], CLASS_NAMES[load_labels(data, train)[int(index)]]


def read_confusion(folder: Path) -> Styler | None:
    """Read the confusion matrix in a run's folder: rows true, columns predicted, the darker the more images."""
    import pandas as pd

    if not (folder / COUNTS).exists():
        return None
    return pd.read_csv(folder / COUNTS).style.background_gradient("Blues", axis=None)


def read_trend(name: str, folder: Path | None) -> str:
    """Return, in Markdown, the trend of the run in a log folder, or what is missing; `name` is the network's."""
    if folder is None:
        return f"No run's log folder belongs to {name}. Train a run, and name its folder by `--checkpoint`."
    trend = folder / TREND
    words = trend.read_text(encoding="utf-8") if trend.exists() else "This run has no trend: it is not finished."
    return f"## {folder.parent.name}/{folder.name}\n\n{words}"


def read_predictions(folder: Path) -> pd.DataFrame | None:
    """Read PREDICTIONS in a run's folder, the most confident first, with their `confidence`; None of a run without."""
    import pandas as pd

    if not (folder / PREDICTIONS).exists():
        return None
    rows = pd.read_csv(folder / PREDICTIONS)
    rows["confidence"] = rows.iloc[:, 3:].max(axis=1)
    return rows.sort_values("confidence", ascending=False)


def read_curves(folder: Path, what: str) -> pd.DataFrame:
    """Read a key of CURVES, in each epoch, from HISTORY in a run's folder.

    Returns:
        A row for each epoch and curve: epoch, images, and the value in a column of the key's name.
    """
    import pandas as pd

    history = pd.read_csv(folder / HISTORY)
    name, factor = ("acc", 100) if what == "accuracy" else (what, 1)
    curves = history.rename(columns={f"{stage}_{name}": images for stage, images in SPLITS.items()})
    table = curves.melt("epoch", [images for images in SPLITS.values() if images in curves], "images", what).dropna()
    table[what] *= factor
    return table
