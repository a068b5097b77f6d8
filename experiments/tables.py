"""Runs as tables: found, read from and written to CSV files, grouped by their settings.

A table of runs is a DataFrame with a row for each: `run`, its settings as texts (`runs.list_texts`), its results as
numbers. Curves are another, with a row for each epoch.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import UsageError
from core.files import write_bytes
from experiments.runs import COLUMNS, RESULTS, Run, list_texts, make_row, normalize_value, read_rows, read_runs
from training.config import read_config
from training.description import count_parameters, describe
from training.files import SUMMARY

RUNS_CSV, CURVES, CORRUPTED = "runs.csv", "curves.csv", "corrupted.csv"  # the last is of benchmarks.corruption
TAGS = {f"{part}/{score}" for part in ("train", "val", "test") for score in ("loss", "acc")}  # in CURVES
TITLES = {"lr": "learning rate", "batch_size": "batch size", "weight_decay": "weight decay"}
FIRST = ("optimizer", "network", "width", "lr", "batch_size")  # columns
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
    old = read_csv(folder / CURVES, index_col="run")
    curves = [old[~old.index.isin(finished)]]
    for key, run in sorted(finished.items(), key=lambda pair: (pair[1].folder / SUMMARY).stat().st_mtime):
        scalars = {tag.replace("/", "_"): values for tag, values in run.curves().items() if tag in TAGS}
        rows.append({"run": key} | make_row(run, scalars))
        of_run = pd.DataFrame(scalars).rename_axis("epoch").reset_index().round(5)
        curves.append(of_run.assign(run=key).set_index("run"))
    table = pd.DataFrame(rows, columns=["run", "format", *COLUMNS, *RESULTS])
    table[list(RESULTS)] = table[list(RESULTS)].astype(float)
    points = [part for part in curves if len(part)]
    return (
        table.round({score: 1 if score == "seconds" else 2 for score in RESULTS}),
        pd.concat(points).reset_index() if points else pd.DataFrame(),
    )


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a RUNS_CSV file, as `collect` has them; none if there is no such file."""
    if not path.exists():
        return []
    return [
        {"run": row["run"]} | list_texts(config) | {name: float(row[name]) for name in RESULTS if row.get(name)}
        for row, config in read_rows(path)
    ]


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
    names = sorted(COLUMNS, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
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
    """Group runs by the settings in which they vary.

    A setting with many values decides nothing, such as the learning rates of a search: few runs share one.
    """
    columns: list[str] = []
    follows = {}
    parts = [part for _, part in table.groupby(varying, sort=False, dropna=False)]
    for name in varying:
        for leader in columns:
            texts = pd.to_numeric(table[leader], errors="coerce").isna().all()
            if (texts or 2 * table[leader].nunique() <= len(parts)) and table.groupby(leader)[
                name
            ].nunique().max() == 1:
                follows[name] = leader
                break
        else:
            columns.append(name)
    return Settings(table, varying, columns, follows, dict(zip(label_settings(parts, columns), parts, strict=True)))


def label_settings(parts: Sequence[pd.DataFrame], columns: Sequence[str]) -> list[str]:
    """Tell settings apart in words: optimizer, learning rate and batch size, and what is not as in most of them."""
    firsts = [part.iloc[0] for part in parts]
    usual: dict[str, str] = {}
    for name in set(columns) - set(FIRST):
        value, times = Counter(first[name] for first in firsts).most_common(1)[0]
        usual |= {name: value} if 2 * times > len(parts) else {}
    chosen = [[name for name in columns if first[name] != usual.get(name)] or columns for first in firsts]
    return [", ".join(name_value(name, first[name]) for name in own) for own, first in zip(chosen, firsts, strict=True)]


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
    table = read_csv(path, dtype=str, keep_default_na=False)
    try:
        for column in table:
            if column in COLUMNS:
                table[column] = [normalize_value(column, text) for text in table[column]]
            elif column == "accuracy":
                table[column].replace("", "nan").astype(float)
    except (ValueError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from error
    return table


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        return pd.read_csv(path, **options)
    except ValueError as error:
        raise UsageError(f"{path}: damaged: {' '.join(str(error).split())}") from error


def write_csv(path: Path, table: pd.DataFrame) -> None:
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())
