"""What is in a picture: image files to CIFAR-10's ten classes, from a checkpoint alone.

python predict.py photo.jpg folder/
python predict.py photo.jpg --json --checkpoint checkpoints/adam-lr0.002-bs128-seed0/version_0
python predict.py photos_by_class/ --labels-from-folders --tta
python predict.py --export model.onnx
"""

from __future__ import annotations

import csv
import json
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from cifar10.errors import UsageError
from cifar10.preprocessing import preprocess
from cifar10.storage import write_bytes
from training.cli import Parser, exit_status

if TYPE_CHECKING:
    from models.classifier import Classifier

CHECKPOINT = Path(__file__).parent / "checkpoints" / "lenet5-cifar10.ckpt"
SIZE = (32, 32)
BACKGROUND = "white"  # behind transparent pixels, as a browser shows them, and around padded images
DRAFT = (256, 256)  # the least a JPEG is decoded to: eight times SIZE, so that the filter still decides the pixels
FITS = {  # to SIZE; Pillow's bicubic filter widens with the reduction, so it antialiases
    "crop": lambda image: ImageOps.fit(image, SIZE, Image.Resampling.BICUBIC),
    "pad": lambda image: ImageOps.pad(image, SIZE, Image.Resampling.BICUBIC, BACKGROUND),
    "stretch": lambda image: image.resize(SIZE, Image.Resampling.BICUBIC),
}
BATCH_SIZE = 250
THREADS = min(4, os.cpu_count() or 1)  # Pillow decodes photos side by side; small files only queue for the interpreter


class Answer(NamedTuple):
    """`ranking`: the three most probable classes, with their probabilities, the first first."""

    file: Path
    ranking: list[tuple[str, float]]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and those in its folders, at any depth, whose suffix Pillow knows; sorted, each once."""
    files = {path for path in paths if not path.is_dir()}
    for folder in set(paths) - files:
        known = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
        files |= {path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file()}
    return sorted(files)


def read_image(path: Path, fit: str = "crop") -> np.ndarray:
    """An image file, its first frame if there are several, as uint8 [32, 32, 3]; one of 32 x 32 pixels as it is.

    Args:
        path: Of any format that Pillow reads.
        fit: How it becomes a square: a name of `FITS`.

    Raises:
        Exception: Whatever Pillow raises for a damaged file.
    """
    with Image.open(path) as file:
        if file.format == "EPS":  # Pillow would have Ghostscript run it
            raise ValueError("EPS is a program, and none is run")
        file.draft(None, DRAFT)
        file.load()
        image: Image.Image = file
        with suppress(Exception):  # damaged EXIF tells no orientation
            image = ImageOps.exif_transpose(file)
        if image.mode.startswith(("I", "F")):
            image = eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
        return np.asarray(FITS[fit](image.convert("RGB")))


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits a pixel, scaled to 8; Pillow's own conversion would clip it at 255.

    Whole numbers are taken to reach 65535, floats to reach 1, 255 or 65535, the least of these that none is above.
    """
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float32))
    white = min((top for top in (1, 255, 65535) if top >= pixels.max()), default=pixels.max())
    white = white if image.mode == "F" else max(white, 65535)
    return Image.fromarray((pixels.clip(0) * (255 / white)).round().astype(np.uint8))


def read_or_reason(path: Path, fit: str) -> np.ndarray | str:
    """What `read_image` gives, or why it gives nothing."""
    try:
        return read_image(path, fit)
    except UnidentifiedImageError:
        return "no image that Pillow knows, or damaged"
    except Exception as error:  # Pillow's many decoders raise whatever they trip over
        reason = error.strerror if isinstance(error, OSError) else None
        return reason or f"not decoded: {str(error) or type(error).__name__}"


def classify(classifier: Classifier, files: Sequence[Path], fit: str) -> tuple[list[Answer], dict[Path, str]]:
    """Answers for the files that can be read, in their order, and for the others the reason why not."""
    warnings.filterwarnings("ignore", module="PIL")  # damaged metadata, which the pixels do not need
    # A small file that claims to be hundreds of megapixels is refused, not just warned of.
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    answers: list[Answer] = []
    failed: dict[Path, str] = {}
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(files), unit="image", leave=False, disable=None) as progress,
    ):
        for start in range(0, len(files), BATCH_SIZE):
            batch, pixels = files[start : start + BATCH_SIZE], {}
            for file, read in zip(batch, pool.map(partial(read_or_reason, fit=fit), batch), strict=True):
                progress.update()
                if isinstance(read, str):
                    failed[file] = read
                else:
                    pixels[file] = read
            if pixels:
                answers += map(Answer, pixels, rank(classifier, np.stack(list(pixels.values()))))
    return answers, failed


def rank(classifier: Classifier, pixels: np.ndarray) -> list[list[tuple[str, float]]]:
    """The three most probable classes, and their probabilities, of each of the images uint8 [N, 32, 32, 3]."""
    import torch

    images = preprocess(pixels.transpose(0, 3, 1, 2), classifier.preprocessing, classifier.whitening)
    with torch.inference_mode():
        values, labels = classifier(torch.from_numpy(images)).topk(3)
    names = [[classifier.class_names[label] for label in row] for row in labels.tolist()]
    return [list(zip(*columns, strict=True)) for columns in zip(names, values.tolist(), strict=True)]


def show_table(answers: Sequence[Answer]) -> None:
    names = [printable(answer.file) for answer in answers]
    width = max(map(len, names), default=0)
    for name, answer in zip(names, answers, strict=True):
        (best, confidence), *others = answer.ranking
        print(f"{name:<{width}}  {best:<10}  {confidence:6.1%}  {', '.join(f'{n} {p:.1%}' for n, p in others)}")


def show_json(answers: Sequence[Answer]) -> None:
    rankings = [[{"class": name, "confidence": p} for name, p in answer.ranking] for answer in answers]
    files = [str(answer.file) for answer in answers]
    print(json.dumps([{"file": f, **r[0], "next": r[1:]} for f, r in zip(files, rankings, strict=True)], indent=2))


def show_csv(answers: Sequence[Answer]) -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "class", "confidence", "second", "second_confidence", "third", "third_confidence"])
    table.writerows([answer.file, *chain(*answer.ranking)] for answer in answers)


def printable(text: object) -> str:
    """A path or reason for people: line breaks and other characters that would act on a terminal are escaped."""
    return str(text) if str(text).isprintable() else ascii(str(text))


def label(file: Path) -> str:
    """The name of the folder that the file is in."""
    return Path(os.path.abspath(file)).parent.name


def report(answers: Sequence[Answer], class_names: Sequence[str]) -> str:
    """Accuracy, accuracy of each class, and the confusion matrix, for files in folders named by class."""
    labels = [class_names.index(label(answer.file)) for answer in answers]
    predicted = [class_names.index(answer.ranking[0][0]) for answer in answers]
    counts = np.zeros((len(class_names), len(class_names)), dtype=int)  # rows true, columns predicted
    np.add.at(counts, (labels, predicted), 1)
    lines = [f"accuracy {counts.trace() / counts.sum():.2%} of {counts.sum():,}; rows true, columns predicted:"]
    lines += [" " * 20 + "".join(f"{name[:5]:>6}" for name in class_names)]
    for index, (name, row) in enumerate(zip(class_names, counts, strict=True)):
        share = f"{row[index] / row.sum():.2%}" if row.any() else "no image"
        lines += [f"{name:<11}{share:>9}" + "".join(f"{count:>6}" for count in row)]
    return "\n".join(lines)


def export(classifier: Classifier, path: Path) -> None:
    """Write the classifier as ONNX: `images`, uint8 [N, 3, 32, 32], to `probabilities`, float32 [N, C].

    Its metadata has `class_names`, a JSON list.

    Raises:
        UsageError: Its preprocessing does more than whiten, or the file cannot be written.
    """
    import torch

    from models.classifier import Whitened

    if steps := classifier.preprocessing.steps(corrupted=False):
        raise UsageError(f"--export: the checkpoint's preprocessing has no ONNX form: {', '.join(steps)}")

    program = torch.onnx.export(
        classifier if classifier.whitening is None else Whitened(classifier).eval(),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "N"},),
        verbose=False,
        dynamo=True,
    )
    assert program is not None
    program.model.metadata_props["class_names"] = json.dumps(classifier.class_names)
    try:
        write_bytes(path, program.model_proto.SerializeToString())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def parser() -> Parser:
    parser = Parser(description="Classify image files, by CIFAR-10's ten classes.", usage="%(prog)s files [flags]")
    parser.add_argument("files", nargs="*", type=Path, help="Image files, and folders of them.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="File of train.py, or its run's folder.")
    parser.add_argument("--fit", choices=list(FITS), default="crop", help="How an image becomes a square.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="Print a list of objects.")
    form.add_argument("--csv", action="store_true", help="Print comma-separated values.")
    parser.add_argument(
        "--labels-from-folders",
        "--labels_from_folders",
        action="store_true",
        help="Folders are named by class: print accuracies and the confusion matrix too.",
    )
    parser.add_argument("--tta", action="store_true", help="Classify each image together with its mirror.")
    parser.add_argument("--export", type=Path, metavar="FILE", help="Write the classifier as ONNX.")
    return parser


def main() -> None:
    flags = parser().parse_args()
    files = find_images(flags.files)
    if not files and not (flags.export and not flags.files):
        raise UsageError("no image files given" if not flags.files else "no image files in the folders given")

    from models.classifier import load_classifier  # takes more than a second: bad flags are refused before

    classifier = load_classifier(flags.checkpoint, flags.tta)
    if flags.labels_from_folders:
        for file in files:
            if label(file) not in classifier.class_names:
                known = ", ".join(classifier.class_names)
                raise UsageError(f"{printable(file)}: its folder is not named by a class, which are {known}")
    if flags.export:
        export(classifier, flags.export)
    if not files:
        return
    answers, failed = classify(classifier, files, flags.fit)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    show = show_json if flags.json else show_csv if flags.csv else show_table
    show(answers)
    if flags.labels_from_folders and answers:  # not among what a program reads
        print(report(answers, classifier.class_names), file=sys.stderr if flags.json or flags.csv else sys.stdout)
    sys.stdout.flush()
    for file, reason in failed.items():
        print(f"predict.py: {printable(file)}: {printable(reason)}", file=sys.stderr)
    if failed:
        raise UsageError(f"{len(failed)} of {len(files)} files could not be read")


if __name__ == "__main__":
    sys.exit(exit_status(main))
