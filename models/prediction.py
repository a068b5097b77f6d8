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
THREADS = 4  # decode photos in parallel; more do not help with small files, which need the interpreter


class Prediction(NamedTuple):
    """The three most probable classes of a file, most probable first, with their probabilities."""

    file: Path
    ranking: list[tuple[str, float]]


def predict_files(classifier: Classifier, files: Sequence[Path], fit: str) -> tuple[list[Prediction], dict[Path, str]]:
    """Classify the files that can be read, in their order, and return for each of the others the reason why not."""
    warnings.filterwarnings("ignore", module="PIL")  # damaged metadata, which the pixels do not need
    with ThreadPoolExecutor(min(THREADS, cores())) as pool:
        read = tqdm(
            pool.map(partial(read_or_reason, fit=fit), files), total=len(files), unit="image", leave=False, disable=None
        )
        found = dict(zip(files, read, strict=True))
    failed = {file: reason for file, reason in found.items() if isinstance(reason, str)}
    pixels = {file: image for file, image in found.items() if not isinstance(image, str)}
    rankings = rank_classes(classifier, np.stack(list(pixels.values()))) if pixels else []
    return [Prediction(file, ranking) for file, ranking in zip(pixels, rankings, strict=True)], failed


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
