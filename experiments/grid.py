"""The runs of a sweep, each written as texts of flags of train.py.

"optimizer=sgd lr=0.1,0.05 seed=0,1" is a grid of four runs; "optimizer=sgd lr=0.001..0.1" a space to search.
"""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.cli import read_recipe, suggest
from core.errors import SettingError, UsageError
from core.settings import drop_followers, to_text
from experiments.config import SweepSettings
from experiments.runs import read_row_result, read_runs
from training.config import SETTINGS, RunConfig, resolve_config
from training.hints import HINTS

FOLDERS = ("data_dir", "log_dir", "checkpoint_dir")  # which the sweep sets


@dataclass(frozen=True)
class PlannedRun:
    """A run that a sweep is to train."""

    key: str  # equal for equal runs
    assigned: dict[str, str]  # flags that differ from the recipe's, as texts
    space: dict[str, str] = field(default_factory=dict)  # flags to search, as texts; empty in a grid


class Sweep:
    """What the runs of a sweep have in common, by the flags of sweep.py.

    Raises:
        UsageError: As all methods do: train.py would refuse these flags.
    """

    def __init__(self, chosen: SweepSettings) -> None:
        self.name = chosen.name or Path(chosen.recipe or "sweep").stem
        self.log_dir, self.checkpoint_dir = chosen.log_dir / self.name, chosen.checkpoint_dir / self.name
        self.data_dir = chosen.data_dir
        self.reused = read_results(chosen.reuse) if chosen.reuse else {}
        self.base = parse_flags(chosen.base)
        self.recipe_flags = read_recipe(chosen.recipe) if chosen.recipe else {}
        if unknown := sorted(self.recipe_flags.keys() - SETTINGS.keys()):
            raise UsageError(f"{chosen.recipe}: {unknown[0]} is no flag")

    def expand_grid(self, text: str, start: dict[str, str] | None = None) -> list[PlannedRun]:
        """Return a run for each combination of the values in `text`, on top of the flags `start`."""
        lists = {flag: values.split(",") for flag, values in parse_flags(text).items()}
        combinations = (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))
        chosen = [(start or {}) | values for values in combinations]
        return [PlannedRun(self.make_config(assigned).identity(), assigned) for assigned in chosen]

    def expand_search(self, text: str, trials: int) -> list[PlannedRun]:
        """Return `trials` runs in the space of `text`."""
        texts = parse_flags(text)
        space = {flag: value for flag, value in texts.items() if "," in value or parse_range(value)}
        if not space:
            raise SettingError("search", text, "has neither a range (0.001..0.1) nor choices (sgd,adam)")
        assigned = {flag: value for flag, value in texts.items() if flag not in space}
        ends = {flag: value.split(".." if parse_range(value) else ",") for flag, value in space.items()}
        configs = [self.make_config(assigned | {flag: end}) for flag, pair in ends.items() for end in pair]
        if not all(config.val_size for config in configs):
            raise SettingError("search", text, "chooses by validation, so it needs val_size above 0")
        key = json.dumps([assigned, space, self.make_config(assigned).identity()])
        return [PlannedRun(f"{key} {number}", assigned, space) for number in range(trials)]

    def make_config(self, assigned: dict[str, str]) -> RunConfig:
        """Return the configuration of a run, with what is in the files that it names."""
        return resolve_config(RunConfig(**self._flags(assigned)))

    def list_arguments(self, assigned: dict[str, str], threads: int) -> list[str]:
        """Return the command line of a run, with this number of threads unless the sweep's flags say otherwise."""
        flags = {"threads": threads} | self._flags(assigned)
        return [f"--{flag}={to_text(value)}" for flag, value in flags.items()]

    def _flags(self, assigned: dict[str, str]) -> dict[str, Any]:
        """Return all flags of a run: those of the sweep and of the run on top of the recipe's."""
        texts = {flag: str(getattr(self, flag)) for flag in FOLDERS} | self.base | assigned
        return drop_followers(RunConfig, self.recipe_flags, texts) | texts

    def read_finished(self) -> dict[str, dict[str, Any]]:
        """Return results by identity: of the runs in the log folder, and of those in the table to reuse."""
        return self.reused | {
            run.config.identity(): run.result.plain() for run in read_runs(self.log_dir) if run.result
        }

    def find_unfinished(self, config: RunConfig) -> Path | None:
        """Return the checkpoints of the latest unfinished run of this configuration, which goes on from there."""
        from models.checkpoint import LAST  # takes PyTorch

        for run in reversed(read_runs(self.log_dir)):
            folder = self.checkpoint_dir / run.name / run.version
            if run.result is None and run.config.identity() == config.identity() and (folder / LAST).exists():
                return folder
        return None


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results in a `runs.csv` by identity, with the file as `reused`; UsageError if it is damaged."""
    from experiments.tables import read_rows  # takes pandas

    if not path.exists():
        raise UsageError(f"{path}: No such file")
    return {config.identity(): read_row_result(row) | {"reused": path.as_posix()} for row, config in read_rows(path)}


def parse_flags(text: str) -> dict[str, str]:
    """Turn "lr=0.1,0.2 seed=0" into {"lr": "0.1,0.2", "seed": "0"}; UsageError if it is no such text."""
    pairs: dict[str, str] = {}
    for word in text.split():
        flag, _, value = word.partition("=")
        if flag not in SETTINGS or flag in FOLDERS:
            raise UsageError(f"{word}: no setting of a run{suggest(flag, SETTINGS, HINTS)}")
        if flag in pairs or not all(value.split(",")):
            raise UsageError(f"{word}: each flag once, as flag=value or flag=value,value")
        pairs[flag] = value
    return pairs


def parse_range(text: str) -> tuple[float, float] | None:
    """Return the ends of a range "0.001..0.1"; None of another text, such as a path."""
    low, _, high = text.partition("..")
    try:
        return (float(low), float(high)) if float(low) < float(high) else None
    except ValueError:
        return None
