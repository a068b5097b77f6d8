"""Runs made into a page: tables in Markdown, CSV and LaTeX, curves, and what was found, from what runs left."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import optuna
import optuna.visualization.matplotlib as plots
import pandas as pd
from matplotlib import pyplot
from optuna.study import Study
from tabulate import tabulate

from analysis import figures
from analysis.figures import save
from core.errors import SettingError, UsageError
from core.files import write_bytes
from core.markdown import markdown_table
from core.shell import command_line
from experiments.runs import COLUMNS, RESULTS, Run, canonical, read_cells, read_runs, row_of_run, texts_of
from experiments.statistics import (
    PLAIN,
    SIGNED,
    agreement,
    compare_groups,
    interval,
    mean_interval,
    minus_baseline,
    prediction,
    scored,
)
from experiments.study import searches

TITLES = {
    "batch_size": "batch size",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "best_val_acc": "best validation accuracy, %",
    "test_acc_at_best_val": "test accuracy, %, epoch chosen on validation",
    "best_test_acc": "test accuracy, %, epoch chosen on the test set",
    "last_test_acc": "test accuracy, %, last epoch",
}
REFERENCE = {"best_epoch": "report: best epoch", "accuracy": "report: accuracy, %"}  # of reference.csv
TAGS = {f"{part}/{score}" for part in ("train", "val", "test") for score in ("loss", "acc")}  # in curves.csv
ACCURACY, CURVES, DIFFERENCES = "accuracy.png", "curves.png", "differences.png"  # each with what it shows:
PICTURES = {
    ACCURACY: "Test accuracy: each run, the mean and its 95% interval",
    CURVES: "Accuracy over epochs",
    DIFFERENCES: "Differences paired by seed, their mean and its 95% interval",
}
MINUS = "minus baseline, points"
CORRUPTED = "corrupted.csv"  # of benchmarks.corruption
KNOWN_RESULTS = Path(__file__).parent.parent / "results"
SEVERAL = "Several seeds: mean ± standard deviation (95% interval of the mean, Student's t); seconds: median."
SECONDS = "Seconds are wall time; those of runs side by side are no measure of speed."
NAMES = {"train": "training", "val": "validation", "test": "test"}
Panels: TypeAlias = dict[str, dict[str, list[dict[int, float]]]]  # by title, by group, of each run, by epoch
PANELS = 4  # side by side in a figure
DESCENDING = ("optimizer", "lr", "batch_size")  # columns that come first, in the order of the report's table


def write_page(
    folders: Sequence[Path],
    results_dir: Path,
    name: str | None,
    seeds: str | None,
    compare: Sequence[str],
    baseline: str | None,
) -> Path:
    """Write the page of a set of runs, and what lies beside it, into a folder of this name, else the first folder's."""
    folder = results_dir / (name or folders[0].resolve().name)
    runs = find_runs(folders)
    cells, curves = collect(runs, folder)
    if cells.empty:
        raise UsageError(f"{', '.join(map(str, folders))}: none of {len(runs)} runs is finished")
    varying = varying_settings(cells)
    cells = in_order(cells, varying)
    wanted = [each.strip() for each in seeds.split(",")] if seeds else list(cells["seed"])
    if missing := sorted(set(wanted) - set(cells["seed"])):
        raise SettingError("seeds", seeds, f"no run has seed {missing[0]}")
    chosen = cells[cells["seed"].isin(wanted)]
    settings = by_setting(chosen, varying)
    comparison = compare_groups(chosen, compare) if compare else None
    own, known = (path / folder.name / "reference.csv" for path in (folder.parent, KNOWN_RESULTS))
    reference = read_reference(own if own.exists() else known)
    theirs = [figures_of_others(part, reference).get("accuracy") for part in settings.values()]
    both = [(scored(part), float(figure)) for part, figure in zip(settings.values(), theirs, strict=True) if figure]
    table = table_of(settings, varying, reference, baseline)
    searched = [search for path in folders for search in searches(path)]

    folder.mkdir(parents=True, exist_ok=True)
    for old in (path for pattern in ("curve-*.png", "comparison.*", *PICTURES) for path in folder.glob(pattern)):
        old.unlink()
    draw(settings, varying, curves, folder)
    if comparison:
        label = "difference of test accuracy, percentage points"
        save(folder / DIFFERENCES, figures.dots(comparison.differences, label, zero=True))
    draw_searches(searched, folder)
    write_cells(folder / "cells.csv", cells, varying)
    if len(curves):
        write(folder / "curves.csv", curves.to_csv(index=False, lineterminator="\n"))
    options = {"--name": [name], "--seeds": [seeds], "--compare": compare, "--baseline": [baseline]}
    notes = folder / "notes.md"
    parts = [
        f"# {folder.name}",
        comparison.answer if comparison else "",
        notes.read_text(encoding="utf-8").strip() if notes.exists() else "",
        origin(folders, folder, options),
        write_table(folder / "table", table),
        f"Baseline: {baseline}; differences are paired by seed, their intervals are not corrected." if baseline else "",
        f"{SEVERAL if any(len(part) > 1 for part in settings.values()) else ''} {SECONDS}".strip(),
        agreement(both),
        optimism(chosen),
        f"## Compared\n\n{write_table(folder / 'comparison', comparison.figures)}" if comparison else "",
        *(f"![{text}]({name})" for name, text in PICTURES.items() if (folder / name).exists()),
        *(f"![A search: {path.stem}]({path.name})" for path in sorted(folder.glob("search-*.png"))),
        unfinished(runs),
    ]
    write(folder / "README.md", "\n\n".join(filter(None, parts)) + "\n")
    return folder / "README.md"


def find_runs(folders: Sequence[Path]) -> dict[str, Run]:
    """All runs in and below some folders, each once, by its path below its folder.

    Where runs of two folders would have the same key, each has its folder before it, so that no order of the folders
    makes another key.
    """
    found: dict[Path, tuple[str, Path, Run]] = {}
    for root in folders:
        for run in read_runs(root):
            key = run.folder.relative_to(root).as_posix()
            key = f"{run.name}/{run.version}" if key in (".", run.version) else key
            found.setdefault(run.folder.resolve(), (key, root, run))
    times = Counter(key for key, _, _ in found.values())
    return {key if times[key] == 1 else f"{root.as_posix()}/{key}": run for key, root, run in found.values()}


def collect(runs: dict[str, Run], folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Finished runs, a row each, and their curves, a row an epoch; those that only the CSV files know come first.

    Settings are texts, as `runs.texts_of` writes them; results are numbers.
    """
    finished = {key: run for key, run in runs.items() if run.result}
    cells = [row for row in read_table(folder / "cells.csv") if row["run"] not in finished]
    old = read_csv(folder / "curves.csv", index_col="run")
    curves = [old[~old.index.isin(finished)]]
    for key, run in finished.items():
        scalars = {tag.replace("/", "_"): values for tag, values in run.curves().items() if tag in TAGS}
        cells.append({"run": key} | row_of_run(run, scalars))
        of_run = pd.DataFrame(scalars).rename_axis("epoch").reset_index().round(5)
        curves.append(of_run.assign(run=key).set_index("run"))
    table = pd.DataFrame(cells, columns=["run", "format", *COLUMNS, *RESULTS])
    table[list(RESULTS)] = table[list(RESULTS)].astype(float)
    points = [part for part in curves if len(part)]
    return (
        table.round({score: 1 if score == "seconds" else 2 for score in RESULTS}),
        pd.concat(points).reset_index() if points else pd.DataFrame(),
    )


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a `cells.csv`, as `collect` has them; none if there is no such file."""
    if not path.exists():
        return []
    return [
        {"run": row["run"]} | texts_of(config) | {name: float(row[name]) for name in RESULTS if row.get(name)}
        for row, config in read_cells(path)
    ]


def write_cells(path: Path, cells: pd.DataFrame, varying: Sequence[str] = ()) -> None:
    """What `read_table` reads back."""
    first = dict.fromkeys([*varying, "seed", "epochs"])
    columns = ["run", *first, *RESULTS, "format", *(name for name in COLUMNS if name not in first)]
    cells = cells.assign(best_epoch=cells["best_epoch"].astype("Int64"))
    write(path, cells[columns].to_csv(index=False, lineterminator="\n"))


def varying_settings(cells: pd.DataFrame) -> list[str]:
    """The settings in which the runs differ but for the seed, at least the optimizer, in the order of the columns."""
    varying = [flag for flag in COLUMNS if cells[flag].nunique() > 1 and flag != "seed"] or ["optimizer"]
    return sorted(varying, key=lambda flag: (DESCENDING.index(flag) if flag in DESCENDING else len(DESCENDING), flag))


def in_order(cells: pd.DataFrame, varying: Sequence[str]) -> pd.DataFrame:
    """Sorted by what varies, numbers as numbers."""

    def sortable(column: pd.Series) -> pd.Series:
        numbers = pd.to_numeric(column, errors="coerce")
        return column if numbers.isna().any() else numbers

    ascending = [*(flag not in DESCENDING for flag in varying), True]
    return cells.sort_values([*varying, "seed"], ascending=ascending, key=sortable)


def by_setting(cells: pd.DataFrame, varying: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The runs of each setting, by its label; a flag that follows from the optimizer needs no name."""
    parts = [part for _, part in cells.groupby(list(varying), sort=False, dropna=False)]
    return dict(zip(labels(parts, told(cells, varying)), parts, strict=True))


def told(cells: pd.DataFrame, varying: Sequence[str]) -> list[str]:
    """The settings that tell the runs apart, without those that follow from the optimizer."""
    return [flag for flag in varying if flag == "optimizer" or cells.groupby("optimizer")[flag].nunique().max() > 1]


def labels(parts: Sequence[pd.DataFrame], flags: Sequence[str]) -> list[str]:
    """What tells settings apart: optimizer, learning rate and batch size, and what is not as in most of them."""
    firsts = [part.iloc[0] for part in parts]
    usual: dict[str, str] = {}
    for flag in set(flags) - set(DESCENDING):
        value, times = Counter(first[flag] for first in firsts).most_common(1)[0]
        usual |= {flag: value} if 2 * times > len(parts) else {}
    return [
        ", ".join(named(flag, first[flag]) for flag in flags if first[flag] != usual.get(flag)) or "as most"
        for first in firsts
    ]


def named(flag: str, text: str) -> str:
    return text if flag == "optimizer" else f"{TITLES.get(flag, flag)} {shown(flag, text) or 'none'}"


def shown(flag: str, text: str) -> str:
    """A setting's text for people: short numbers, and the start of a SHA-256."""
    if flag.endswith("sha256"):
        return text[:8]
    try:
        return text if text.isdecimal() else f"{float(text):g}"
    except ValueError:
        return text


def table_of(
    settings: dict[str, pd.DataFrame], varying: Sequence[str], reference: pd.DataFrame, baseline: str | None = None
) -> pd.DataFrame:
    """A row a setting, as texts, with the interval of its mean if there are several seeds, beside others' figures."""
    rows = []
    cells = pd.concat(settings.values())
    for part in settings.values():
        first = part.iloc[0]
        row = {TITLES.get(flag, flag): shown(flag, first[flag]) for flag in varying}
        row["best epoch"] = ", ".join(f"{epoch:g}" for epoch in part["best_epoch"].dropna())
        row |= {TITLES[score]: interval(part[score].dropna()) for score in RESULTS[1:-1]}
        if baseline:
            row[MINUS] = minus_baseline(cells, part, baseline, varying)
        rows.append(row | beside(part, reference))
    if baseline and not any(row[MINUS] for row in rows):
        raise SettingError("baseline", baseline, "no setting differs in these flags alone; name all that differ")
    table = pd.DataFrame(rows).fillna("")
    table["seconds"] = [f"{part['seconds'].median():.0f}" for part in settings.values()]
    return table.loc[:, (table != "").any()]


def write_table(path: Path, table: pd.DataFrame) -> str:
    """Write a table of texts as CSV and LaTeX (of the package booktabs), and return it in Markdown."""
    write(path.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
    latex = tabulate(table.to_dict("list"), "keys", "latex_booktabs", disable_numparse=True)
    write(path.with_suffix(".tex"), latex + "\n")
    markdown = markdown_table(list(table), table.values.tolist())
    return f"{markdown}\n\nThe same as [CSV]({path.name}.csv) and [LaTeX]({path.name}.tex)."


def beside(part: pd.DataFrame, reference: pd.DataFrame) -> dict[str, str]:
    """The columns of reference.csv for a setting, and how its accuracy agrees with the report's."""
    theirs = figures_of_others(part, reference)
    row = {REFERENCE.get(column, column): text for column, text in theirs.items()}
    if theirs.get("accuracy"):
        runs, figure = scored(part), float(theirs["accuracy"])
        row |= {REFERENCE["accuracy"]: PLAIN(figure), "ours minus report's, points": SIGNED(runs.mean() - figure)}
        if len(runs) > 1:
            low, high = prediction(runs)
            answer = "yes" if low <= figure <= high else "no"
            row["report's within 95% prediction interval"] = f"{answer} ({PLAIN(low)} to {PLAIN(high)})"
    return row


def figures_of_others(part: pd.DataFrame, reference: pd.DataFrame) -> dict[str, str]:
    """The row of reference.csv whose flags a setting has, without these; its texts are empty if there is none."""
    flags = [flag for flag in reference if flag in COLUMNS]
    same = reference[(reference[flags] == part.iloc[0][flags]).all(axis=1)]
    return {column: same[column].iloc[0] if len(same) else "" for column in reference.columns.drop(flags)}


def optimism(cells: pd.DataFrame) -> str:
    """What choosing the epoch on the test set adds, where it was done."""
    gain = (cells["best_test_acc"] - cells["last_test_acc"]).dropna()
    text = "Choosing the epoch on the test set adds {:.2f} points to the last epoch's accuracy ({:.2f} to {:.2f})."
    return "" if gain.empty else text.format(gain.mean(), gain.min(), gain.max())


def read_reference(path: Path) -> pd.DataFrame:
    """The figures of others as texts, settings as `runs.texts_of` writes them; empty if there is no such file.

    UsageError if it is damaged, or has a value that is none.
    """
    table = read_csv(path, dtype=str, keep_default_na=False)
    try:
        for column in table:
            if column in COLUMNS:
                table[column] = [canonical(column, text) for text in table[column]]
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


def origin(folders: Sequence[Path], page: Path, options: Mapping[str, Sequence[str | None]]) -> str:
    """The commands that make the page in the folder `page`: the sweep, anew or from the table there; the report."""
    command = ["python", "report.py", *(path.as_posix() for path in folders)]
    for flag, values in options.items():
        command += [flag, *filter(None, values)] if any(values) else []
    lines = [f"    {command_line(*command)}"]
    if (plan := Path("recipes") / "sweeps" / f"{folders[0].resolve().name}.yaml").exists():
        sweep = ["python", "sweep.py", "--config", plan.as_posix()]
        again = command_line(*sweep, "--reuse", (page / "cells.csv").as_posix())
        lines = [f"    {command_line(*sweep)}", *lines]
        lines += [f"\nWith the results beside this page, instead of training anew:\n\n    {again}"]
    return "\n".join(lines)


def unfinished(runs: dict[str, Run]) -> str:
    """The runs that have no result yet, and how far they are; not those that were begun anew since."""
    ended = {(run.folder.parent, run.config.identity()) for run in runs.values() if run.result}
    lines = []
    for key, run in runs.items():
        if not run.result and (run.folder.parent, run.config.identity()) not in ended:
            curves = run.curves()
            done = max(curves.get("train/acc", {0: 0.0}))
            score = next((curves[tag] for tag in ("val/acc", "test/acc") if tag in curves), {})
            best = f", best so far {max(score.values()):.2%}" if score else ""
            lines.append(f"- `{key}`: {done} of {run.config.epochs} epochs{best}")
    return "\n".join(["Not finished:\n", *lines]) if lines else ""


def draw(settings: dict[str, pd.DataFrame], varying: Sequence[str], curves: pd.DataFrame, folder: Path) -> None:
    """ACCURACY, and CURVES if its lines can be told apart."""
    scores = {name: scored(part).dropna() for name, part in settings.items()}
    rows = {name: (list(values), mean_interval(values)) for name, values in scores.items() if len(values)}
    if rows:
        on_test = any((part["select_on"] == "test").any() for part in settings.values())
        label = "test accuracy, %" + ", epoch chosen on the test set" * on_test
        save(folder / ACCURACY, figures.dots(rows, label))
    panels, label = curves_by_panel(list(settings.values()), varying, curves) if len(curves) else ({}, "")
    if panels:
        save(folder / CURVES, figures.comparison(panels, label))


def curves_by_panel(parts: Sequence[pd.DataFrame], varying: Sequence[str], curves: pd.DataFrame) -> tuple[Panels, str]:
    """For `figures.comparison`, the curves that chose the epochs, and what they are. They are in one panel, or in one
    for each value of the setting that leaves the fewest lines to tell apart, the same in all; in none if those are too
    many."""
    own = told(pd.concat(parts), varying)
    drawn = [(part, found) for part in parts if (found := list(accuracies(part, curves)))]
    choices: list[tuple[int, Panels]] = []
    for flag in ("", *own):
        panels: Panels = {}
        names = labels([part for part, _ in drawn], [each for each in own if each != flag])
        for name, (part, found) in zip(names, drawn, strict=True):
            title = named(flag, part.iloc[0][flag]) if flag else ""
            panels.setdefault(title, {})[name] = [values for _, values in found]
        alike = len({tuple(groups) for groups in panels.values()}) == 1
        if alike and len(panels) <= PANELS and len(panels[title]) <= len(figures.COLOURS):
            choices.append((len(panels[title]) if flag else 0, panels))
    stages = {f"{NAMES[stage]} accuracy" for _, found in drawn for stage, _ in found}
    return min(choices, key=lambda choice: choice[0], default=(0, {}))[1], " or ".join(sorted(stages)) + ", %"


def accuracies(part: pd.DataFrame, curves: pd.DataFrame) -> Iterator[tuple[str, dict[int, float]]]:
    """Of each run, over epochs, the accuracy that chose one, and on which images it is: on validation or the test set;
    on training if none did."""
    for run, chosen_on in zip(part["run"], part["select_on"], strict=True):
        own = curves[curves["run"] == run].set_index("epoch")
        for stage in (chosen_on, "train"):
            if f"{stage}_acc" in own and len(values := own[f"{stage}_acc"].dropna()):
                yield stage, {int(epoch): float(value) for epoch, value in values.items()}  # type: ignore[arg-type]
                break


def draw_searches(searched: Sequence[Study], folder: Path) -> None:
    """Of each search Optuna's slice plot and, if it was over several flags, its plot of their importance.

    Importance is by PED-ANOVA (Watanabe et al. 2023). Where no journal is at hand, earlier pictures stay.
    """
    for old in folder.glob("search-*.png") if searched else ():
        old.unlink()
    target: Any = {"target_name": "validation accuracy"}
    for number, study in enumerate(searched):
        with matplotlib.rc_context({"savefig.bbox": "tight"}):  # and Optuna sets a style
            drawn: dict[str, Any] = {"slice": plots.plot_slice(study, **target)}
            if len(study.best_params) > 1:
                by = optuna.importance.PedAnovaImportanceEvaluator()
                drawn["importance"] = plots.plot_param_importances(study, evaluator=by, **target)
            for kind, axes in drawn.items():
                figure = np.ravel(axes)[0].figure
                figure.suptitle(study.study_name)
                for each in np.ravel(axes):
                    each.tick_params(axis="x", which="both", labelrotation=45, labelsize=8)
                save(folder / f"search-{number:02d}-{kind}.png", figure)
                pyplot.close(figure)


def write(path: Path, text: str) -> None:
    write_bytes(path, text.encode())
