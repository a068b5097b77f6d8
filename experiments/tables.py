"""Runs as tables: found, read from and written to CSV files, grouped by their settings.

A table of runs is a DataFrame with a row for each: `run`, its settings as texts (`runs.list_texts`), its results as
numbers. Curves are another, with a row for each epoch.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.reports import HISTORY
from core.errors import UsageError
from core.files import write_bytes
from core.settings import check_format
from experiments.runs import COLUMNS, RESULTS, Run, list_texts, normalize_value, read_row_result, read_runs
from training.config import RunConfig, read_config
from training.description import count_parameters, describe
from training.files import SUMMARY

RUNS_CSV, CURVES, CORRUPTED = "runs.csv", "curves.csv", "corrupted.csv"  # the last is of benchmarks.corruption
SCORES = ["epoch", *(f"{part}_{score}" for part in ("train", "val", "test") for score in ("loss", "acc"))]  # in CURVES
TITLES = {"lr": "learning rate", "batch_size": "batch size", "weight_decay": "weight decay"}
FIRST = ("optimizer", "network", "width", "lr", "batch_size")  # columns
LEADERS = ("optimizer", "network", "width", "teacher")  # what other settings are chosen for
DESCENDING = ("optimizer", "lr", "batch_size")  # as in the coursework report's table


def find_runs(folders: Sequence[Path]) -> dict[str, Run]:
    """Return all runs in and below some folders, each once, by its path below its folder; of several folders, with the
    folder before it.
    """
    found: dict[Path, tuple[str, Run]] = {}
    for root in folders:
        for run in read_runs(root):
            key = run.folder.relative_to(root).as_posix()
            key = f"{run.name}/{run.version}" if key in (".", run.version) else key
            found.setdefault(run.folder.resolve(), (f"{root.as_posix()}/{key}" if len(folders) > 1 else key, run))
    return dict(found.values())


def collect(runs: dict[str, Run], folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of the finished runs, the newest last, and their curves, also of runs that only the CSV files in
    `folder` know; those come first.
    """
    finished = {key: run for key, run in runs.items() if run.result}
    rows = [row for row in read_table(folder / RUNS_CSV) if row["run"] not in finished]
    old = read_csv(folder / CURVES)
    curves = [old[~old["run"].isin(finished)]] if len(old) else []
    for key, run in sorted(finished.items(), key=lambda pair: (pair[1].folder / SUMMARY).stat().st_mtime):
        points = read_csv(run.folder / HISTORY, "epoch").filter(SCORES).round(5)
        rows.append({"run": key} | make_row(run, points))
        points.insert(0, "run", key)
        curves.append(points)
    table = pd.DataFrame(rows, columns=["run", "format", *COLUMNS, *RESULTS])
    table = table.astype(dict.fromkeys(RESULTS, float)).round(dict.fromkeys(RESULTS, 2) | {"seconds": 1})
    curves = [part for part in curves if len(part)]
    return table, pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()


def make_row(run: Run, curves: pd.DataFrame) -> dict[str, Any]:
    """Return a finished run, with its curves, as a row of `runs.csv`: settings as texts, and the RESULTS it has, with
    accuracies in %.
    """
    assert run.result
    score, test = run.result.val_acc, run.result.test_acc * 100
    row: dict[str, Any] = list_texts(run.config) | {"best_epoch": run.result.best_epoch}
    if score is None:
        row["last_test_acc"] = test
    elif run.config.select_on == "test":
        row["best_test_acc"] = score * 100
        by_epoch = curves.reindex(columns=["epoch", "test_acc"]).set_index("epoch")["test_acc"]
        row["last_test_acc"] = 100 * by_epoch.get(run.result.epochs, math.nan)  # of a file that is not whole
    else:
        row |= {"best_val_acc": score * 100, "test_acc_at_best_val": test}
    return row | {"seconds": run.result.seconds}


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a RUNS_CSV file, as `collect` has them; none if there is no such file."""
    return [
        {"run": row["run"]} | list_texts(config) | {name: float(row[name]) for name in RESULTS if row.get(name)}
        for row, config in read_rows(path)
    ]


def read_rows(path: Path) -> list[tuple[dict[str, str], RunConfig]]:
    """Read the rows of a RUNS_CSV file as texts, and what the run of each was; none if there is no such file.

    UsageError if it is damaged, or a row lacks a setting that makes a run another one: what is missing is not guessed.
    """
    read = []
    for number, row in enumerate(read_csv(path, dtype=str, keep_default_na=False).to_dict("records"), 2):
        try:
            if pd.isna(list(row.values())).any():
                raise ValueError("the line ends early")
            read_row_result(row)
            check_format(row)
            read.append((row, read_config({name: row[name] or None for name in COLUMNS if name in row})))
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise UsageError(f"{path}, line {number}: not as report.py writes it: {error}") from error
    return read


def write_table(path: Path, table: pd.DataFrame, varying: Iterable[str] = ()) -> None:
    """Write what `read_table` reads back."""
    first = dict.fromkeys([*varying, "seed", "epochs"])
    columns = ["run", *first, *RESULTS, "format", *(name for name in COLUMNS if name not in first)]
    write_csv(path, table.assign(best_epoch=table["best_epoch"].astype("Int64"))[columns])


def keep_newest(table: pd.DataFrame) -> pd.DataFrame:
    """Return one run of each setting and seed: the last one."""
    return table.drop_duplicates([name for name in COLUMNS if name != "teacher"], keep="last")


def find_varying(table: pd.DataFrame) -> list[str]:
    """Return the settings in which the runs differ but for the seed, at least the optimizer."""
    names = dict.fromkeys([*FIRST, *COLUMNS])
    return [name for name in names if table[name].nunique() > 1 and name != "seed"] or ["optimizer"]


def sort_runs(table: pd.DataFrame, varying: Sequence[str]) -> pd.DataFrame:
    """Sort by what varies, numbers as numbers."""

    def sortable(column: pd.Series) -> pd.Series:
        numbers = pd.to_numeric(column, errors="coerce")
        return column if numbers.isna().any() else numbers

    ascending = [*(name not in DESCENDING for name in varying), True]
    return table.sort_values([*varying, "seed"], ascending=ascending, key=sortable, kind="stable")


@dataclass(frozen=True, eq=False)
class Settings:
    """Runs grouped by their settings.

    Attributes:
        table: All of them.
        varying: The settings in which they differ but for the seed.
        columns: Those of them that tell the runs apart.
        follows: By the name of each other one, the column from which it follows, such as a weight decay from the
            optimizer.
        parts: The runs of each setting, by a label.
    """

    table: pd.DataFrame
    varying: list[str]
    columns: list[str]
    follows: dict[str, str]
    parts: dict[str, pd.DataFrame]

    def describe(self) -> dict[str, str]:
        """Return what all runs have in common, as texts by label."""
        first = self.table.iloc[0]
        config = read_config({name: first[name] or None for name in COLUMNS})
        return describe(config, count_parameters(config), without=[*self.varying, "seed"])


def group_runs(table: pd.DataFrame, varying: list[str]) -> Settings:
    """Group runs by the settings in which they vary."""
    columns: list[str] = []
    follows = {}
    for name in varying:
        leaders = [leader for leader in columns if leader in LEADERS]
        leader = next((each for each in leaders if table.groupby(each)[name].nunique().max() == 1), None)
        if leader:
            follows[name] = leader
        else:
            columns.append(name)
    parts = [part for _, part in table.groupby(varying, sort=False, dropna=False)]
    return Settings(table, varying, columns, follows, dict(zip(label_settings(parts, columns), parts, strict=True)))


def label_settings(parts: Sequence[pd.DataFrame], columns: Sequence[str]) -> list[str]:
    """Tell settings apart in words: optimizer, learning rate and batch size, and what is not as in most of them."""
    firsts = [part.iloc[0] for part in parts]
    usual = set()
    for name in set(columns) - set(FIRST):
        counts = Counter(first[name] for first in firsts)
        usual |= {(name, value) for value, count in counts.items() if 2 * count > len(parts)}
    labels = []
    for first in firsts:
        chosen = [name for name in columns if (name, first[name]) not in usual]
        labels.append(", ".join(name_value(name, first[name]) for name in chosen or columns))
    return labels


def name_value(name: str, text: str) -> str:
    return text if name == "optimizer" else f"{TITLES.get(name, name)} {shorten(name, text) or 'none'}"


def shorten(name: str, text: str) -> str:
    """Return a setting's text for people: short numbers, and the start of a SHA-256."""
    if name.endswith("sha256"):
        return text[:8]
    try:
        return text if text.isdecimal() else f"{float(text):g}"
    except ValueError:
        return text


def read_reference(path: Path) -> pd.DataFrame:
    """Return the figures of others as texts, settings as `runs.list_texts` writes them; empty if there is no such file.
    UsageError if it is damaged, or has a value that is none.
    """
    table = read_csv(path, None, dtype=str, keep_default_na=False)
    try:
        for column in table:
            if column in COLUMNS:
                table[column] = [normalize_value(column, text) for text in table[column]]
            elif column == "accuracy":
                table[column].replace("", "nan").astype(float)
    except (ValueError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from error
    return table


def read_csv(path: Path, column: str | None = "run", **options: Any) -> pd.DataFrame:
    """Read a table, which is empty if there is no such file; UsageError if it is damaged, or lacks a column."""
    if not path.exists():
        return pd.DataFrame()
    try:
        table = pd.read_csv(path, **options)
    except ValueError as error:
        raise UsageError(f"{path}: damaged: {' '.join(str(error).split())}") from error
    if column and column not in table:
        raise UsageError(f"{path}: damaged: has no column {column}")
    return table


def write_csv(path: Path, table: pd.DataFrame) -> None:
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())
