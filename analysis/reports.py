"""What a network gets right and wrong on labelled images, as files: tables, pictures, and the report that shows them.

Light to import: torchmetrics, matplotlib and Markdown are loaded where they are needed.
"""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import figures
from analysis.diagnosis import confused_pairs
from analysis.figures import ARROW
from core.files import write_bytes
from core.markdown import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# Files in a run's log folder.
TREND = "trend.md"
HISTORY = "history.csv"  # a row an epoch
OVERVIEW, CURVES, CLASS_CURVES = "overview.png", "curves.png", "class_accuracy.png"
PREPROCESSING, TRAINING_BATCH = "preprocessing.png", "training_batch.png"
FILTERS, FEATURE_MAPS = "filters.png", "feature_maps.png"
# Of the images that a network is judged on, here and where evaluate.py writes.
COUNTS, CLASSES, PREDICTIONS = "confusion.csv", "classes.csv", "predictions.csv"
CONFUSION, MISTAKES, CONFUSED, RELIABILITY = "confusion.png", "mistakes.png", "confused.png", "reliability.png"
CORRUPTIONS, CORRUPTED = "corruptions.csv", "corruptions.png"  # of a folder of corrupted images
REPORT, HTML = "report.md", "report.html"  # tie them together

CALIBRATION = (
    "Expected calibration error: mean distance between confidence and accuracy, over "
    f"{figures.CALIBRATION_BINS} bins of confidence. "
    "Temperature scaling divides all logits by one number to lower it, and changes no prediction."
)
FORMATS = {"loss": "{:.3f}", "acc": "{:.2%}", "second": "{:,.0f}"}  # of HISTORY's columns, by their last words
SHOWN_EPOCHS = 12  # rows of the report's table of epochs, at most
OF_A_CLASS, OF_A_PAIR = 3, 6  # mistakes that are shown
PICTURES = {  # what each shows
    OVERVIEW: "Overview: curves, accuracy of each class, most frequent mistakes",
    CURVES: "Loss and accuracy over epochs",
    CLASS_CURVES: "Accuracy of each class over epochs",
    CONFUSION: "Confusion matrix",
    RELIABILITY: "Accuracy at each confidence",
    MISTAKES: "The most confident mistakes in each class",
    CONFUSED: "The most confused pairs of classes",
    TRAINING_BATCH: "A training batch, and what was done to each image",
    PREPROCESSING: "An image of each class before and after preprocessing",
    FILTERS: "Filters of the first convolution",
    FEATURE_MAPS: "An image on its way through the network",
}


def choose(epochs: Sequence[Any]) -> list[Any]:
    """Return at most SHOWN_EPOCHS of what there is of each epoch, evenly spread, with the first and the last."""
    return [epochs[place] for place in sorted({round(x) for x in np.linspace(0, len(epochs) - 1, SHOWN_EPOCHS)})]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, whole or not at all; floats with the six digits of a float32, None as nothing."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    write_bytes(path, text.getvalue().encode())


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Return int64 [C, C], rows true, columns predicted, of logits, float [N, C], and labels, int64 [N]."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(logits, labels, logits.shape[1])


def write_tables(folder: Path, logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    """Write COUNTS, the confusion matrix, rows true, columns predicted; and CLASSES: of each class precision, recall
    and F1, as fractions (0 where there is nothing to divide by), and the number of its images.

    `logits` are float [N, C], `labels` int64 [N].
    """
    counts = confusion_matrix(logits, labels).numpy()
    rows = ([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))
    write_csv(folder / COUNTS, ["true class", *class_names], rows)
    right, predicted, true = counts.diagonal(), counts.sum(0), counts.sum(1)
    scores = (right / np.maximum(of, 1) for of in (predicted, true, (predicted + true) / 2))
    columns = ["class", "precision", "recall", "f1", "support"]
    write_csv(folder / CLASSES, columns, zip(class_names, *(each.tolist() for each in (*scores, true)), strict=True))


def write_predictions(
    folder: Path, images: Iterable[Any], probabilities: Tensor, labels: Tensor, class_names: Sequence[str]
) -> None:
    """Write PREDICTIONS: of each image its true class, the predicted one, and the probability of each class.

    Args:
        images: Their names: files, or indices in the data set.
        probabilities: float [N, C].
        labels: int64 [N].
    """
    named = zip(images, labels.tolist(), probabilities.argmax(1).tolist(), probabilities.tolist(), strict=True)
    rows = ([image, class_names[true], class_names[predicted], *each] for image, true, predicted, each in named)
    write_csv(folder / PREDICTIONS, ["image", "true class", "predicted class", *class_names], rows)


def draw(
    logits: Tensor, labels: Tensor, shown: np.ndarray, class_names: Sequence[str], about: str, temperature: float = 1
) -> dict[str, Figure]:
    """Draw a network's predictions; the figures are returned by the names of their files.

    Args:
        logits, labels: float [N, C] and int64 [N].
        shown: uint8 [N, H, W, 3], the images to look at.
        about: A line for the titles: what was trained, and what the images are.
        temperature: Of `fit_temperature`; by it the logits are divided.
    """
    probabilities = (logits / temperature).softmax(1)
    confidence, predicted = probabilities.max(1)
    matrix = confusion_matrix(logits, labels)
    error = f"{figures.calibration_error(probabilities, labels):.1%}"
    if temperature != 1:
        error += f", {figures.calibration_error(logits.softmax(1), labels):.1%} before temperature scaling"
    title = f"Confusion matrix, accuracy {matrix.trace() / len(labels):.2%}\n{about}"
    drawn = {CONFUSION: figures.plot_confusion(matrix, class_names, title)}
    title = f"Reliability: expected calibration error {error}\n{about}"
    drawn[RELIABILITY] = figures.plot_reliability(probabilities, labels, title)
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    if len(wrong):
        names, shares = np.array(class_names), [f"{share:.0%}" for share in confidence[wrong].tolist()]
        true, taken = names[labels[wrong].numpy()], names[predicted[wrong].numpy()]
        mistakes = Mistakes(shown[wrong.numpy()], true, taken, shares)
        drawn[MISTAKES] = mistakes.draw_classes(class_names, about)
        drawn[CONFUSED] = mistakes.draw_pairs(confused_pairs(matrix.numpy(), class_names), about)
    return drawn


@dataclass(frozen=True)
class Mistakes:
    """N images that a network takes for another class, the most confident mistake first."""

    shown: np.ndarray  # uint8 [N, H, W, 3]
    true: np.ndarray  # str [N]
    predicted: np.ndarray  # str [N]
    confidence: Sequence[str]

    def draw_classes(self, class_names: Sequence[str], about: str) -> Figure:
        """Draw a few of each class."""
        chosen = np.concatenate([np.flatnonzero(self.true == name)[:OF_A_CLASS] for name in class_names])
        captions = [f"{self.true[i]} {ARROW}\n{self.predicted[i]} {self.confidence[i]}" for i in chosen]
        title = f"The most confident mistakes in each class: true {ARROW} predicted class\n{about}"
        return figures.plot_sheet(self.shown[chosen], captions, title)

    def draw_pairs(self, pairs: Iterable[tuple[str, str, int, int]], about: str) -> Figure:
        """Draw some of each confusion between pairs of classes, as `confused_pairs` gives them."""
        names, pictures, captions = [], [], list[str]()
        for true, predicted, count in (way for a, b, ab, ba in pairs for way in ((a, b, ab), (b, a, ba))):
            chosen = np.flatnonzero((self.true == true) & (self.predicted == predicted))[:OF_A_PAIR]
            missing = OF_A_PAIR - len(chosen)
            names.append(f"{true} {ARROW}\n{predicted}:\n{count} images")
            pictures.append(np.pad(self.shown[chosen], ((0, missing), *[(0, 0)] * 3), constant_values=255))
            captions += [self.confidence[i] for i in chosen] + [""] * missing
        title = f"The most confused pairs: true {ARROW} predicted class\n{about}"
        return figures.plot_sheet(np.concatenate(pictures), captions, title, OF_A_PAIR, names)


def write_report(
    folder: Path,
    title: str,
    command: str,
    settings: Iterable[tuple[str, str]],
    result: Iterable[tuple[str, str]],
    images: str,
    trend: str = "",
    pictures: bool = True,
) -> None:
    """Write REPORT and HTML, of what is in the folder.

    Args:
        settings: What was trained, by label.
        images: What the network was judged on, such as "validation".
        trend: In Markdown.
        pictures: Whether those that lie there are of now.
    """

    def show(*names: str) -> str:
        there = [name for name in names if pictures and (folder / name).exists()]
        return "\n".join(f"![{PICTURES[name]}]({name})" for name in there)

    overview = show(OVERVIEW)
    parts = [f"# {title}", f"```sh\n{command}\n```", markdown_table(("result", ""), result), overview]
    parts += ["## What was trained", markdown_table(("", ""), settings)]
    parts += ["## Trend", trend.strip()] if trend else []
    if (folder / HISTORY).exists():
        columns, *rows = read_csv(folder / HISTORY)
        chosen = choose(rows)
        formats = [FORMATS.get(name.rpartition("_")[2], "{:.4g}") for name in columns]
        texts = [
            [form.format(float(cell)) if cell else "" for form, cell in zip(formats, row, strict=True)]
            for row in chosen
        ]
        table = markdown_table([name.replace("_", " ") for name in columns], texts)
        left_out = f"{len(chosen)} of {len(rows)} epochs; {HISTORY} has all." if len(chosen) < len(rows) else ""
        parts += ["## Epoch by epoch", "" if overview else show(CURVES), left_out, table, show(CLASS_CURVES)]
    if (folder / CLASSES).exists():
        columns, *rows = read_csv(folder / CLASSES)
        shares = [[name, *(f"{float(share):.1%}" for share in scores), count] for name, *scores, count in rows]
        number = sum(int(row[-1]) for row in rows)
        parts += [
            "## Where it fails",
            f"On the {number:,} {images} images. Precision: share of the images predicted as this class that belong to "
            "it. Recall: share of the images of this class that are predicted as it. F1: their harmonic mean.",
            markdown_table([*columns[:-1], "images"], shares),
            *(show(CONFUSION), show(RELIABILITY), CALIBRATION if show(RELIABILITY) else "", show(MISTAKES, CONFUSED)),
        ]
    if inputs := show(TRAINING_BATCH, FEATURE_MAPS):
        parts += ["## What it sees and has learned", show(PREPROCESSING), inputs, show(FILTERS)]
    tables = [name for name in (HISTORY, CLASSES, COUNTS, PREDICTIONS) if (folder / name).exists()]
    parts.append(f"Tables as files: {', '.join(f'[{name}]({name})' for name in tables)}.")
    write_page(folder, *filter(None, parts))


def write_page(folder: Path, *parts: str) -> None:
    """Write REPORT, of paragraphs, and HTML."""
    write_bytes(folder / REPORT, ("\n\n".join(parts) + "\n").encode())
    write_html(folder / REPORT)


def write_html(page: Path) -> None:
    """Write HTML beside a page in Markdown: one file with the page's pictures inside, which needs no other.

    HTML in the page is shown as text. Links to files beside it become plain text.
    """
    from markdown import Markdown
    from markdown.treeprocessors import Treeprocessor

    class OneFile(Treeprocessor):
        def run(self, root: Any) -> None:
            for image in root.iter("img"):
                if (picture := page.parent / image.get("src")).is_file():
                    image.set("src", f"data:image/png;base64,{b64encode(picture.read_bytes()).decode()}")
            for cell in [*root.iter("td"), *root.iter("th")]:
                cell.attrib.pop("style", None)  # the style sheet aligns
            for link in [link for link in root.iter("a") if "://" not in link.get("href", "")]:
                link.tag = "span"
                del link.attrib["href"]

    converter = Markdown(extensions=["tables", "fenced_code"])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    converter.treeprocessors.register(OneFile(converter), "one_file", 0)
    text = page.read_text(encoding="utf-8")
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    title = escape(text.partition("\n")[0].lstrip("# "))
    write_bytes(page.with_name(HTML), template.substitute(title=title, body=converter.convert(text)).encode())
