"""The command line: what a flag may be, the line that refuses it, and how a program ends.

Light to import, so that a bad flag is refused at once.
"""

import errno
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from cifar10.errors import DataError, UsageError
from cifar10.filters import CORRUPT, DENOISE, NORMALIZE, SEGMENT
from cifar10.preprocessing import Preprocessing
from models.optimizers import OPTIMIZERS, SCHEDULES

OptimizerName: TypeAlias = Literal[tuple(OPTIMIZERS)]  # type: ignore[valid-type]
NetworkName: TypeAlias = Literal["lenet5", "resnet"]  # networks.NETWORKS, without its import of PyTorch
ScheduleName: TypeAlias = Literal[tuple(SCHEDULES)]  # type: ignore[valid-type]
DenoiseName: TypeAlias = Literal[tuple(DENOISE)]  # type: ignore[valid-type]
SegmentName: TypeAlias = Literal[SEGMENT]  # type: ignore[valid-type]
NormalizeName: TypeAlias = Literal[NORMALIZE]  # type: ignore[valid-type]
CorruptName: TypeAlias = Literal[tuple(CORRUPT)]  # type: ignore[valid-type]

_POSITIVE = "above 0", lambda value: 0 < value < math.inf
_SHARE = "from 0 to below 1", lambda value: 0 <= value < 1
_SEED = "from 0 to 4294967295", lambda value: 0 <= value < 2**32
ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {  # beyond what the types say
    "lr": _POSITIVE,
    "weight_decay": ("0 or above", lambda value: 0 <= value < math.inf),
    "momentum": _SHARE,
    "epochs": _POSITIVE,
    "batch_size": _POSITIVE,
    "label_smoothing": _SHARE,
    "width": _POSITIVE,
    "teacher_weight": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "crop": ("from 0 to 31", lambda value: 0 <= value <= 31),
    "cutout": ("from 0 to 32", lambda value: 0 <= value <= 32),
    "plain_epochs": ("0 or above", lambda value: value >= 0),
    "val_size": ("a multiple of 10 from 0 to 49990", lambda value: 0 <= value < 50_000 and value % 10 == 0),
    "split_seed": _SEED,
    "seed": _SEED,
    "threads": _POSITIVE,
    "num_nodes": _POSITIVE,
}


class Stopped(Exception):
    """A signal asked the run to stop.

    Attributes:
        signal: Its number.
        folder: Of a run, with the checkpoint of its last whole epoch; None if there is none.
        advice: How it goes on.
    """

    def __init__(self, signal: int, folder: Path | None = None, advice: str = "no epoch was complete yet") -> None:
        super().__init__(signal, folder, advice)
        self.signal = signal
        self.folder = folder
        self.advice = f"go on with: python train.py --resume {folder}" if folder else advice


def preprocessing(flags: dict[str, Any], before: Preprocessing = Preprocessing()) -> Preprocessing:  # noqa: B008
    """What the flags make of the preprocessing; UsageError if they contradict each other."""
    try:
        return before.changed({field.name: flags[field.name] for field in fields(Preprocessing) if field.name in flags})
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def check(flags: dict[str, Any]) -> None:
    """Raise UsageError if a flag of `train` is out of range or contradicts another."""
    for name, (allowed, holds) in ALLOWED.items():
        if flags[name] is not None and not holds(flags[name]):
            raise UsageError(f"--{name} {flags[name]}: must be {allowed}")
    if flags["tag"] and not re.fullmatch(r"[\w.=+-]+", flags["tag"]):
        raise UsageError(f"--tag {flags['tag']}: must be letters, digits and _ . = + - only")
    if flags["batch_size"] > 50_000 - flags["val_size"]:
        raise UsageError(f"--batch_size {flags['batch_size']}: more than the training images")
    if flags["plain_epochs"] > flags["epochs"]:
        raise UsageError(f"--plain_epochs {flags['plain_epochs']}: more than the run's {flags['epochs']} epochs")
    if flags["select_on"] == "test" and flags["val_size"]:
        raise UsageError("--select_on test: validates on the test set, so it needs --val_size 0")
    if flags["network"] != "lenet5" and flags["width"] != 3:
        raise UsageError(f"--width {flags['width']}: is of --network lenet5 alone")
    preprocessing(flags)


class Parser(ArgumentParser):
    """jsonargparse's parser, which says what is wrong in one line; in a UsageError, if it is not to exit on errors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split())
        flag = re.search(r'^Parser key "(\w+)": ', message)
        value = re.search(r"(?:Given|Got) value: (.*)$", message)
        expected = re.search(r"Literal\[(.+?)\]|<class '(\w+)'>", message)
        if flag and value and expected:
            words = {"int": "a whole number", "float": "a number", "bool": "true or false"}
            must = f"one of {expected[1]}" if expected[1] else words.get(expected[2], expected[2])
            message = f"--{flag[1]} {value[1]}: must be {must}"
        if not self.exit_on_error:
            raise UsageError(message)
        self.exit(2, f"{self.prog}: {message}; see --help\n")


class RecipeFile(ActionConfigFile):
    """`--config FILE`: YAML of flags. Aliases are refused, since a few lines of them can stand for terabytes."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            with open(values, encoding="utf-8") as file:
                if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(file, yaml.SafeLoader)):
                    parser.error(f"{values}: YAML aliases are not taken")
        except OSError as error:
            parser.error(f"{values}: {error.strerror}")
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            parser.error(f"{values}: no YAML: {error}")
        super().__call__(parser, cfg, values, option_string)


def exit_status(program: Callable[[], None]) -> int:
    """Run a program; what a user can mend becomes one line on standard error. The status is that of the contract:
    0 done, 2 bad flags or input, 1 anything else, 130 after Ctrl-C, 143 after SIGTERM."""
    try:
        program()
        return 0
    except (UsageError, DataError) as error:
        status, reason = 2, str(error)
    except FloatingPointError as error:
        status, reason = 1, str(error)
    except BrokenPipeError:  # the reader went away, such as `head`; what is still buffered would raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            status, reason = 1, f"{error.strerror}; the last whole checkpoint stands"
        elif error.filename and error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            status, reason = 2, f"{error.filename}: {error.strerror}"
        else:
            raise
    except Stopped as stop:
        status, reason = 128 + stop.signal, f"stopped; {stop.advice}"
    except KeyboardInterrupt:
        status, reason = 128 + signal.SIGINT, "stopped"
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
    return status
