"""Evaluate a checkpoint on labelled images: the test set, the validation split of its run, or a folder.

python evaluate.py checkpoints/adam-lr0.002-bs128-seed0/version_0
python evaluate.py checkpoints/lenet5-cifar10.ckpt --tta
python evaluate.py checkpoints/sgd-lr0.1-bs128-seed0/version_0 --corrupt gaussian --denoise gaussian
python evaluate.py checkpoints/sgd-lr0.1-bs128-seed0/version_0 --corrupt all --on val --out evaluated
python evaluate.py checkpoints/lenet5-cifar10.ckpt --on CIFAR-10-C --out evaluated
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

from analysis.reports import HTML
from cifar10.config import Data, Preprocessing
from cifar10.filters import CORRUPT
from core.cli import Parser, run_program
from core.errors import SettingError, UsageError
from core.settings import get_fields

FOLDERS = ("data_dir", "cache_dir", "mirror")  # where the data set comes from, and what is made of it goes


def make_parser() -> Parser:
    parser = Parser(__doc__, usage="%(prog)s CHECKPOINT [flags]")
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="Checkpoint file, or a run's folder of checkpoints or logs, which stands for its best epoch.",
    )
    parser.add_argument(
        "--on",
        default="test",
        metavar="val|test|FOLDER",
        help="Images to evaluate on: the test set (default), the run's validation split, or a folder. The folder has "
        "one folder of pictures a class, or the format of CIFAR-10-C.",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="Write tables, pictures and a report to this new folder."
    )
    parser.add_argument(
        "--tta", action="store_true", help="Test-time augmentation: average each image with its horizontal flip."
    )
    parser.add_argument(
        "--release", type=Path, metavar="FILE", help="Write the weights to this file, without what only training needs."
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="Temperature by which the logits are divided, instead of the checkpoint's; --release writes it.",
    )
    parser.add_argument("--network", metavar="FILE:CLASS", help="Python file and class of your own network.")
    parser.add_settings(Data, FOLDERS)
    parser.add_argument(
        "--corrupt",
        choices=[*CORRUPT, "all"],
        default=argparse.SUPPRESS,
        help="Corruption of the images before all else; all evaluates each corruption at each severity.",
    )
    parser.add_settings(Preprocessing, ("severity", "denoise", "denoise_strength"))
    return parser


def main() -> None:
    flags = vars(make_parser().parse_args())
    path, tta, target, network, temperature = (
        flags.pop(name) for name in ("checkpoint", "tta", "release", "network", "temperature")
    )
    for group in (Data, Preprocessing):  # refuse bad values
        group(**{name: flags[name] for name in get_fields(group) if flags.get(name, "all") != "all"})
    if temperature is not None and not 0 < temperature < math.inf:
        raise SettingError("temperature", temperature, "must be above 0")
    changes = flags.keys() - {*FOLDERS, "on", "out"}
    if target and (tta or changes or flags["on"] != "test"):  # it states the accuracy of the checkpoint as it is
        raise UsageError(f"--release: not with --{min(changes, default='tta' if tta else 'on')}")

    # These take seconds to import: a bad flag is refused before.
    from models.checkpoint import load_checkpoint, refuse_overwriting
    from training.checkpoints import read_checkpoint_config, release
    from training.description import count_parameters, describe_in_lines
    from training.evaluation import evaluate, in_percent
    from training.files import find_checkpoints

    if target:
        refuse_overwriting("release", target)
    checkpoint = load_checkpoint(find_checkpoints(path), network)
    if temperature:
        checkpoint = replace(checkpoint, temperature=temperature)
    config = read_checkpoint_config(checkpoint) if checkpoint.is_of_run or target else None
    found = evaluate(checkpoint, tta=tta, **flags)
    network = checkpoint.network.network
    print(
        describe_in_lines(config, count_parameters(config), "Trained") if config else f"Trained by a script: {network}"
    )
    lines = {"images": found.images} | in_percent(found.figures)
    lines |= {"report": flags["out"] / HTML} if flags["out"] else {}
    if target:
        release(checkpoint, target, found.figures["accuracy"])
        lines |= {"released": target}
    width = max(map(len, lines)) + 2
    for name, value in lines.items():
        print(f"{name:<{width}}{value}")


if __name__ == "__main__":
    sys.exit(run_program(main))
