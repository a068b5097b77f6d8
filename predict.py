"""Classify image files by CIFAR-10's ten classes, from a checkpoint alone.

python predict.py photo.jpg folder/
python predict.py photo.jpg --json --checkpoint checkpoints/adam-lr0.002-bs128-seed0/version_0
python predict.py photos_by_class/ --labels-from-folders --tta
python predict.py --export model.onnx
"""

import csv
import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from cifar10.pictures import FITS, UNKNOWN, find_images, label
from core.cli import Parser, exit_status
from core.errors import UsageError
from models.answers import Answer, classify

CHECKPOINT = Path(__file__).parent / "checkpoints" / "lenet5-cifar10.ckpt"


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


def told(passed_over: Sequence[Path]) -> str:
    return f"passed over, hidden or no image: {len(passed_over)} in folders, such as {printable(min(passed_over))}"


def nothing(passed_over: Sequence[Path]) -> UsageError:
    return UsageError("no image files in the folders given" + (f"; {told(passed_over)}" if passed_over else ""))


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


def parser() -> Parser:
    parser = Parser(__doc__, usage="%(prog)s files [flags]")
    parser.add_argument(
        "files", nargs="*", type=Path, help="Image files, or folders of them; hidden files are left out."
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=CHECKPOINT,
        help="Checkpoint file, or a run's checkpoint folder, which stands for its best epoch.",
    )
    parser.add_argument("--network", metavar="FILE:CLASS", help="Python file and class of your own network.")
    parser.add_argument("--fit", choices=list(FITS), default="crop", help="How an image is made square.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="Print a list of objects.")
    form.add_argument("--csv", action="store_true", help="Print comma-separated values.")
    parser.add_argument(
        "--labels-from-folders",
        "--labels_from_folders",
        action="store_true",
        help="Take the folders' names as labels; print accuracies and the confusion matrix too.",
    )
    parser.add_argument("--tta", action="store_true", help="Average over each image and its horizontal flip.")
    parser.add_argument("--export", type=Path, metavar="FILE", help="Write the classifier as ONNX.")
    return parser


def main() -> None:
    flags = parser().parse_args()
    files, passed_over = find_images(flags.files)
    if not files and not (flags.export and not flags.files):
        raise nothing(passed_over) if flags.files else UsageError("no image files given")

    # These take more than a second to import: bad flags are refused before.
    from models.checkpoint import refuse_overwriting
    from models.classifier import load_classifier

    if flags.export:
        refuse_overwriting("export", flags.export)

    classifier = load_classifier(flags.checkpoint, flags.tta, flags.network)
    if flags.labels_from_folders:
        for file in files:
            if label(file) not in classifier.class_names:
                known = ", ".join(classifier.class_names)
                raise UsageError(f"{printable(file)}: its folder is not named by a class, which are {known}")
    if flags.export:
        from models.onnx import export

        export(classifier, flags.export)
    if not files:
        return
    answers, failed = classify(classifier, files, flags.fit)
    for file in {file for file, reason in failed.items() if reason == UNKNOWN} - set(flags.files):
        passed_over.append(file)
        del failed[file]
    if not answers and not failed:
        raise nothing(passed_over)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    show = show_json if flags.json else show_csv if flags.csv else show_table
    show(answers)
    if flags.labels_from_folders and answers:  # not among what a program reads
        print(report(answers, classifier.class_names), file=sys.stderr if flags.json or flags.csv else sys.stdout)
    sys.stdout.flush()
    for file, reason in failed.items():
        print(f"predict.py: {printable(file)}: {printable(reason)}", file=sys.stderr)
    if passed_over:
        print(f"predict.py: {told(passed_over)}", file=sys.stderr)
    if failed:
        raise UsageError(f"{len(failed)} of {len(answers) + len(failed)} files could not be read")


if __name__ == "__main__":
    sys.exit(exit_status(main))
