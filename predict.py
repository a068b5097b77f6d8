"""Classify image files into CIFAR-10's ten classes.

python predict.py photo.jpg folder/
python predict.py photo.jpg --json --checkpoint checkpoints/adam-lr0.004-bs128-seed0/version_0
python predict.py --export model.onnx
"""

import csv
import json
import sys
from collections.abc import Sequence
from glob import glob
from itertools import chain
from pathlib import Path

from cifar10.pictures import FITS, UNKNOWN, find_images
from core.cli import Parser, run_program
from core.errors import UsageError
from core.extras import require_extra
from models.prediction import RELEASED, Prediction, predict_files

NO_IMAGES = "no image files given; in folders, hidden files and those that are no image are skipped"


def make_parser() -> Parser:
    parser = Parser(__doc__, usage="%(prog)s files [flags]")
    parser.add_argument("files", nargs="*", help="Image files, or folders, in which hidden files are skipped.")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=RELEASED,
        help="Checkpoint file, or a run's checkpoint folder, from which the best epoch is taken.",
    )
    parser.add_argument("--network", metavar="FILE:CLASS", help="Python file and class of your own network.")
    parser.add_argument("--fit", choices=list(FITS), default="crop", help="How to make an image square.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="Print a list of objects.")
    form.add_argument("--csv", action="store_true", help="Print comma-separated values.")
    parser.add_argument(
        "--tta", action="store_true", help="Test-time augmentation: average each image with its horizontal flip."
    )
    parser.add_argument("--export", type=Path, metavar="FILE", help="Write the classifier as ONNX.")
    return parser


def main() -> None:
    flags = make_parser().parse_args()
    if flags.export:
        require_extra("--export", "onnx", "onnxscript")
    named = expand_names(flags.files)
    files, skipped = find_images(named)
    if not files and (named or not flags.export):
        raise UsageError(NO_IMAGES)

    # These take more than a second to import: bad flags are refused before.
    from models.checkpoint import refuse_overwriting
    from models.classifier import load_classifier

    if flags.export:
        refuse_overwriting("export", flags.export)

    classifier = load_classifier(flags.checkpoint, flags.tta, flags.network)
    if flags.export:
        from models.onnx import export

        export(classifier, flags.export)
    if not files:
        return
    predictions, failed = predict_files(classifier, files, flags.fit)
    for file in {file for file, reason in failed.items() if reason == UNKNOWN} - set(named):
        skipped.append(file)
        del failed[file]
    if not predictions and not failed:
        raise UsageError(NO_IMAGES)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    show = print_json if flags.json else print_csv if flags.csv else print_table
    show(predictions)
    sys.stdout.flush()
    for file, reason in failed.items():
        print(f"predict.py: {file}: {reason}", file=sys.stderr)
    if skipped:
        print(f"predict.py: files skipped in folders, hidden or not an image: {len(skipped):,}", file=sys.stderr)
    if failed:
        raise UsageError(f"{len(failed)} of {len(predictions) + len(failed)} files could not be read")


def expand_names(names: Sequence[str]) -> list[Path]:
    """Return the paths that names stand for: of a pattern such as *.png, which Windows does not expand, its matches.

    UsageError if a name is a URL.
    """
    if urls := [name for name in names if "://" in name]:
        raise UsageError(f"{urls[0]}: is a URL; download the picture and name its file")
    found = [[name] if Path(name).exists() else sorted(glob(name)) or [name] for name in names]
    return [Path(name) for name in chain(*found)]


def print_table(predictions: Sequence[Prediction]) -> None:
    width = max((len(str(prediction.file)) for prediction in predictions), default=0)
    for prediction in predictions:
        (best, confidence), *others = prediction.ranking
        next_two = ", ".join(f"{name} {share:.1%}" for name, share in others)
        print(f"{prediction.file!s:<{width}}  {best:<10}  {confidence:6.1%}  {next_two}")


def print_json(predictions: Sequence[Prediction]) -> None:
    rankings = [[{"class": name, "confidence": p} for name, p in prediction.ranking] for prediction in predictions]
    files = [str(prediction.file) for prediction in predictions]
    print(json.dumps([{"file": f, **r[0], "next": r[1:]} for f, r in zip(files, rankings, strict=True)], indent=2))


def print_csv(predictions: Sequence[Prediction]) -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["file", "class", "confidence", "second", "second_confidence", "third", "third_confidence"])
    table.writerows([prediction.file, *chain(*prediction.ranking)] for prediction in predictions)


if __name__ == "__main__":
    sys.exit(run_program(main))
