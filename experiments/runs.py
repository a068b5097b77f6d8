"""What runs leave in their log folders, read back: flags, results, curves.

Light to import, and knows nothing of training: sweeps and reports read any number of runs with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from cifar10.errors import UsageError

Curves: TypeAlias = dict[str, dict[int, float]]  # by TensorBoard's tag, value by step or epoch

SUMMARY = "summary.json"  # in the log folder of a finished run
FLAGS = "hparams.yaml"  # Lightning's, in the log folder of any run
# Flags that are no part of what makes a run another one: where it is kept, how it is shown.
NO_PART = {
    "data_dir",
    "mirror",
    "log_dir",
    "checkpoint_dir",
    "tag",
    "threads",
    "pictures",
    "quiet",
    "fast_dev_run",
    "resume",
}
SCORES = ("best_epoch", "best_val_acc", "test_acc_at_best_val", "best_test_acc", "last_test_acc", "seconds")


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        folder: Its logs, `.../<name>/version_N`.
        flags: What `train.train` got, plain values.
        result: What it returned; None while the run is not finished.
    """

    folder: Path
    flags: dict[str, Any]
    result: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    def curves(self) -> Curves:
        return read_curves(self.folder)


def read_runs(folder: Path) -> list[Run]:
    """All runs of train.py in and below a folder, by path.

    A run that was killed before it had written all its flags is left out: it has no checkpoint either.

    Raises:
        UsageError: A summary is damaged.
    """
    runs = []
    for path in sorted(folder.rglob(FLAGS), key=_numbered):
        summary = path.parent / SUMMARY
        if summary.exists():
            try:
                result = json.loads(summary.read_text(encoding="utf-8"))
                runs.append(Run(path.parent, result.pop("flags"), result))
            except (ValueError, KeyError, AttributeError) as error:
                raise UsageError(f"{summary}: damaged, or not of train.py; move the run's folder away") from error
        elif flags := _whole_flags(path):
            runs.append(Run(path.parent, flags, None))
    return runs


def read_curves(folder: Path) -> Curves:
    """All scalars in a run's event files: by tag, value by step; of rows that a resumed run wrote twice the later."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), {SCALARS: 0}).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def row_of_run(run: Run, curves: Curves) -> dict[str, Any]:
    """A finished run as a row of `cells.csv`: name, flags, and the `SCORES` that it has, accuracies in percent."""
    assert run.result
    score, test = run.result["val_acc"], run.result["test_acc"] * 100
    row = {"run": f"{run.name}/{run.version}"} | {name: run.flags[name] for name in run.flags if name not in NO_PART}
    row["best_epoch"] = run.result["best_epoch"]
    if run.flags["select_on"] == "test":
        row["best_test_acc"] = score * 100
        row["last_test_acc"] = curves["test_acc"][run.result["epochs"]] * 100
    elif score is None:
        row["last_test_acc"] = test
    else:
        row |= {"best_val_acc": score * 100, "test_acc_at_best_val": test}
    return row | {"seconds": run.result["seconds"]}


def result_of_row(row: Mapping[str, str]) -> dict[str, Any]:
    """The way back: what `train.train` returned, as far as a row of `cells.csv` has it."""
    number = {name: float(row[name]) for name in SCORES if row.get(name)}
    score = number.get("best_val_acc", number.get("best_test_acc"))
    test = number.get("test_acc_at_best_val", number.get("best_test_acc", number.get("last_test_acc")))
    epoch = number.get("best_epoch")
    return {
        "select_on": row.get("select_on", "val"),
        "best_epoch": None if epoch is None else int(epoch),
        "val_acc": None if score is None else score / 100,
        "test_acc": None if test is None else test / 100,
        "seconds": number["seconds"],
    }


def _whole_flags(path: Path) -> dict[str, Any] | None:
    """Of `hparams.yaml`, which Lightning does not write at one stroke; its names are sorted, so the last is `width`."""
    try:
        flags = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        return None
    return flags if isinstance(flags, dict) and flags.get("width") else None


def _numbered(path: Path) -> tuple[str, int]:
    """A key that puts version_10 after version_9."""
    name, version = path.parent.parent, path.parent.name
    number = version.rpartition("_")[2]
    return str(name), int(number) if number.isdigit() else -1
