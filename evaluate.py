"""A trained network on labelled images: the official test set, those that validated its run, or a folder of one's own.

python evaluate.py checkpoints/adam-lr0.002-bs128-seed0/version_0
python evaluate.py checkpoints/lenet5-cifar10.ckpt --tta
python evaluate.py checkpoints/sgd-lr0.05-bs128-seed0/version_0 --corrupt gaussian --denoise gaussian
python evaluate.py checkpoints/sgd-lr0.05-bs128-seed0/version_0 --on val --out evaluated
python evaluate.py checkpoints/lenet5-cifar10.ckpt --on CIFAR-10-C --out evaluated
"""

import sys
from pathlib import Path

from cifar10.config import Data, Preprocessing
from cifar10.errors import UsageError
from training.cli import Parser, exit_status
from training.files import REPORT

FOLDERS = ("data_dir", "cache_dir", "mirror")  # where the data set comes from, and what is made of it goes


def parser() -> Parser:
    parser = Parser("Evaluate a checkpoint.", usage="%(prog)s CHECKPOINT [flags]")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="File of train.py, or its run's folder.")
    parser.add_argument(
        "--on",
        default="test",
        metavar="val|test|FOLDER",
        help="Images: the test set, the run's validation images, or a folder: of folders of pictures, named by class, "
        "or of CIFAR-10-C's format.",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="New folder for tables, pictures and a report.")
    parser.add_argument("--tta", action="store_true", help="Classify each image together with its horizontal flip.")
    parser.add_argument("--release", type=Path, metavar="FILE", help="Write its weights for publication.")
    parser.add_argument("--network", metavar="FILE:CLASS", help="The code of a network of your own.")
    parser.add_settings(Data, FOLDERS)
    parser.add_settings(Preprocessing, ("corrupt", "severity", "denoise", "denoise_strength"))
    return parser


def main() -> None:
    flags = vars(parser().parse_args())
    path, tta, target, network = (flags.pop(name) for name in ("checkpoint", "tta", "release", "network"))
    changes = flags.keys() - {*FOLDERS, "on", "out"}
    if target and (tta or changes or flags["on"] != "test"):  # it states the accuracy of the checkpoint as it is
        raise UsageError(f"--release: not with --{min(changes, default='tta' if tta else 'on')}")

    # These take seconds to import: a bad flag is refused before.
    from models.checkpoint import load_checkpoint
    from training.evaluation import evaluate

    checkpoint = load_checkpoint(path, network)
    figures = evaluate(checkpoint, tta=tta, **flags)
    width = max(15, *(len(name) + 2 for name in figures))
    for name, value in figures.items():
        print(f"{name:<{width}}{value:.4f}")
    if flags["out"]:
        print(f"{'report':<15}{flags['out'] / REPORT}")
    if target:
        from training.checkpoints import release

        release(checkpoint, target, figures["test/acc"])
        print(f"{'released':<15}{target}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
