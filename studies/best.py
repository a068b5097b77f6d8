"""How good the networks of recipes/best.yaml are: accuracy, each class, calibration, on the test set.

    python -m studies.best logs/best

Reads finished runs that differ in their seed alone, and writes into results/best/: test.md, and curve.png of all runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from benchmarks.page import header, table
from cifar10 import records
from cifar10.preprocessing import preprocess
from experiments.runs import Run, read_runs
from experiments.tables import save, write
from models.classifier import load_classifier
from training import figures


@torch.inference_mode()
def probabilities(checkpoint: Path, data_dir: Path, tta: bool) -> Tensor:
    """Of the classes, float32 [10,000, 10], of the test images."""
    classifier = load_classifier(checkpoint, tta)
    images, _ = records.load(data_dir / records.FOLDER, train=False)
    pixels = torch.from_numpy(preprocess(images, classifier.preprocessing, classifier.whitening))
    return torch.cat([classifier(batch) for batch in pixels.split(250)])


def page(plain: Sequence[Tensor], augmented: Sequence[Tensor], labels: Tensor, seeds: Sequence[int]) -> str:
    """The tables, in Markdown, of each run's probabilities without and with test-time augmentation."""

    def accuracy(answers: Tensor) -> float:
        return (answers.argmax(1) == labels).double().mean().item() * 100

    def calibration(answers: Tensor) -> float:
        return figures.calibration_error(answers, labels) * 100

    rows = []
    for title, measure, runs in (
        ("test accuracy, one forward pass, %", accuracy, plain),
        ("test accuracy with test-time augmentation, %", accuracy, augmented),
        ("expected calibration error, 15 bins, points", calibration, plain),
        ("mean confidence, %", lambda answers: answers.amax(1).mean().item() * 100, plain),
    ):
        values = [measure(answers) for answers in runs]
        rows.append([title, *(f"{value:.2f}" for value in values), summary(values)])
    heads = ["", *(f"seed {seed}" for seed in seeds), "mean ± standard deviation"]

    classes = []
    matrices = [multiclass_confusion_matrix(answers.argmax(1), labels, 10) for answers in plain]
    for index, name in enumerate(records.CLASS_NAMES):
        shares = [(matrix[index, index] / matrix[index].sum()).item() * 100 for matrix in matrices]
        counts = torch.stack(matrices).sum(0)[index]
        counts[index] = 0
        taken_for = records.CLASS_NAMES[int(counts.argmax())]
        classes.append([name, *(f"{share:.1f}" for share in shares), summary(shares), taken_for])
    return "\n\n".join([table(heads, rows), table(["accuracy, %", *heads[1:], "most often taken for"], classes)])


def summary(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def draw(runs: Sequence[Run]) -> Figure:
    """Training accuracy over epochs, with val_size 0 there is no other, and where crop and cutout end."""
    groups = {f"seed {run.config.seed}": [run.curves()["train/acc"]] for run in runs}
    figure = figures.comparison({"": groups}, "training accuracy, %")
    end = runs[0].config.epochs - runs[0].config.plain_epochs
    figure.axes[0].axvline(end, color="black", ls=":")
    figure.axes[0].annotate("crop and cutout end", (end, 0.02), xycoords=("data", "axes fraction"), ha="right")
    return figure


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="log folder of the runs")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("results/best"))
    options = parser.parse_args(arguments)

    runs = sorted((run for run in read_runs(options.folder) if run.result), key=lambda run: run.config.seed)
    if not runs:
        parser.error(f"{options.folder}: no finished run")
    files = [Path(run.result["checkpoint"]) for run in runs if run.result]
    plain, augmented = ([probabilities(file, options.data_dir, tta) for file in files] for tta in (False, True))
    labels = torch.from_numpy(records.load(options.data_dir / records.FOLDER, train=False)[1])
    options.out.mkdir(parents=True, exist_ok=True)
    text = header("The best recipe on the test set", "studies.best", arguments, len(runs), "runs")
    text += "\n\n" + page(plain, augmented, labels, [run.config.seed for run in runs]) + "\n"
    write(options.out / "test.md", text)
    save(draw(runs), options.out / "curve.png")


if __name__ == "__main__":
    main(sys.argv[1:])
