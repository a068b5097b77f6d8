"""Tables, curves and comparisons of any number of runs, from what they left in their log folders.

python report.py logs/coursework
python report.py logs/sgd_vs_adam --seeds 1,2,3,4,5,6,7,8 --compare optimizer=sgd optimizer=adam
python report.py logs/preprocessing --baseline "denoise=none segment=none normalize=dataset"

Writes results/<name>/: README.md, cells.csv (a row a run), curves.csv (a row an epoch) and pictures. Runs whose logs
are on another machine keep what the two CSV files have of them. Two files in that folder come from elsewhere: notes.md
becomes part of the page, and reference.csv has further columns of the table, by the flags that it names; its
`best_epoch` and `accuracy` are the coursework report's.
"""

from __future__ import annotations

import io
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from cifar10.errors import UsageError
from cifar10.storage import write_bytes
from experiments.runs import SCORES, Run, read_runs, row_of_run
from training import figures
from training.cli import Parser, exit_status

TITLES = {
    "batch_size": "batch size",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "best_val_acc": "best validation accuracy, %",
    "test_acc_at_best_val": "test accuracy, %, epoch chosen on validation",
    "best_test_acc": "test accuracy, %, epoch chosen on the test set",
    "last_test_acc": "test accuracy, %, last epoch",
}
THEIRS = {"best_epoch": "report: best epoch", "accuracy": "report: accuracy, %"}  # of reference.csv
FIRST = ("optimizer", "lr", "batch_size")  # columns
RESAMPLES = 9999
PLAIN, SIGNED = "{:.2f}".format, "{:+.2f}".format


def report(
    folders: Sequence[Path],
    name: str | None = None,
    seeds: str | None = None,
    compare: Sequence[str] = (),
    baseline: str | None = None,
    results_dir: Path = Path("results"),
) -> Path:
    """Write the page of a set of runs.

    Args:
        folders: Log folders of runs, or folders of such.
        name: Of the folder in `results_dir`; null takes that of the first log folder.
        seeds: "1,2,3": table and comparison take the runs with these alone; null takes all.
        compare: Two groups, "optimizer=sgd lr=0.05" each, compared by pairs of runs with the same seed.
        baseline: "denoise=none segment=none": the table shows each setting's difference, paired by seed, from the one
            that has these flags and else its own.
        results_dir: In which the folder is.

    Returns:
        The page.

    Raises:
        UsageError: There is no run, or the groups cannot be paired.
    """
    for path in folders:
        if not path.is_dir():
            raise UsageError(f"{path}: no such folder")
    folder = results_dir / (name or folders[0].resolve().name)
    runs = [run for path in folders for run in read_runs(path)]
    cells, curves = collect(runs, folder)
    if cells.empty:
        raise UsageError(f"{', '.join(map(str, folders))}: none of {len(runs)} runs is finished")
    flags = [flag for flag in cells if flag not in {"run", *SCORES}]
    varying = [flag for flag in flags if cells[flag].nunique(dropna=False) > 1 and flag != "seed"]
    varying = sorted(
        varying or ["optimizer"], key=lambda flag: (FIRST.index(flag) if flag in FIRST else len(FIRST), flag)
    )
    downwards = [flag in FIRST for flag in varying]  # the order of the report's table
    cells = cells.sort_values([*varying, "seed"], ascending=[*(not down for down in downwards), True])
    shown = cells[cells["seed"].astype(str).isin(seeds.split(","))] if seeds else cells
    if shown.empty:
        raise UsageError(f"--seeds {seeds}: no run has one of these")
    own = [
        flag
        for flag in varying
        if flag == "optimizer" or shown.groupby("optimizer")[flag].nunique(dropna=False).max() > 1
    ]
    settings = {
        label(own, part.iloc[0][own]): part for _, part in shown.groupby(varying, sort=False, dropna=False)
    }  # a flag that follows from the optimizer needs no name
    answer, comparison = compared(shown, compare) if compare else ("", "")

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("curve-*.png"):
        old.unlink()
    notes = folder / "notes.md"
    parts = [
        f"# {folder.name}",
        answer,
        notes.read_text(encoding="utf-8").strip() if notes.exists() else "",
        origin(folders, name, seeds, compare, baseline),
        table(settings, varying, read_csv(folder / "reference.csv", set()), baseline),
        optimism(shown),
        comparison,
        "![Accuracy over epochs](curves.png)",
        unfinished(runs),
    ]
    draw(settings, curves, folder)
    rest = [flag for flag in flags if flag not in {*varying, "seed", "epochs"}]
    columns = ["run", *dict.fromkeys([*varying, "seed", "epochs"]), *SCORES, *rest]
    write(folder / "cells.csv", cells[columns].to_csv(index=False, lineterminator="\n"))
    write(folder / "curves.csv", curves.to_csv(index=False, lineterminator="\n"))
    write(folder / "README.md", "\n\n".join(filter(None, parts)) + "\n")
    return folder / "README.md"


def collect(runs: Sequence[Run], folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Finished runs, a row each, and their curves, a row an epoch; those that only the CSV files know come first."""
    cells, curves = [], []
    for run in runs:
        if run.result:
            scalars = {
                tag.replace("/", "_"): values
                for tag, values in run.curves().items()
                if tag.split("/")[0] in ("train", "val", "test") and tag.split("/")[1] in ("loss", "acc")
            }
            cells.append(row_of_run(run, scalars))
            of_run = pd.DataFrame(scalars).rename_axis("epoch").reset_index().round(5)
            curves.append(of_run.assign(run=cells[-1]["run"]))
    tables = []
    for name, new in (("cells", pd.DataFrame(cells)), ("curves", pd.concat(curves) if curves else pd.DataFrame())):
        old = read_csv(folder / f"{name}.csv", {"run"})
        if not old.empty and not new.empty:
            old = old[~old["run"].isin(new["run"])]
        tables.append(pd.concat([part for part in (old, new) if not part.empty] or [new], ignore_index=True))
    tables[0] = tables[0].reindex(columns=list(dict.fromkeys([*tables[0].columns, *SCORES])))
    rounded = {score: 1 if score == "seconds" else 2 for score in SCORES}
    return tables[0].round(rounded), tables[1][["run", *tables[1].columns.drop("run")]] if len(tables[1]) else tables[1]


def label(flags: Sequence[str], values: Any) -> str:
    return ", ".join(
        str(value) if flag == "optimizer" else f"{TITLES.get(flag, flag)} {plain(value)}"
        for flag, value in zip(flags, values, strict=True)
    )


def plain(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def scored(part: pd.DataFrame) -> pd.Series:
    """The accuracy that counts: of the epoch chosen on validation; where there is none, as the runs chose it."""
    return part["test_acc_at_best_val"].fillna(part["best_test_acc"]).fillna(part["last_test_acc"])


def table(
    settings: dict[str, pd.DataFrame], varying: Sequence[str], others: pd.DataFrame, baseline: str | None = None
) -> str:
    """A row a setting, with the interval of its mean if there are several seeds, beside the figures of others."""
    rows = []
    cells = pd.concat(settings.values())
    for number, part in enumerate(settings.values()):
        first = part.iloc[0]
        row = {TITLES.get(flag, flag): plain(first[flag]) for flag in varying}
        row["accuracy over epochs"] = f"![](curve-{number:02d}.png)"
        row["best epoch"] = ", ".join(plain(float(epoch)) for epoch in part["best_epoch"].dropna())
        for score in SCORES[1:-1]:
            if any(setting[score].notna().any() for setting in settings.values()):
                row[TITLES[score]] = interval(part[score].dropna())
        if baseline:
            base = select(cells, baseline, "--baseline")
            free = [flag for flag in varying if flag not in {word.partition("=")[0] for word in baseline.split()}]
            base = base[(base[free] == first[free]).all(axis=1)]
            difference = (by_seed(part, "--baseline") - by_seed(base, f"--baseline {baseline}")).dropna()
            row["minus baseline, points"] = interval(difference, SIGNED) if difference.any() else ""
        if not others.empty:
            flags = [flag for flag in others if flag in varying]
            same = others[(others[flags] == first[flags]).all(axis=1)]
            theirs = same.iloc[0] if len(same) else pd.Series(dtype=object)
            for column in others.columns.drop(flags):
                row[THEIRS.get(column, column)] = plain(theirs.get(column))
            if "accuracy" in others:
                row[THEIRS["accuracy"]] = interval(same["accuracy"])
                difference = scored(part).mean() - theirs.get("accuracy", math.nan)
                row["ours minus report's, points"] = interval(pd.Series(difference).dropna(), SIGNED)
        row["seconds"] = f"{part['seconds'].median():.0f}"
        rows.append(row)
    text = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    if baseline:
        text += f"\n\nBaseline: {baseline}; differences are paired by seed."
    if any(len(part) > 1 for part in settings.values()):
        text += "\n\nSeveral seeds: mean ± standard deviation (95% interval of the mean, Student's t); seconds: median."
    return text


def interval(values: pd.Series, number: Callable[[float], str] = PLAIN) -> str:
    if len(values) < 2:
        return number(values.iloc[0]) if len(values) else ""
    error = stats.sem(values)
    text = f"{number(values.mean())} ± {values.std():.2f}"
    if error == 0:
        return text
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
    return f"{text} ({number(low)} to {number(high)})"


def optimism(cells: pd.DataFrame) -> str:
    """What choosing the epoch on the test set adds, where it was done."""
    gain = (cells["best_test_acc"] - cells["last_test_acc"]).dropna()
    if gain.empty:
        return ""
    spread = f"{gain.min():.2f} to {gain.max():.2f}"
    return f"Choosing the epoch on the test set adds {gain.mean():.2f} points to the last epoch's accuracy ({spread})."


def compared(cells: pd.DataFrame, groups: Sequence[str]) -> tuple[str, str]:
    """The answer in two sentences, and the figures that it stands on.

    Paired by seed: the difference's 95% interval by bootstrap (BCa, Efron 1987), p by flipping the signs of all pairs
    (exact as long as 2^pairs is within RESAMPLES), and the effect size, mean / standard deviation of the differences.

    Raises:
        UsageError: Not two groups; a group has several runs of a seed; fewer than two seeds in common.
    """
    if len(groups) != 2:
        raise UsageError("--compare: takes two groups")
    names = [" ".join(shlex.split(group)) for group in groups]
    parts = [select(cells, group, "--compare") for group in names]
    one, other = (by_seed(part, f"--compare {group}") for part, group in zip(parts, names, strict=True))
    seeds = [seed for seed in one.index if seed in other.index]
    if len(seeds) < 2:
        raise UsageError(f"--compare: {len(seeds)} seeds in common, two are needed at least")
    pair = one[seeds].to_numpy(), other[seeds].to_numpy()
    difference = pair[0] - pair[1]
    low = high = effect = math.nan
    if difference.std() > 0:
        effect = difference.mean() / difference.std(ddof=1)
        drawn = stats.bootstrap(
            (difference,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(0)
        )
        low, high = drawn.confidence_interval
    p = stats.permutation_test(
        pair,
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).pvalue
    settings = [setting_of(cells, group, seeds) for group in names]
    better, worse = settings if difference.mean() >= 0 else settings[::-1]
    means = sorted((pair[0].mean(), pair[1].mean()), reverse=True)
    size, ends = abs(difference.mean()), sorted(map(abs, (low, high)))
    answer = (
        f"**With {better} the network reaches {means[0]:.2f}% test accuracy, with {worse} {means[1]:.2f}%: means of "
        f"{len(seeds)} runs each, paired by seed. "
    )
    if p < 0.05:
        answer += (
            f"The difference of {size:.2f} points (95% interval {ends[0]:.2f} to {ends[1]:.2f}) is more than seeds "
        )
        answer += f"explain (p = {p:.2g}).**"
    else:
        answer += f"The difference of {size:.2f} points is within what seeds alone explain (p = {p:.2g}).**"
    figures = {
        "pairs": len(seeds),
        f"{names[0]}, mean, %": PLAIN(pair[0].mean()),
        f"{names[1]}, mean, %": PLAIN(pair[1].mean()),
        "mean difference, points": f"{difference.mean():+.2f}",
        "95% interval (BCa bootstrap)": f"{low:+.2f} to {high:+.2f}",
        "p (sign flips, two-sided)": f"{p:.2g}",
        "effect size (mean / sd of the differences)": f"{effect:.2f}",
        "pairs in which the first is better": f"{(difference > 0).sum()} of {len(seeds)}",
    }
    head = f"## {names[0]} against {names[1]}\n\n"
    return answer, head + pd.Series(figures, name="").rename_axis("paired by seed").to_markdown(disable_numparse=True)


def select(cells: pd.DataFrame, group: str, option: str) -> pd.DataFrame:
    """The runs of a group, "optimizer=sgd lr=0.05"; UsageError, which names the option, if there is none."""
    for word in group.split():
        flag, equals, value = word.partition("=")
        if not equals or flag not in cells:
            raise UsageError(f"{option} {group}: {word} is no flag=value of these runs")
        cells = cells[[plain(cell) == value or same_number(cell, value) for cell in cells[flag]]]
    if cells.empty:
        raise UsageError(f"{option} {group}: no run is in this group")
    return cells


def same_number(cell: Any, value: str) -> bool:
    try:
        return float(cell) == float(value)
    except ValueError:
        return False


def by_seed(part: pd.DataFrame, group: str) -> pd.Series:
    if part["seed"].duplicated().any():
        raise UsageError(f"{group}: several runs have the same seed; name more flags, or --seeds")
    return scored(part).set_axis(part["seed"]).dropna()


def setting_of(cells: pd.DataFrame, group: str, seeds: Sequence[int]) -> str:
    """The group in words, with the learning rate, which is what was tuned."""
    part = select(cells, group, "--compare")
    rates = part.loc[part["seed"].isin(seeds), "lr"].unique()
    text = " ".join(word.removeprefix("optimizer=") for word in group.split())
    return text if "lr=" in group or len(rates) != 1 else f"{text} (learning rate {rates[0]:g})"


def read_csv(path: Path, columns: set[str]) -> pd.DataFrame:
    """A table, empty if there is no such file; UsageError if it is damaged or lacks one of the columns."""
    if not path.exists():
        return pd.DataFrame()
    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise UsageError(f"{path}: damaged: {' '.join(str(error).split())}") from error
    if missing := columns - set(table):
        raise UsageError(f"{path}: has no column {min(missing)}")
    return table


def origin(
    folders: Sequence[Path], name: str | None, seeds: str | None, compare: Sequence[str], baseline: str | None
) -> str:
    command = ["python", "report.py", *(path.as_posix() for path in folders)]
    command += ["--name", name] if name else []
    command += ["--seeds", seeds] if seeds else []
    command += ["--compare", *compare] if compare else []
    command += ["--baseline", baseline] if baseline else []
    lines = [f"    {shlex.join(command)}"]
    if (plan := Path("recipes") / "sweeps" / f"{folders[0].resolve().name}.yaml").exists():
        lines.insert(0, f"    python sweep.py --config {plan.as_posix()}")
    return "\n".join(lines)


def unfinished(runs: Sequence[Run]) -> str:
    """The runs that have no result yet, and how far they are; not those that were begun anew since."""
    ended = {run.name for run in runs if run.result}
    lines = []
    for run in runs:
        if not run.result and run.name not in ended:
            curves = run.curves()
            done = max(curves.get("train/acc", {0: 0.0}))
            score = next((curves[tag] for tag in ("val/acc", "test/acc") if tag in curves), {})
            best = f", best so far {max(score.values()):.2%}" if score else ""
            lines.append(f"- `{run.name}/{run.version}`: {done} of {run.flags['epochs']} epochs{best}")
    return "\n".join(["Not finished:\n", *lines]) if lines else ""


def draw(settings: dict[str, pd.DataFrame], curves: pd.DataFrame, folder: Path) -> None:
    groups = {name: list(accuracies(part, curves)) for name, part in settings.items()}
    groups = {name: found for name, found in groups.items() if found}
    if not groups:
        return
    values = np.concatenate([list(run.values()) for found in groups.values() for run in found])
    save(
        figures.comparison(groups, "accuracy on the images that choose the epoch, else on training images"),
        folder / "curves.png",
    )
    for number, name in enumerate(settings):
        figure = figures.thumbnail(groups.get(name, []), float(np.quantile(values, 0.05)), float(values.max()))
        save(figure, folder / f"curve-{number:02d}.png")


def accuracies(part: pd.DataFrame, curves: pd.DataFrame) -> Iterator[dict[int, float]]:
    """Of each run, over epochs, the accuracy that chose one: on validation or the test set; on training if none did."""
    for run, chosen_on in zip(part["run"], part["select_on"], strict=True):
        own = curves[curves["run"] == run].set_index("epoch")
        for part in (chosen_on, "train"):
            if f"{part}_acc" in own and len(values := own[f"{part}_acc"].dropna()):
                yield {int(epoch): float(value) for epoch, value in values.items()}  # type: ignore[arg-type]
                break


def save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def write(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def parser() -> Parser:
    parser = Parser(description="Tables, curves and comparisons of runs.", usage="%(prog)s FOLDER [FOLDER ...] [flags]")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="Log folders of runs, or of sweeps.")
    parser.add_argument("--compare", nargs=2, default=[], metavar="GROUP", help="Such as optimizer=sgd optimizer=adam.")
    parser.add_function_arguments(report, skip={"folders", "compare"})
    return parser


def main() -> None:
    print(report(**parser().parse_args().as_dict()))


if __name__ == "__main__":
    sys.exit(exit_status(main))
