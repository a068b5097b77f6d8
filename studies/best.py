"""How good the networks of recipes/best.yaml are on the test set: clean, as JPEG, corrupted; each class; confidence.

    python -m studies.best logs/best

Reads finished runs that differ in their seed alone, and writes into results/best/: test.md, curve.png of all runs, and
failures.png, three mistakes in each class of the first run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from analysis import figures
from benchmarks.page import header, table
from cifar10 import records
from cifar10.download import prepare
from cifar10.filters import CORRUPT
from core.cli import exit_status
from experiments.runs import Run, read_runs
from experiments.tables import save, write
from models.checkpoint import load_checkpoint
from studies.corruption import CLEAN, SEVERITIES, Kind, logits_by_kind

JPEG = [Kind("jpeg", quality) for quality in (95, 85, 75, 60, 40)]
KINDS = [CLEAN, *JPEG, *(kind for kind in SEVERITIES if kind not in JPEG)]
FAILURES = 3  # shown of each class


def page(
    plain: Sequence[Mapping[Kind, Tensor]],
    flipped: Sequence[Tensor],
    temperatures: Sequence[float],
    labels: Tensor,
    seeds: Sequence[int],
) -> str:
    """The tables, in Markdown, of each run's logits, without and with test-time augmentation, and its temperature."""

    def accuracy(logits: Tensor) -> float:
        return (logits.argmax(1) == labels).double().mean().item() * 100

    def error(logits: Tensor, temperature: float = 1) -> float:
        return figures.calibration_error((logits / temperature).softmax(1), labels) * 100

    def sure(logits: Tensor, temperature: float) -> float:
        return (logits / temperature).softmax(1).amax(1).mean().item() * 100

    heads = ["", *(f"seed {seed}" for seed in seeds), "mean ± standard deviation"]
    runs = list(zip(plain, temperatures, strict=True))
    rows = {"test accuracy, one forward pass, %": [accuracy(run[CLEAN]) for run in plain]}
    rows["test accuracy with test-time augmentation, %"] = [accuracy(logits) for logits in flipped]
    for kind in JPEG:
        rows[f"of JPEG files, quality {kind.level:g}, %"] = [accuracy(run[kind]) for run in plain]
    rows["mean of corruptions and severities, %"] = [mean(accuracy(run[kind]) for kind in SEVERITIES) for run in plain]
    confidence = {
        "temperature": list(temperatures),
        "mean confidence, clean images, %": [sure(run[CLEAN], t) for run, t in runs],
        "expected calibration error, clean images": [error(run[CLEAN], t) for run, t in runs],
        "the same without temperature": [error(run[CLEAN]) for run, _ in runs],
        "expected calibration error, mean of corruptions": [
            mean(error(run[kind], t) for kind in SEVERITIES) for run, t in runs
        ],
        "the same mean without temperature": [mean(error(run[kind]) for kind in SEVERITIES) for run, _ in runs],
    }
    corrupted = []
    for method in dict.fromkeys(kind.method for kind in SEVERITIES):
        values = [mean(accuracy(run[Kind(method, level)]) for run in plain) for level in CORRUPT[method]]
        corrupted.append([method, *(f"{value:.1f}" for value in (*values, mean(values)))])

    classes = []
    matrices = [multiclass_confusion_matrix(run[CLEAN].argmax(1), labels, 10) for run in plain]
    for index, name in enumerate(records.CLASS_NAMES):
        shares = [(matrix[index, index] / matrix[index].sum()).item() * 100 for matrix in matrices]
        counts = torch.stack(matrices).sum(0)[index]
        counts[index] = 0
        taken_for = records.CLASS_NAMES[int(counts.argmax())]
        classes.append([name, *(f"{share:.1f}" for share in shares), summary(shares), taken_for])
    return "\n\n".join(
        [
            table(heads, lines(rows)),
            "Accuracy by corruption and severity, %, mean of the runs:",
            table(["", *(f"severity {number}" for number in range(1, 6)), "mean"], corrupted),
            "Calibration: the expected error over 15 bins, percentage points.",
            table(heads, lines(confidence)),
            "By class:",
            table(["accuracy, %", *heads[1:], "most often taken for"], classes),
        ]
    )


def lines(rows: Mapping[str, Sequence[float]]) -> list[list[str]]:
    return [[title, *(f"{value:.2f}" for value in values), summary(values)] for title, values in rows.items()]


def summary(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def draw(runs: Sequence[Run]) -> Figure:
    """Accuracy over epochs, and where crop and cutout end."""
    shown = {"training": "train/acc", "validation": f"{runs[0].config.select_on}/acc"}
    groups = {name: [run.curves()[key] for run in runs if key in run.curves()] for name, key in shown.items()}
    figure = figures.comparison({"": {name: group for name, group in groups.items() if group}}, "accuracy, %")
    end = runs[0].config.epochs - runs[0].config.plain_epochs
    figure.axes[0].axvline(end, color="black", ls=":")
    figure.axes[0].annotate("crop and cutout end", (end, 0.02), xycoords=("data", "axes fraction"), ha="right")
    return figure


def failures(logits: Tensor, temperature: float, labels: Tensor, images: np.ndarray) -> Figure:
    """The most confident mistakes in each class."""
    confidence, said = (logits / temperature).softmax(1).max(1)
    order = confidence.argsort(descending=True, stable=True)
    wrong = order[said[order] != labels[order]]
    chosen = torch.cat([wrong[labels[wrong] == label][:FAILURES] for label in range(10)])
    names = records.CLASS_NAMES
    captions = [f"{names[labels[i]]}:\n{names[said[i]]}\n{confidence[i]:.0%}" for i in chosen.tolist()]
    return figures.sheet(images[chosen.numpy()], captions, "The most confident mistakes in each class", 2 * FAILURES)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="log folder of the runs")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("results/best"))
    options = parser.parse_args(arguments)

    runs = sorted((run for run in read_runs(options.folder) if run.result), key=lambda run: run.config.seed)
    if not runs:
        parser.error(f"{options.folder}: no finished run")
    prepare(options.data_dir)
    checkpoints = [load_checkpoint(Path(run.result["checkpoint"])) for run in runs if run.result]
    images, classes = records.load(options.data_dir / records.FOLDER, train=False)
    images, labels = images.transpose(0, 2, 3, 1), torch.from_numpy(classes)
    indices = np.arange(len(images))
    plain = [dict(logits_by_kind(each, images, indices, KINDS)) for each in checkpoints]
    flipped = [dict(logits_by_kind(each, images, indices, [CLEAN], tta=True))[CLEAN] for each in checkpoints]
    temperatures = [checkpoint.temperature for checkpoint in checkpoints]
    options.out.mkdir(parents=True, exist_ok=True)
    text = header("The best recipe on the test set", "studies.best", arguments, len(runs), "runs")
    text += "\n\n" + page(plain, flipped, temperatures, labels, [run.config.seed for run in runs]) + "\n"
    write(options.out / "test.md", text)
    save(draw(runs), options.out / "curve.png")
    save(failures(plain[0][CLEAN], temperatures[0], labels, images), options.out / "failures.png")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
