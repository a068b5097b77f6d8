"""A checkpoint on labelled images: the test set, the images that validated its run, or a folder of someone's own.

    values = evaluate(load_checkpoint(path), on="val", out=Path("out"))  # {"val/loss": ..., "val/acc": ...}

All images are preprocessed as in the run, and classified in float32.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis import figures
from analysis import reports as findings
from analysis.reports import CORRUPTED, CORRUPTIONS
from cifar10 import download, records
from cifar10.config import Data, Preprocessing
from cifar10.pictures import find_images, label, read_or_reason
from cifar10.preprocessing import preprocess, preprocess_lazily
from cifar_datamodule import EVAL_BATCH_SIZE, stratified_split
from core.cache import LazyArray
from core.errors import UsageError
from core.shell import command_line
from lenet_module import MeanLoss
from models.checkpoint import Checkpoint
from models.classifier import Classifier, make_classifier
from training.checkpoints import config_of

LABELS = "labels.npy"  # in a folder of CIFAR-10-C's format
SEVERITIES = 5  # one after the other in each of its files
SPLITS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Labelled:
    """N images to evaluate on."""

    pixels: np.ndarray  # uint8 [N, 3, 32, 32], preprocessed
    shown: np.ndarray  # uint8 [N, 32, 32, 3], as they were
    labels: Tensor  # int64 [N]


def evaluate(
    checkpoint: Checkpoint,
    data_dir: Path | None = None,
    mirror: str | None = None,
    tta: bool = False,
    on: str = "test",
    out: Path | None = None,
    cache_dir: Path | None = None,
    **changes: Any,
) -> dict[str, float]:
    """Evaluate a checkpoint of `train` in float32, on images preprocessed as in its run.

    The loss is that of the network's own logits; the calibration error is that of the probabilities, which the
    checkpoint's temperature has a part in.

    Args:
        data_dir, mirror, cache_dir: As in `Data`; None takes the defaults.
        tta: Test-time augmentation: whether each image is classified together with its horizontal flip.
        on: "test", the official test set; "val", the run's validation images; or a folder: of pictures in folders named
            by class, or of CIFAR-10-C's format, <corruption>.npy, uint8 [5 M, 32, 32, 3], five severities of M images
            each, and labels.npy [5 M].
        out: A folder without files, to which tables, pictures and a report are written.
        changes: Settings of `Preprocessing`, instead of those of the run.

    Returns:
        The mean loss, the accuracy and the expected calibration error, fractions: `test/loss`, `test/acc` and
        `test/ece`, or `val/...`; of a folder `loss`, `acc` and `ece`, or the accuracy of each corruption and severity,
        and their mean.

    Raises:
        UsageError: The checkpoint's weights are of another network, the changes contradict its run, the run had no
            validation images, the folder has what is no such image, or `out` has files.
        DataError: No source gives the data set.
    """
    if out and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: is there already; name a new folder")
    config = config_of(checkpoint)
    classifier, settings = make_classifier(checkpoint, tta), checkpoint.preprocessing.changed(changes)
    corrupted = "corrupt" in changes  # a folder of images is corrupted only if that is asked for
    if on in SPLITS:
        data = replace(config, data_dir=data_dir or Data.data_dir, mirror=mirror, cache_dir=cache_dir)
        images = _official(checkpoint, settings, data, on, corrupted)
    elif (Path(on) / LABELS).exists():
        found = dict(_corruptions(classifier, Path(on), settings, corrupted))
        if out:
            _write_corruptions(out, checkpoint, Path(on), found)
        named = {f"{name} {severity}": value for (name, severity), value in found.items()}
        return named | {"mean": float(np.mean(list(found.values())))}
    else:
        images = _pictures(Path(on), checkpoint, settings, corrupted)
    logits = classify(classifier, images.pixels)
    loss = MeanLoss()
    for some, labels in zip(logits.split(EVAL_BATCH_SIZE), images.labels.split(EVAL_BATCH_SIZE), strict=True):
        loss.update(F.cross_entropy(some, labels), len(labels))
    acc = (logits.argmax(1) == images.labels).float().mean()
    temperature = checkpoint.temperature
    ece = figures.calibration_error((logits / temperature).softmax(1), images.labels)
    if out:
        name = SPLITS.get(on, f'"{Path(on).resolve().name}"')
        out.mkdir(parents=True, exist_ok=True)
        findings.write_tables(out, logits, images.labels, checkpoint.class_names)
        names = checkpoint.class_names
        for file, figure in findings.draw(logits, images.labels, images.shown, names, name, temperature).items():
            findings.save(out / file, figure)
        result = [("accuracy", f"{acc:.2%}"), ("loss", f"{loss.compute():.4f}")]
        result += [("expected calibration error", f"{ece:.2%}"), ("temperature", f"{temperature:.3f}")]
        findings.write_report(
            out, f"{checkpoint.path.name} on {name} images", command_line("python", *sys.argv), result, name
        )
    prefix = f"{on}/" if on in SPLITS else ""
    return {f"{prefix}loss": loss.compute().item(), f"{prefix}acc": acc.item(), f"{prefix}ece": ece}


@torch.inference_mode()
def classify(classifier: Classifier, pixels: np.ndarray) -> Tensor:
    """Preprocessed images, uint8 [N, 3, 32, 32], to logits, float32 [N, C]."""
    return torch.cat([classifier.logits(batch) for batch in torch.from_numpy(pixels).split(EVAL_BATCH_SIZE)])


def _official(checkpoint: Checkpoint, settings: Preprocessing, data: Data, on: str, corrupted: bool) -> Labelled:
    """The test set, or the run's validation images: corrupted if its training images were, or if `corrupted`."""
    train = on == "val"
    if train and not data.val_size:
        raise UsageError(f"{checkpoint.path}: its run had no validation images")
    download.prepare(data.data_dir, data.mirror)
    folder = data.data_dir / records.FOLDER
    labels = torch.from_numpy(records.load_labels(folder, train))
    chosen = stratified_split(labels, data.val_size, data.split_seed)[1] if train else torch.arange(len(labels))
    images = LazyArray(records.identity(train), (len(labels), 3, 32, 32), lambda: records.load(folder, train)[0])
    corrupted = corrupted or not train or settings.corrupt_on == "both"
    pixels = preprocess_lazily(images, settings, checkpoint.whitening, corrupted, data.cache_folder).array
    if train:
        pixels = pixels.transpose(0, 2, 3, 1)[chosen.numpy()].transpose(0, 3, 1, 2)
    shown = records.pick(folder, train, chosen.numpy()).transpose(0, 2, 3, 1)
    return Labelled(pixels, shown, labels[chosen])


def _pictures(folder: Path, checkpoint: Checkpoint, settings: Preprocessing, corrupted: bool) -> Labelled:
    """The image files in and below a folder; each lies in a folder that is named by its class."""
    names, files = checkpoint.class_names, find_images([folder])[0] if folder.is_dir() else []
    if not files:
        raise UsageError(f"{folder}: neither val, test nor a folder of images")
    for file in files:
        if label(file) not in names:
            raise UsageError(f"{file}: its folder is not named by a class, which are {', '.join(names)}")
    read = []
    for file in files:
        if isinstance(found := read_or_reason(file, "crop"), str):
            raise UsageError(f"{file}: {found}")
        read.append(found)
    shown = np.stack(read)
    pixels = preprocess(shown.transpose(0, 3, 1, 2), settings, checkpoint.whitening, corrupted)
    return Labelled(pixels, shown, torch.tensor([names.index(label(file)) for file in files]))


def _corruptions(
    classifier: Classifier, folder: Path, settings: Preprocessing, corrupted: bool
) -> Iterator[tuple[tuple[str, int], float]]:
    """Accuracy by corruption and severity of a folder in CIFAR-10-C's format."""
    labels = _read(folder / LABELS, 1)
    count = len(labels) // SEVERITIES
    if not labels.size or len(labels) % SEVERITIES or labels.min() < 0 or labels.max() >= len(classifier.class_names):
        raise UsageError(f"{folder / LABELS}: no labels of {SEVERITIES} severities")
    files = [file for file in sorted(folder.glob("*.npy")) if file.name != LABELS]
    arrays = {file: _read(file, 4) for file in files}
    for file, images in arrays.items():
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise UsageError(f"{file}: is {images.dtype} {list(images.shape)}, not uint8 {[len(labels), 32, 32, 3]}")
    if not files:
        raise UsageError(f"{folder}: has no <corruption>.npy beside {LABELS}")
    for file, images in arrays.items():
        for severity in range(SEVERITIES):
            part = slice(severity * count, (severity + 1) * count)
            pixels = np.ascontiguousarray(images[part]).transpose(0, 3, 1, 2)
            pixels = preprocess(pixels, settings, classifier.whitening, corrupted)
            right = classify(classifier, pixels).argmax(1).numpy() == labels[part]
            yield (file.stem, severity + 1), float(right.mean())


def _read(path: Path, dimensions: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    if array.ndim != dimensions or array.dtype.kind not in "ui":
        raise UsageError(f"{path}: is {array.dtype} {list(array.shape)}, not whole numbers of {dimensions} dimensions")
    return array


def _write_corruptions(
    out: Path, checkpoint: Checkpoint, folder: Path, accuracies: Mapping[tuple[str, int], float]
) -> None:
    """CORRUPTIONS, a row a corruption and severity; CORRUPTED, the same as a picture; and a report."""
    out.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for name, _ in accuracies))
    table = np.array(list(accuracies.values())).reshape(len(names), SEVERITIES)
    rows: list[tuple[Any, ...]] = [(*key, value) for key, value in accuracies.items()]
    rows.append(("mean", None, float(table.mean())))
    findings.write_csv(out / CORRUPTIONS, ["corruption", "severity", "accuracy"], rows)
    table = np.column_stack([table, table.mean(1)])
    table = np.vstack([table, table.mean(0)])
    columns = [*(f"severity {severity}" for severity in range(1, SEVERITIES + 1)), "mean"]
    figure = figures.accuracies(table, [*names, "mean"], columns, f"Accuracy on the images of {folder.name}")
    findings.save(out / CORRUPTED, figure)
    lines = [[name, *(f"{value:.1%}" for value in row)] for name, row in zip([*names, "mean"], table, strict=True)]
    findings.write_page(
        out,
        f"# {checkpoint.path.name} on {folder.name}",
        f"```sh\n{command_line('python', *sys.argv)}\n```",
        findings.in_markdown(["accuracy", *columns], lines),
        f"![Accuracy by corruption and severity]({CORRUPTED})",
        f"As a file: [{CORRUPTIONS}]({CORRUPTIONS}).",
    )
