"""What runs leave in their log folders, read back: configuration and result.

Light to import, and knows nothing of training: sweeps and reports read any number of runs with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.settings import FORMAT, check_value, get_types, to_text
from training.config import SETTINGS, RunConfig
from training.files import CONFIG, RunResult, read_result, read_run_config

RESULTS = ("best_epoch", "best_val_acc", "test_acc_at_best_val", "best_test_acc", "last_test_acc", "seconds")
# The settings in a `runs.csv`: all that make a run another one, and where its teacher was.
COLUMNS = [name for name, each in SETTINGS.items() if each.metadata["identity"] or name == "teacher"]


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: Path  # its logs, `.../<name>/version_N`
    config: RunConfig
    result: RunResult | None  # None while the run is not finished

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name


def read_runs(folder: Path) -> list[Run]:
    """Read all runs in and below a folder, by path; UsageError if a file is damaged or of another format."""
    runs = []
    for path in sorted((file.parent for file in folder.rglob(CONFIG)), key=_numbered):
        finished = read_result(path)
        runs.append(Run(path, *(finished or (read_run_config(path), None))))
    return runs


def list_texts(config: RunConfig) -> dict[str, str]:
    """Return a configuration as `runs.csv` has it: texts, empty where a setting is null, and their format."""
    values = config.plain()
    return {"format": str(FORMAT)} | {name: to_text_or_empty(values[name]) for name in COLUMNS}


def to_text_or_empty(value: Any) -> str:
    """Return the text of a setting in a table, which is empty for null."""
    return "" if value is None else to_text(value)


def normalize_value(name: str, text: str) -> str:
    """Return the text of a setting as `list_texts` writes it: "0.05" of "5e-2"; SettingError if it is invalid."""
    return to_text_or_empty(check_value(SETTINGS[name], get_types(RunConfig)[name], text or None))  # type: ignore[arg-type]


def read_row_result(row: Mapping[str, str]) -> dict[str, Any]:
    """Return what `train` returned, as far as a row of `runs.csv` has it: the opposite of `tables.make_row`."""
    number = {name: float(row[name]) for name in RESULTS if row.get(name)}
    score = number.get("best_val_acc", number.get("best_test_acc"))
    test = number.get("test_acc_at_best_val", number.get("best_test_acc", number.get("last_test_acc")))
    epoch = number.get("best_epoch")
    return {
        "select_on": row.get("select_on", "val"),
        "best_epoch": None if epoch is None else int(epoch),
        "val_acc": None if score is None else score / 100,
        "test_acc": None if test is None else test / 100,
        "seconds": number.get("seconds"),
    }


def _numbered(path: Path) -> tuple[str, int]:
    """Return a key that puts version_10 after version_9."""
    number = path.name.rpartition("_")[2]
    return str(path.parent), int(number) if number.isdigit() else -1
