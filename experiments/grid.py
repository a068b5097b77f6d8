"""The cells of a sweep: one run of train.py each, written as texts of flags.

"optimizer=sgd lr=0.1,0.05 seed=0,1" is a grid of four cells; "optimizer=sgd lr=0.001..0.1" a space to search.
"""

from __future__ import annotations

import csv
import inspect
import itertools
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import train
from cifar10.errors import UsageError
from experiments.runs import NO_PART, read_runs, result_of_row
from models.optimizers import OPTIMIZERS
from training.cli import check

ROOT = Path(__file__).parent.parent
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(train.train).parameters.items()}
NAMED = {"optimizer", "lr", "batch_size", "seed"}  # what train.py names its folders by


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        key: Equal for equal cells.
        assigned: Flags that differ from the recipe's, as texts.
        space: Flags to search, as texts; empty if this is a cell of a grid.
    """

    key: str
    assigned: dict[str, str]
    space: dict[str, str] = field(default_factory=dict)


class Plan:
    """What the cells of a sweep have in common.

    Args:
        recipe: YAML file of flags; a bare name is looked for in recipes/.
        base: Flags on top of it, "epochs=5 pictures=false".
        name: Of the sweep and its folders; null takes the recipe's.
        log_dir, checkpoint_dir, results_dir: In which these folders are.

    Raises:
        UsageError: As all methods do: train.py would refuse these flags.
    """

    def __init__(
        self,
        recipe: str | None,
        base: str,
        name: str | None,
        data_dir: Path,
        log_dir: Path,
        checkpoint_dir: Path,
        results_dir: Path,
    ) -> None:
        known = ROOT / "recipes" / f"{recipe}.yaml"
        self.recipe = str(known) if known.exists() else recipe
        self.name = name or Path(recipe or "sweep").stem
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UsageError(f"--name {self.name}: must be letters, digits and _ . - only")
        self.log_dir, self.checkpoint_dir = log_dir / self.name, checkpoint_dir / self.name
        self.data_dir, self.csv = data_dir, results_dir / self.name / "cells.csv"
        self.base = parse(base)
        # Read once, before there are threads: to read a file of flags, jsonargparse changes the working directory.
        given = read_flags(["--config", self.recipe], defaults=False) if self.recipe else {}
        given.pop("config", None)
        self.recipe_texts = {flag: "null" if value is None else str(value) for flag, value in given.items()}

    def grid(self, text: str, start: dict[str, str] | None = None) -> list[Cell]:
        """All combinations of the values in `text`, on top of the flags `start`."""
        lists = {flag: values.split(",") for flag, values in parse(text).items()}
        combinations = (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))
        cells = [(start or {}) | values for values in combinations]
        return [Cell(identity(self.flags(assigned)), assigned) for assigned in cells]

    def search(self, text: str, trials: int) -> list[Cell]:
        """`trials` cells in the space of `text`."""
        texts = parse(text)
        space = {flag: value for flag, value in texts.items() if re.search(r",|\.\.", value)}
        if not space:
            raise UsageError(f"--search {text}: has neither a range (0.001..0.1) nor choices (sgd,adam)")
        assigned = {flag: value for flag, value in texts.items() if flag not in space}
        for flag, value in space.items():
            for end in ends(value):
                if not self.flags(assigned | {flag: end})["val_size"]:
                    raise UsageError("--search: chooses by validation, so it needs --val_size above 0")
        key = json.dumps([assigned, space, identity(self.flags(assigned))])
        return [Cell(f"{key} {number}", assigned, space) for number in range(trials)]

    def flags(self, assigned: dict[str, str]) -> dict[str, Any]:
        """All flags of a run."""
        return all_flags(tuple(arguments(self.recipe_texts | self._texts(assigned))))

    def arguments(self, assigned: dict[str, str], threads: int) -> list[str]:
        """The command line of a run, which gets `threads` unless the sweep's texts say otherwise."""
        recipe = ["--config", self.recipe] if self.recipe else []
        return recipe + arguments({"threads": str(threads)} | self._texts(assigned))

    def _texts(self, assigned: dict[str, str]) -> dict[str, str]:
        """All flags on top of the recipe's."""
        folders = {"data_dir": self.data_dir, "log_dir": self.log_dir, "checkpoint_dir": self.checkpoint_dir}
        texts = {flag: str(folder) for flag, folder in folders.items()} | self.base | assigned
        tag = "-".join(f"{flag}-{value}" for flag, value in assigned.items() if flag not in NAMED)
        return ({"tag": re.sub(r"[^\w.=+-]+", "-", tag)} if tag else {}) | texts  # of a path its slashes go

    def finished(self) -> dict[str, dict[str, Any]]:
        """Results by `identity`: of the runs in the log folder, and of those that results/ has from elsewhere."""
        results = {}
        if self.csv.exists():
            with self.csv.open(encoding="utf-8", newline="") as file:
                for number, row in enumerate(csv.DictReader(file), 2):
                    assigned = {flag: text or "null" for flag, text in row.items() if flag in DEFAULTS}
                    try:
                        if None in row.values():
                            raise ValueError("the line ends early")
                        results[identity(self.flags(assigned))] = result_of_row(row)
                    except (ValueError, KeyError) as error:
                        raise UsageError(f"{self.csv}, line {number}: not as report.py writes it") from error
        return results | {identity(run.flags): run.result for run in read_runs(self.log_dir) if run.result}

    def unfinished(self, flags: dict[str, Any]) -> Path | None:
        """The checkpoints of a run with these flags that goes on from there; the latest."""
        for run in reversed(read_runs(self.log_dir)):
            folder = self.checkpoint_dir / run.name / run.version
            if run.result is None and identity(run.flags) == identity(flags) and (folder / "last.ckpt").exists():
                return folder
        return None


@cache
def all_flags(command_line: tuple[str, ...]) -> dict[str, Any]:
    """The flags of train.py with their defaults, those that depend on the optimizer too."""
    flags = read_flags(list(command_line))
    flags = {name: flags[name] for name in DEFAULTS if name in flags}
    flags["teacher"] = flags["teacher"] and str(flags["teacher"])  # as a run writes it
    check(flags)
    defaults = OPTIMIZERS[flags["optimizer"]]
    own = {"lr": defaults.lr, "weight_decay": defaults.weight_decay}
    return flags | {name: value for name, value in own.items() if flags[name] is None}


def read_flags(command_line: list[str], defaults: bool = True) -> dict[str, Any]:
    """What train.py reads from its command line; UsageError if it refuses it."""
    parser = train.parser()
    parser.exit_on_error = False
    return parser.parse_args(command_line, defaults=defaults).as_dict()


def arguments(texts: dict[str, str]) -> list[str]:
    return [f"--{flag}={value}" for flag, value in texts.items()]


def parse(text: str) -> dict[str, str]:
    """ "lr=0.1,0.2 seed=0" to {"lr": "0.1,0.2", "seed": "0"}; UsageError if it is no such text."""
    pairs = {}
    for word in text.split():
        flag, _, value = word.partition("=")
        if not all(value.split(",")):
            raise UsageError(f"{word}: must be flag=value or flag=value,value")
        if flag not in DEFAULTS or flag in NO_PART - {"threads", "pictures", "tag"}:
            raise UsageError(f"{word}: no flag of train.py that a sweep can set")
        pairs[flag] = value
    return pairs


def identity(flags: dict[str, Any]) -> str:
    """What makes a run another one; flags that did not exist when it was made have their defaults."""
    part = {name: flags.get(name, default) for name, default in DEFAULTS.items() if name not in NO_PART}
    return json.dumps(part, sort_keys=True)


def ends(text: str) -> list[str]:
    """The two ends of a range "0.001..0.1", or the choices "sgd,adam"."""
    low, dots, high = text.partition("..")
    if not dots:
        return text.split(",")
    try:
        if float(low) < float(high):
            return [low, high]
    except ValueError:
        pass
    raise UsageError(f"{text}: a range is two numbers, the smaller one first")
