"""Accuracy of checkpoints on their runs' validation images, exact and corrupted: for choosing without the test set.

    python -m studies.corruption CHECKPOINT [CHECKPOINT ...]

Prints a table, a column a checkpoint: accuracy in percent on exact images, as JPEG files of quality 75, a common one,
at each severity of each corruption, and the mean of these. The runs must have validation images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.page import table
from cifar10 import records
from cifar10.filters import CORRUPT, corrupt
from cifar10.preprocessing import preprocess
from cifar_datamodule import stratified_split
from models.checkpoint import load_checkpoint
from models.classifier import make_classifier

LEVELS = [("none", 0), ("jpeg", 75), *((method, level) for method, levels in CORRUPT.items() for level in levels)]


@torch.inference_mode()
def accuracies(path: Path, data_dir: Path) -> dict[str, float]:
    """Percent right of the validation images, by what damaged them."""
    checkpoint = load_checkpoint(path)
    classifier = make_classifier(checkpoint)
    images, labels = records.load(data_dir / records.FOLDER, train=True)
    data = checkpoint.data
    chosen = stratified_split(torch.from_numpy(labels), data.val_size, data.split_seed)[1].numpy()
    pixels = images[chosen].transpose(0, 2, 3, 1)
    found = {}
    for method, level in LEVELS:
        damaged = pixels
        if method != "none":
            damaged = np.stack([corrupt(method, level, *image) for image in zip(pixels, chosen, strict=True)])
        inputs = preprocess(damaged.transpose(0, 3, 1, 2), checkpoint.preprocessing, checkpoint.whitening)
        answers = torch.cat([classifier.logits(part).argmax(1) for part in torch.from_numpy(inputs).split(500)])
        found[f"{method} {level:g}"] = (answers.numpy() == labels[chosen]).mean() * 100
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of CIFAR-10")
    options = parser.parse_args(arguments)
    found = pd.DataFrame({str(path): accuracies(path, options.data_dir) for path in options.checkpoints})
    found.loc["mean of the corruptions"] = found.iloc[2:].mean()
    rows = [[str(name), *(f"{value:.1f}" for value in row)] for name, row in found.iterrows()]
    print(table(["images, %", *found], rows))


if __name__ == "__main__":
    main(sys.argv[1:])
