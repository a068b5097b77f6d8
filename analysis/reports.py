"""What a network gets right and wrong on labelled images, as files: tables, pictures, and the page that ties them
together.

Light to import: torchmetrics and matplotlib are loaded where they are needed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import figures
from core.files import write_bytes
from core.markdown import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# Files in a run's log folder.
TREND = "trend.md"
HISTORY = "history.csv"  # a row an epoch
CURVES = "curves.png"
# Of the images that a network is judged on, here and where evaluate.py writes.
COUNTS, CLASSES = "confusion.csv", "classes.csv"
CONFUSION, MISTAKES, RELIABILITY = "confusion.png", "mistakes.png", "reliability.png"
CORRUPTIONS, CORRUPTED = "corruptions.csv", "corruptions.png"  # of a folder of corrupted images
REPORT = "report.md"  # ties them together

SHOWN_MISTAKES = 30
ARROW = "\N{RIGHTWARDS ARROW}"
PICTURES = {  # of the images that a network is judged on, and what each shows
    CONFUSION: "Which class is taken for which",
    MISTAKES: "The most confident mistakes",
    RELIABILITY: "How often it is right, by how sure it is",
}


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table, whole or not at all; floats with six digits, which is as far as float32 counts, None as nothing."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    write_bytes(path, text.getvalue().encode())


def write_tables(folder: Path, logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    """COUNTS, the confusion matrix, rows true, columns predicted; and CLASSES: of each class precision, recall and F1,
    as fractions (0 where there is nothing to divide by), and the number of its images.

    `logits` are float [N, C], `labels` int64 [N].
    """
    from torchmetrics.functional import classification as metrics

    classes = len(class_names)
    counts = metrics.multiclass_confusion_matrix(logits, labels, classes).tolist()
    rows = ([name, *row] for name, row in zip(class_names, counts, strict=True))
    write_csv(folder / COUNTS, ["true class", *class_names], rows)
    scores = [
        score(logits, labels, classes, average="none").tolist()
        for score in (metrics.multiclass_precision, metrics.multiclass_recall, metrics.multiclass_f1_score)
    ]
    support = [sum(row) for row in counts]
    columns = ["class", "precision", "recall", "f1", "support"]
    write_csv(folder / CLASSES, columns, zip(class_names, *scores, support, strict=True))


def draw(
    logits: Tensor,
    labels: Tensor,
    shown: np.ndarray,
    class_names: Sequence[str],
    images: str,
    temperature: float = 1,
) -> dict[str, Figure]:
    """The figures of PICTURES, by the names of their files, for the same logits and labels.

    Args:
        shown: uint8 [N, H, W, 3], the images to look at.
        images: What they are, such as "validation".
        temperature: Of `fit_temperature`; by it the logits are divided.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    probabilities = (logits / temperature).softmax(1)
    unscaled = None if temperature == 1 else logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN_MISTAKES]
    captions = [
        f"{class_names[int(labels[i])]} {ARROW}\n{class_names[int(predicted[i])]} {confidence[i]:.0%}" for i in wrong
    ]
    counted = f"{len(labels):,} {images} images"
    matrix = multiclass_confusion_matrix(predicted, labels, len(class_names))
    title = f"Most confident {images} mistakes: truth {ARROW} prediction"
    return {
        CONFUSION: figures.confusion(matrix, class_names, counted),
        MISTAKES: figures.sheet(shown[wrong.numpy()], captions, title),
        RELIABILITY: figures.reliability(probabilities, labels, counted, unscaled),
    }


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
    """REPORT, of what is in the folder.

    Args:
        settings: What was trained, by label.
        images: What the network was judged on, such as "validation".
        trend: In Markdown.
        pictures: Whether those that lie there are of now.
    """

    def picture(name: str, text: str) -> list[str]:
        return [f"![{text}]({name})"] if pictures and (folder / name).exists() else []

    parts = [f"# {title}", f"```sh\n{command}\n```", markdown_table(("result", ""), result)]
    parts += ["## What was trained", markdown_table(("", ""), settings)]
    curves = picture(CURVES, "Loss and accuracy over epochs")
    if (folder / HISTORY).exists():
        parts += ["## Curves", *curves, f"The values of each epoch: [{HISTORY}]({HISTORY})."]
    if (folder / CLASSES).exists():
        with (folder / CLASSES).open(encoding="utf-8", newline="") as file:
            columns, *rows = csv.reader(file)
        shares = [[name, *(f"{float(share):.1%}" for share in scores), count] for name, *scores, count in rows]
        number = sum(int(row[-1]) for row in rows)
        parts += [
            "## Where it fails",
            f"On the {number:,} {images} images. Precision: of the images taken for this class, the share that are of "
            "it. Recall: of the images of this class, the share that are recognised. F1: their harmonic mean.",
            markdown_table([*columns[:-1], "images"], shares),
            f"As files: [{CLASSES}]({CLASSES}); [{COUNTS}]({COUNTS}), the confusion matrix, rows true.",
            *(part for name, text in PICTURES.items() for part in picture(name, f"{text}: {images} images")),
        ]
    if trend:
        parts += ["## Trend", trend.strip()]
    write_page(folder, *parts)


def write_page(folder: Path, *parts: str) -> None:
    """REPORT, of paragraphs."""
    write_bytes(folder / REPORT, ("\n\n".join(parts) + "\n").encode())
