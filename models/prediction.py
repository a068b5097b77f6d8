"""Predictions for picture files, which are read in threads and classified in batches. Light to import."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from cifar10.pictures import read_or_reason
from cifar10.preprocessing import preprocess
from core.cores import cores

if TYPE_CHECKING:
    from models.classifier import Classifier

RELEASED = Path(__file__).parent.parent / "checkpoints" / "lenet5-cifar10.ckpt"  # the weights of the project
BATCH_SIZE = 250  # files that are in memory together
THREADS = 4  # decode photos in parallel; more do not help with small files, which need the interpreter


class Prediction(NamedTuple):
    """The three most probable classes of a file, most probable first, with their probabilities."""

    file: Path
    ranking: list[tuple[str, float]]


def predict_files(classifier: Classifier, files: Sequence[Path], fit: str) -> tuple[list[Prediction], dict[Path, str]]:
    """Classify the files that can be read, in their order, and return for each of the others the reason why not."""
    warnings.filterwarnings("ignore", module="PIL")  # damaged metadata, which the pixels do not need
    predictions: list[Prediction] = []
    failed: dict[Path, str] = {}
    with (
        ThreadPoolExecutor(min(THREADS, cores())) as pool,
        tqdm(total=len(files), unit="image", leave=False, disable=None) as progress,
    ):
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            read = dict(zip(batch, pool.map(partial(read_or_reason, fit=fit), batch), strict=True))
            progress.update(len(batch))
            failed |= {file: found for file, found in read.items() if isinstance(found, str)}
            pixels = {file: found for file, found in read.items() if not isinstance(found, str)}
            if pixels:
                predictions += map(Prediction, pixels, rank_classes(classifier, np.stack(list(pixels.values()))))
    return predictions, failed


def find_mistakes(classifier: Classifier, pixels: np.ndarray, label: int) -> list[int]:
    """Return which images of one class, uint8 [N, 32, 32, 3], are taken for another, the most confident first."""
    images = preprocess(pixels, classifier.preprocessing, classifier.whitening)
    confidence, labels = (classifier.compute_logits(images) / classifier.temperature).softmax(1).max(1)
    order = confidence.argsort(descending=True, stable=True)
    return order[labels[order] != label].tolist()


def rank_classes(classifier: Classifier, pixels: np.ndarray) -> list[list[tuple[str, float]]]:
    """Return the ranking, as in `Prediction`, of each image, uint8 [N, 32, 32, 3]."""
    images = preprocess(pixels, classifier.preprocessing, classifier.whitening)
    logits = classifier.compute_logits(images)
    values, labels = (logits / classifier.temperature).softmax(1).topk(3)
    names = [[classifier.class_names[label] for label in row] for row in labels.tolist()]
    return [list(zip(*columns, strict=True)) for columns in zip(names, values.tolist(), strict=True)]
