"""Accuracy of a sweep, such as `corruption`, on its validation images, clean and corrupted, without the test set.

    python sweep.py --config recipes/sweeps/corruption.yaml
    python report.py logs/corruption
    python -m studies.corruption logs/corruption

Writes into results/corruption/, or another folder: corrupted.csv, a row a run and kind of image; corrupted.md, the
means over seeds. The kinds are clean images, JPEG files of quality 75, a common one, and each severity of each
corruption of CIFAR-10-C that `--corrupt` knows. Runs that corrupted.csv has are not evaluated again.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.page import header, table
from cifar10 import records
from cifar10.download import prepare
from cifar10.filters import CORRUPT, corrupt
from cifar10.preprocessing import preprocess
from cifar_datamodule import stratified_split
from core.cli import exit_status
from experiments.runs import read_runs
from experiments.tables import write
from models.checkpoint import Checkpoint, load_checkpoint
from models.classifier import make_classifier
from training.evaluation import classify


class Kind(NamedTuple):
    """Images as they are, or each corrupted by a method and a level of CORRUPT."""

    method: str
    level: float

    def __str__(self) -> str:
        if self.method == "none":
            return "clean"
        levels = list(CORRUPT[self.method])
        if self.level in levels:
            return f"{self.method} {levels.index(self.level) + 1}"
        return f"JPEG files, quality {self.level:g}"


CLEAN = Kind("none", 0)
SEVERITIES = [Kind(method, level) for method, levels in CORRUPT.items() for level in levels]
GROUP = ["network", "optimizer", "normalize", "random_corruption"]  # what tells runs apart, but for the seed


def logits_by_kind(
    checkpoint: Checkpoint, images: np.ndarray, indices: np.ndarray, kinds: Iterable[Kind], tta: bool = False
) -> Iterator[tuple[Kind, Tensor]]:
    """Logits, float32 [N, 10], by kind of image: of images as they are, uint8 [N, 32, 32, 3].

    `indices`, int64 [N], are theirs in the data set; with `tta`, test-time augmentation.
    """
    classifier = make_classifier(checkpoint, tta)
    for kind in kinds:
        corrupted = images
        if kind != CLEAN:
            corrupted = np.stack([corrupt(*kind, *image) for image in zip(images, indices, strict=True)])
        inputs = preprocess(corrupted.transpose(0, 3, 1, 2), checkpoint.preprocessing, checkpoint.whitening)
        yield kind, classify(classifier, inputs)


def accuracies(path: Path, data_dir: Path) -> dict[str, float]:
    """Percent right of the validation images of a checkpoint's run, by kind of image."""
    checkpoint = load_checkpoint(path)
    images, labels = records.load(data_dir / records.FOLDER, train=True)
    data = checkpoint.data
    chosen = stratified_split(torch.from_numpy(labels), data.val_size, data.split_seed)[1].numpy()
    pixels, kinds = images[chosen].transpose(0, 2, 3, 1), [CLEAN, Kind("jpeg", 75), *SEVERITIES]
    answers = logits_by_kind(checkpoint, pixels, chosen, kinds)
    return {str(kind): (logits.argmax(1).numpy() == labels[chosen]).mean() * 100 for kind, logits in answers}


def summary(rows: pd.DataFrame) -> str:
    """The table in Markdown: mean ± standard deviation over seeds, a row a kind of image, a column a setting."""
    wide = rows.pivot_table(index="image", columns=[*GROUP, "seed"], values="accuracy", sort=False)
    wide.loc["mean of all severities"] = wide.loc[list(map(str, SEVERITIES))].mean()
    columns = wide.T.groupby(level=GROUP, sort=False)
    mean, deviation = columns.mean().T, columns.std().T
    heads = [f"{', '.join(names)}, {share:g}" for *names, share in mean]
    lines = [
        [image, *(spread(*each) for each in zip(mean.loc[image], deviation.loc[image], strict=True))]
        for image in mean.index
    ]
    return table(["images", *heads], lines)


def spread(mean: float, deviation: float) -> str:
    """Of one seed there is no deviation."""
    return f"{mean:.1f}" if math.isnan(deviation) else f"{mean:.1f} ± {deviation:.1f}"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="log folder of the sweep")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("results/corruption"))
    options = parser.parse_args(arguments)
    prepare(options.data_dir)
    csv = options.out / "corrupted.csv"
    rows = pd.read_csv(csv) if csv.exists() else pd.DataFrame(columns=[*GROUP, "seed", "image", "accuracy"])
    done = {tuple(key) for key in rows[[*GROUP, "seed"]].itertuples(index=False)}
    options.out.mkdir(parents=True, exist_ok=True)
    for run in sorted(read_runs(options.folder), key=lambda run: run.folder):
        values = run.config.plain()
        key = tuple(values[name] for name in (*GROUP, "seed"))
        if run.result and run.config.val_size and key not in done:
            found = accuracies(Path(run.result["checkpoint"]), options.data_dir)
            new = [(*key, image, round(accuracy, 2)) for image, accuracy in found.items()]
            rows = pd.concat([rows if len(rows) else None, pd.DataFrame(new, columns=rows.columns)], ignore_index=True)
            write(csv, rows.to_csv(index=False, lineterminator="\n"))
    if rows.empty:
        parser.error(f"{options.folder}: no finished run with validation images")
    count = len(rows[[*GROUP, "seed"]].drop_duplicates())
    text = header("Corrupted validation images", "studies.corruption", arguments, count, "runs")
    text += "\n\nAccuracy in percent, mean ± standard deviation over seeds, by network, optimizer, normalization and\n"
    text += f"share of corrupted training images.\n\n{summary(rows)}\n"
    write(options.out / "corrupted.md", text)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
