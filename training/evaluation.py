"""Evaluate a checkpoint on labelled images: the test set, the validation images of its run, or a folder.

    found = evaluate(load_checkpoint(path), on="val", out=Path("out"))
    found.figures  # {"accuracy": 0.78, "loss": 0.65, "expected calibration error": 0.01}

All images are preprocessed as in the run, and classified in float32.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis import figures
from analysis import reports as findings
from analysis.charts import plot_heat_map
from analysis.reports import CORRUPTED, CORRUPTIONS
from cifar10.config import Data, Preprocessing
from cifar10.filters import CORRUPT, DEFAULT_SEVERITY, corrupt
from cifar10.pictures import find_images, label, read_or_reason
from cifar10.preprocessing import preprocess
from cifar_datamodule import CIFAR10DataModule, LabelledImages
from core.errors import SettingError, UsageError
from core.markdown import markdown_table
from core.shell import format_command
from models.checkpoint import Checkpoint
from models.classifier import Classifier, measure_accuracy
from training.checkpoints import read_checkpoint_config
from training.description import count_parameters, describe, describe_in_short

ALL = "all"  # every corruption at every severity
Kind: TypeAlias = tuple[str, int | None]  # corruption and severity
Accuracies: TypeAlias = dict[Kind, float]  # fractions
CLEAN: Kind = ("clean", None)
JPEG_75: Kind = ("JPEG quality 75", None)  # a common quality, between two severities
LABELS = "labels.npy"  # in a folder of CIFAR-10-C's format
SEVERITIES = 5  # one after the other in each of its files
SPLITS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Evaluation:
    """What a network was evaluated on, and what it reached.

    Attributes:
        images: Their number and what they are, such as "10,000 test images".
        figures: Fractions by name, and the loss.
    """

    images: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Labelled(LabelledImages):
    """N images to evaluate on; by their indices a corruption draws its noise."""

    name: str  # what they are
    files: tuple[str, ...] = ()  # of pictures, their paths

    @property
    def images(self) -> str:
        return f"{len(self.labels):,} {self.name} images"


def evaluate(
    checkpoint: Checkpoint,
    data_dir: Path | None = None,
    mirror: str | None = None,
    tta: bool = False,
    on: str = "test",
    out: Path | None = None,
    cache_dir: Path | None = None,
    **changes: Any,
) -> Evaluation:
    """Evaluate a checkpoint of `train` in float32, on images preprocessed as in its run.

    The loss is that of the network's logits; the calibration error (`figures.calibration_error`) is that of its
    probabilities, after division of the logits by the checkpoint's temperature.

    Args:
        data_dir, mirror, cache_dir: As in `Data`; None takes the defaults.
        tta: Test-time augmentation: average the logits of each image and of its horizontal flip.
        on: "test", the official test set; "val", the run's validation images; or a folder: of pictures in folders named
            by class, or of CIFAR-10-C's format, <corruption>.npy, uint8 [5 M, 32, 32, 3], five severities of M images
            each, and labels.npy [5 M].
        out: A folder without files, to which tables, pictures and a report are written.
        changes: Settings of `Preprocessing`, instead of those of the run; `corrupt` may be "all".

    Raises:
        UsageError: The checkpoint's weights are of another network, the changes contradict its run, the run had no
            validation images, the folder has what is no such image, or `out` has files.
        DataError: No source gives the data set.
    """
    if out and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UsageError(f"{out}: is there already; name a new folder")
    if checkpoint.is_of_run:
        read_checkpoint_config(checkpoint)  # which refuses settings that this version does not know
    demanded = "corrupt" in changes
    if every := changes.get("corrupt") == ALL:
        if "severity" in changes:
            raise SettingError("severity", changes["severity"], f"not with --corrupt {ALL}, which has each")
        changes |= {"corrupt": "none"}
    settings = checkpoint.preprocessing.changed(changes)
    # Unless it is demanded, only the run's own images are corrupted, as they were in the run.
    corrupted = demanded or on == "test" or (on == "val" and settings.corrupt_on == "both")
    corrupted = corrupted and settings.corrupt != "none"
    data = replace(checkpoint.data, data_dir=data_dir or Data.data_dir, mirror=mirror, cache_dir=cache_dir)
    classifier = Classifier(checkpoint, tta)
    if on not in SPLITS and (Path(on) / LABELS).exists():
        if every:
            raise SettingError("corrupt", ALL, f"the images of {on} are corrupted already")
        images = f"the images of {Path(on).resolve().name}"
        return _summarize(checkpoint, images, evaluate_archive(classifier, Path(on), settings, corrupted), out)
    labelled = load_split(checkpoint, data, on) if on in SPLITS else _load_pictures(Path(on), checkpoint.class_names)
    if every:
        found = evaluate_corruptions(classifier, labelled, settings)
        return _summarize(checkpoint, labelled.images, found, out)
    if on in SPLITS:  # by way of the cache
        datamodule = CIFAR10DataModule(**data.plain())
        datamodule.preprocessing, datamodule.whitening = settings, checkpoint.whitening
        pixels = datamodule.preprocess_split(on, corrupted)
    else:
        pixels = preprocess(labelled.originals, settings, checkpoint.whitening, corrupted)
    logits, labels = classifier.compute_logits(pixels), labelled.labels
    probabilities = (logits / checkpoint.temperature).softmax(1)
    result = {
        "accuracy": measure_accuracy(logits, labels),
        "loss": F.cross_entropy(logits, labels).item(),
        "expected calibration error": figures.calibration_error(probabilities, labels),
    }
    if out:
        _write_report(out, checkpoint, labelled, logits, result)
    severity = f", {settings.corrupt} of severity {settings.severity or DEFAULT_SEVERITY}" if corrupted else ""
    return Evaluation(labelled.images + severity, result)


def evaluate_corruptions(classifier: Classifier, images: Labelled, settings: Preprocessing) -> Accuracies:
    """Measure the accuracy on clean images, on JPEG files of quality 75, and on each corruption and severity."""
    levels: dict[Kind, tuple[str, float]] = {CLEAN: ("none", 0), JPEG_75: ("jpeg", 75)}
    for method, of_method in CORRUPT.items():
        levels |= {(method, severity): (method, level) for severity, level in enumerate(of_method, 1)}
    found = {}
    for kind, (method, level) in levels.items():
        pixels = images.originals
        if kind != CLEAN:
            pairs = zip(pixels, images.indices.tolist(), strict=True)
            pixels = np.stack([corrupt(method, level, image, index) for image, index in pairs])
        logits = classifier.compute_logits(preprocess(pixels, settings, classifier.whitening))
        found[kind] = measure_accuracy(logits, images.labels)
    return found


def evaluate_archive(classifier: Classifier, folder: Path, settings: Preprocessing, corrupted: bool) -> Accuracies:
    """Measure the accuracy on each corruption and severity of a folder in CIFAR-10-C's format; UsageError if it has
    another form.
    """
    arrays = {path: _read(path) for path in sorted(folder.glob("*.npy"))}
    labels = arrays.pop(folder / LABELS)
    count, classes = len(labels) // SEVERITIES, range(len(classifier.class_names))
    targets = torch.from_numpy(labels[:count].astype(np.int64))
    repeated = np.array_equal(labels, np.tile(targets, SEVERITIES))
    if not arrays or not count or not repeated or not set(targets.tolist()) <= set(classes):
        raise UsageError(f"{folder}: needs <corruption>.npy, and {LABELS} with the same labels {SEVERITIES} times")
    for file, images in arrays.items():
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise UsageError(f"{file}: is {images.dtype} {list(images.shape)}, not uint8 {[len(labels), 32, 32, 3]}")
    found: Accuracies = {}
    for file, images in arrays.items():
        for severity in range(SEVERITIES):
            pixels = np.array(images[severity * count : (severity + 1) * count])
            logits = classifier.compute_logits(preprocess(pixels, settings, classifier.whitening, corrupted))
            found[file.stem, severity + 1] = measure_accuracy(logits, targets)
    return found


def load_split(checkpoint: Checkpoint, data: Data, on: str) -> Labelled:
    """Read the test set, or the run's validation images; UsageError if it had none, DataError as of `evaluate`."""
    if on == "val" and not data.val_size:
        raise UsageError(f"{checkpoint.path}: its run had no validation images")
    datamodule = CIFAR10DataModule(**data.plain())
    datamodule.prepare_data()
    images = datamodule.load_split(on)
    return Labelled(images.originals, images.labels, images.indices, SPLITS[on])


def _load_pictures(folder: Path, class_names: Sequence[str]) -> Labelled:
    """Read the image files in and below a folder; each lies in a folder that is named by its class, in any case."""
    files = find_images([folder])[0] if folder.is_dir() else []
    if not files:
        raise UsageError(f"{folder}: neither val, test nor a folder of images")
    names = [name.lower() for name in class_names]
    pixels, labels = [], []
    for file in files:
        if label(file).lower() not in names:
            raise UsageError(f"{file}: its folder is not named by a class, which are {', '.join(class_names)}")
        labels.append(names.index(label(file).lower()))
        if isinstance(found := read_or_reason(file, "crop"), str):
            raise UsageError(f"{file}: {found}")
        pixels.append(found)
    paths = tuple(file.as_posix() for file in files)
    pooled = sorted({file.parent.parent.name for file in files})  # such as train and test
    name = f'"{folder.resolve().name}"' + (f" ({', '.join(pooled)})" if len(pooled) > 1 else "")
    return Labelled(np.stack(pixels), torch.tensor(labels), torch.arange(len(files)), name, paths)


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error


def _write_report(
    out: Path, checkpoint: Checkpoint, images: Labelled, logits: Tensor, result: Mapping[str, float]
) -> None:
    """Write tables, pictures and a report of one set of images."""
    out.mkdir(parents=True, exist_ok=True)
    names, labels = checkpoint.class_names, images.labels
    findings.write_tables(out, logits, labels, names)
    probabilities = (logits / checkpoint.temperature).softmax(1)
    findings.write_predictions(out, images.files or images.indices.tolist(), probabilities, labels, names)
    trained, short = {"network": checkpoint.network.network}, checkpoint.network.network
    if checkpoint.is_of_run:
        config = read_checkpoint_config(checkpoint)
        parameters = count_parameters(config)
        trained, short = describe(config, parameters), describe_in_short(config, parameters)
    about = f"{short}; {images.images}"
    drawn = findings.draw(logits, labels, images.originals, names, about, checkpoint.temperature)
    for file, figure in drawn.items():
        figures.save(out / file, figure)
    rows = [*in_percent(result).items(), ("temperature", f"{checkpoint.temperature:.3f}")]
    title = f"{checkpoint.path.name} on {images.name} images"
    findings.write_report(out, title, format_command("python", *sys.argv), trained.items(), rows, images.name)


def _summarize(checkpoint: Checkpoint, images: str, found: Accuracies, out: Path | None) -> Evaluation:
    """Return the accuracy of each corruption and severity, and their mean; with `out`, also CORRUPTIONS, a row each,
    CORRUPTED, the same as a picture, and a report.
    """
    by_severity = {kind: value for kind, value in found.items() if kind[1]}
    mean = float(np.mean(list(by_severity.values())))
    named = {f"{method} {severity or ''}".strip(): value for (method, severity), value in found.items()}
    evaluation = Evaluation(images, named | {"mean of corruptions": mean})
    if not out:
        return evaluation
    out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Any, ...]] = [(*kind, value) for kind, value in found.items()]
    findings.write_csv(out / CORRUPTIONS, ["corruption", "severity", "accuracy"], [*rows, ("mean", None, mean)])
    methods = list(dict.fromkeys(method for method, _ in by_severity))
    table = np.array(list(by_severity.values())).reshape(len(methods), SEVERITIES)
    table = np.column_stack([table, table.mean(1)])
    table = np.vstack([table, table.mean(0)])
    columns = [*(f"severity {severity}" for severity in range(1, SEVERITIES + 1)), "mean"]
    title = f"Accuracy of {checkpoint.path.name} on {images}"
    figures.save(out / CORRUPTED, plot_heat_map(100 * table, [*methods, "mean"], columns, f"{title}, %"))
    lines = [[name, *(f"{value:.1%}" for value in row)] for name, row in zip([*methods, "mean"], table, strict=True)]
    plain = [(method, f"{value:.1%}") for (method, severity), value in found.items() if not severity]
    findings.write_page(
        out,
        f"# {checkpoint.path.name} on {images}, corrupted",
        f"```sh\n{format_command('python', *sys.argv)}\n```",
        *([markdown_table(["images", "accuracy"], plain)] if plain else []),
        markdown_table(["accuracy", *columns], lines),
        f"![Accuracy by corruption and severity]({CORRUPTED})",
        f"As a file: [{CORRUPTIONS}]({CORRUPTIONS}).",
    )
    return evaluation


def in_percent(figures: Mapping[str, float]) -> dict[str, str]:
    """Return fractions as percent; the loss is none."""
    return {name: f"{value:.4f}" if name == "loss" else f"{value:.2%}" for name, value in figures.items()}
