"""The report of a set of runs: a page in Markdown with tables, pictures and what was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from analysis.diagnosis import SPLITS
from analysis.figures import save
from analysis.reports import write_html
from core.errors import SettingError, UsageError
from core.files import write_bytes
from core.markdown import markdown_table
from core.shell import format_command
from experiments import drawings, tables
from experiments.config import ReportSettings
from experiments.runs import COLUMNS, RESULTS, list_texts
from experiments.statistics import (
    ENOUGH,
    PLAIN,
    SIGNED,
    compare_groups,
    describe_agreement,
    predict_interval,
    select_scores,
    subtract_baseline,
    write_interval,
    write_mean,
)
from experiments.tables import CORRUPTED, CURVES, RUNS_CSV, Settings, name_value, shorten
from training.config import RunConfig

TITLES = tables.TITLES | {
    "best_val_acc": "best validation accuracy, %",
    "test_acc_at_best_val": "test accuracy, %, epoch chosen on validation",
    "best_test_acc": "test accuracy, %, epoch chosen on the test set",
    "last_test_acc": "test accuracy, %, last epoch",
}
REFERENCE = {"best_epoch": "report: best epoch", "accuracy": "report: accuracy, %"}  # of reference.csv
PICTURES = {
    "accuracy.png": "Test accuracy of each setting",
    "heat_map.png": "Accuracy by batch size, optimizer and learning rate",
    "rates.png": "Accuracy over learning rate",
    "differences.png": "Differences paired by seed",
    "curves.png": "Accuracy over epochs",
    "severities.png": "Accuracy over severity of corruption",
}
MINUS = "minus baseline, percentage points"
KNOWN_RESULTS = Path(__file__).parent.parent / "results"
SEVERITIES = "severities.csv"  # means over seeds
SEVERAL = "Accuracies are means over seeds ± standard deviation (95% interval, Student's t)."
SECONDS = "Seconds are median wall times, often beside other runs."


def write_page(folders: Sequence[Path], compare: Sequence[str], chosen: ReportSettings) -> Path:
    """Write the report of the runs in some folders; `report.report` has the arguments and the errors."""
    folder = chosen.results_dir / (chosen.name or folders[0].resolve().name)
    if folder.resolve() in [path.resolve() for path in folders]:
        raise SettingError("results_dir", chosen.results_dir, f"{folder} is a folder of runs; name another")
    runs = tables.find_runs(folders)
    table, curves = tables.collect(runs, folder)
    if table.empty:
        raise UsageError(f"{', '.join(map(str, folders))}: none of {len(runs)} runs is finished")
    varying = tables.find_varying(table)
    table = tables.sort_runs(table, varying)
    single = tables.keep_newest(table)
    settings = tables.group_runs(choose_seeds(single, chosen.seeds), varying)
    comparison = compare_groups(settings.table, compare) if compare else None
    differences = subtract_from_each(settings, chosen.baseline) if chosen.baseline else {}
    own, known = (path / folder.name / "reference.csv" for path in (folder.parent, KNOWN_RESULTS))
    reference = tables.read_reference(own if own.exists() else known)
    corrupted = tables.read_csv(folder / CORRUPTED)
    theirs = {label: find_reference(part, reference) for label, part in settings.parts.items()}
    figures_of_others = {label: float(row["accuracy"]) for label, row in theirs.items() if row.get("accuracy")}

    subtracted = comparison.differences if comparison else differences
    drawn = {
        "accuracy.png": drawings.draw_accuracies(settings, figures_of_others),
        "heat_map.png": drawings.draw_heat_map(settings),
        "rates.png": drawings.draw_rates(tables.group_runs(single, tables.find_varying(single))),
        "differences.png": drawings.draw_differences(subtracted, settings) if subtracted else None,
        "curves.png": drawings.draw_curves(settings, curves) if len(curves) else None,
        "severities.png": drawings.draw_severities(settings, corrupted) if len(corrupted) else None,
    }

    folder.mkdir(parents=True, exist_ok=True)
    for old in (path for pattern in ("comparison.*", SEVERITIES, *PICTURES) for path in folder.glob(pattern)):
        old.unlink()
    tables.write_table(folder / RUNS_CSV, table, varying)
    if len(curves):
        tables.write_csv(folder / CURVES, curves)
    for file, figure in drawn.items():
        if figure:
            save(folder / file, figure)
    shown = make_table(settings, theirs, differences)
    several = [SEVERAL] * any(len(part) > 1 for part in settings.parts.values()) + [SECONDS] * ("seconds" in shown)
    options = {"--name": [chosen.name], "--seeds": [chosen.seeds], "--compare": compare}
    options |= {"--baseline": [chosen.baseline]}
    notes, dropped = folder / "notes.md", len(table) - len(single)
    unfinished = sum(run.result is None for run in runs.values())
    parts = [
        f"# {folder.name}",
        describe_runs(settings),
        comparison.answer if comparison else "",
        notes.read_text(encoding="utf-8").strip() if notes.exists() else "",
        list_commands(folders, options),
        write_table(folder / "table", shown),
        f"Baseline: {chosen.baseline}; differences are paired by seed, their intervals are not corrected."
        if differences
        else "",
        " ".join(several),
        f"Of several runs of one setting and seed the newest counts; {dropped} are left out." if dropped else "",
        describe_agreement(
            [(select_scores(settings.parts[label]), figure) for label, figure in figures_of_others.items()]
        ),
        describe_optimism(settings.table),
        f"## Compared\n\n{write_table(folder / 'comparison', comparison.figures)}" if comparison else "",
        summarize_corruptions(folder / SEVERITIES, settings, corrupted) if len(corrupted) else "",
        *(f"![{text}]({name})" for name, text in PICTURES.items() if drawn[name]),
        f"Not finished: {unfinished} of {len(runs)} runs." if unfinished else "",
    ]
    page = folder / "README.md"
    write_bytes(page, ("\n\n".join(filter(None, parts)) + "\n").encode())
    write_html(page)
    return page


def choose_seeds(table: pd.DataFrame, seeds: str | None) -> pd.DataFrame:
    """Return the runs of some seeds, "1,2,3"; SettingError if there is none of one."""
    wanted = [each.strip() for each in seeds.split(",")] if seeds else list(table["seed"])
    if missing := sorted(set(wanted) - set(table["seed"])):
        raise SettingError("seeds", seeds, f"no run has seed {missing[0]}")
    return table[table["seed"].isin(wanted)]


def describe_runs(settings: Settings) -> str:
    """Say what all runs have in common, what of it is not as in the default recipe, and what follows from a column."""
    table, follows = settings.table, settings.follows
    first = table.iloc[0]
    defaults = list_texts(RunConfig(optimizer=first["optimizer"]))
    common = [name for name in COLUMNS if name not in (*settings.varying, "seed")]
    others = [name_value(name, first[name]) for name in common if first[name] != defaults[name] and name != "precision"]
    lines = [
        f"Not the default recipe: {', '.join(others)}."
        if others
        else "The default recipe, except for the columns of the table.",
        f"All runs: {'; '.join(f'{label}: {text}' for label, text in settings.describe().items())}.",
    ]
    for leader in dict.fromkeys(follows.values()):
        names = [name for name in follows if follows[name] == leader]
        firsts = table.drop_duplicates(leader).to_dict("records")
        each = [
            f"{name_value(leader, row[leader])}: {', '.join(name_value(name, row[name]) for name in names)}"
            for row in firsts
        ]
        lines.append(f"With {'; '.join(each)}.")
    return "\n\n".join(lines)


def make_table(
    settings: Settings, theirs: Mapping[str, dict[str, str]], differences: Mapping[str, pd.Series]
) -> pd.DataFrame:
    """Return a row for each setting, as texts, beside the figures of others."""
    rows = []
    for label, part in settings.parts.items():
        row = {TITLES.get(name, name): shorten(name, part.iloc[0][name]) for name in settings.columns}
        epochs = part["best_epoch"].dropna()
        row["best epoch"] = f"{epochs.median():g}" if len(epochs) else ""
        row[TITLES["best_val_acc"]] = write_short(part["best_val_acc"], 2)
        row |= {TITLES[score]: write_mean(part[score].dropna()) for score in RESULTS[2:-1]}
        if differences:
            row[MINUS] = write_mean(differences[label], SIGNED)
        rows.append(row | set_beside(part, theirs[label]))
    table = pd.DataFrame(rows).fillna("")
    if settings.table["seconds"].notna().all():
        table["seconds"] = [f"{part['seconds'].median():.0f}" for part in settings.parts.values()]
    return table.loc[:, (table != "").any()]


def subtract_from_each(settings: Settings, baseline: str) -> dict[str, pd.Series]:
    """Return the differences of each setting from its baseline, by label; SettingError if there are none."""
    table, varying = settings.table, settings.varying
    found = {label: subtract_baseline(table, part, baseline, varying) for label, part in settings.parts.items()}
    if not any(map(len, found.values())):
        raise SettingError("baseline", baseline, "no setting differs in these settings alone; name all that differ")
    return found


def set_beside(part: pd.DataFrame, theirs: dict[str, str]) -> dict[str, str]:
    """Return the columns of reference.csv for a setting, and how its accuracy agrees with the report's."""
    row = {REFERENCE.get(column, column): text for column, text in theirs.items()}
    if theirs.get("accuracy"):
        runs, figure = select_scores(part), float(theirs["accuracy"])
        row |= {REFERENCE["accuracy"]: PLAIN(figure), "ours minus report's": SIGNED(runs.mean() - figure)}
        if len(runs) >= ENOUGH:
            low, high = predict_interval(runs)
            answer = "yes" if low <= figure <= high else "no"
            row["report's within 95% prediction interval"] = f"{answer} ({write_interval((low, high))})"
    return row


def find_reference(part: pd.DataFrame, reference: pd.DataFrame) -> dict[str, str]:
    """Return the row of reference.csv with the settings of a part, without these; empty if there is none."""
    names = [name for name in reference if name in COLUMNS]
    same = reference[(reference[names] == part.iloc[0][names]).all(axis=1)].drop(columns=names)
    return same.iloc[0].to_dict() if len(same) else {}


def write_table(path: Path, table: pd.DataFrame) -> str:
    """Write a table of texts as CSV and LaTeX (of the package booktabs), and return it in Markdown."""
    tables.write_csv(path.with_suffix(".csv"), table)
    latex = tabulate(table.to_dict("list"), "keys", "latex_booktabs", disable_numparse=True)
    write_bytes(path.with_suffix(".tex"), f"{latex}\n".encode())
    shown = markdown_table(list(table), table.values.tolist())
    return f"{shown}\n\nAs files: [CSV]({path.name}.csv) and [LaTeX]({path.name}.tex)."


def summarize_corruptions(path: Path, settings: Settings, corrupted: pd.DataFrame) -> str:
    """Write the mean accuracy of each setting, corruption and severity to a CSV file; return their means over the
    severities, with those of clean images and of JPEG files of quality 75, in Markdown.
    """
    labels = {run: label for label, part in settings.parts.items() for run in part["run"]}
    order = pd.Categorical(corrupted["run"].map(labels), list(settings.parts))
    known = corrupted.assign(setting=order).dropna(subset="setting")
    severe = known.dropna(subset="severity")
    groups = known.groupby(["setting", "corruption", "severity"], sort=False, dropna=False, observed=True)
    by_severity = groups["accuracy"].agg(["mean", "std"]).round(2)
    tables.write_csv(path, by_severity.reset_index().astype({"severity": "Int64"}))
    by_run = known.pivot_table("accuracy", ["setting", "run"], "corruption", sort=False, observed=True)
    by_run["mean of corruptions"] = by_run[severe["corruption"].unique()].mean(axis=1)
    wide = by_run.groupby("setting", observed=True).agg(write_short).rename_axis("accuracy, %").reset_index()
    severities = ", ".join(f"{each:g}" for each in sorted(severe["severity"].unique()))
    return "\n\n".join(
        [
            "## Corrupted images",
            f"Accuracy on the {SPLITS[known['on'].iloc[0]]} images; for a corruption, the mean of "
            f"severities {severities} ([each]({path.name})).",
            markdown_table(list(wide), wide.values.tolist()),
        ]
    )


def write_short(values: pd.Series, digits: int = 1) -> str:
    """Write mean ± standard deviation, as far as there are values."""
    values = values.dropna()
    text = f"{values.mean():.{digits}f}" if len(values) else ""
    return f"{text} ± {values.std():.{digits}f}" if len(values) > 1 else text


def describe_optimism(table: pd.DataFrame) -> str:
    """Say what choosing the epoch on the test set adds, where it was done."""
    gain = (table["best_test_acc"] - table["last_test_acc"]).dropna()
    if gain.empty:
        return ""
    points = f"{gain.mean():.2f} percentage points ({gain.min():.2f} to {gain.max():.2f})"
    return f"Choosing the epoch on the test set adds {points} to the last epoch's accuracy."


def list_commands(folders: Sequence[Path], options: Mapping[str, Sequence[str | None]]) -> str:
    """Return the commands that make the report: sweep.py, report.py."""
    command = ["python", "report.py", *(path.as_posix() for path in folders)]
    for flag, values in options.items():
        command += [flag, *filter(None, values)] if any(values) else []
    lines = [f"    {format_command(*command)}"]
    if (sweep := Path("recipes", "sweeps", f"{folders[0].resolve().name}.yaml")).exists():
        lines.insert(0, f"    {format_command('python', 'sweep.py', '--config', sweep.as_posix())}")
    return "\n".join(lines)
