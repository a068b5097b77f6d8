"""The pictures of a report: accuracies of settings, over learning rate, over epochs, over severity of corruption."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import pandas as pd
from matplotlib.figure import Figure

from analysis.charts import Row, plot_heat_map, plot_lines, plot_rows
from analysis.diagnosis import SPLITS
from analysis.figures import COLOURS
from experiments.statistics import compute_interval, select_scores
from experiments.tables import Settings, label_settings, name_value

PANELS = 4  # side by side in a figure
LINES = "thin lines: runs; thick lines: their mean"
Panels: TypeAlias = dict[str, dict[str, list[dict[float, float]]]]  # by title, by group, of each run, by place


def draw_accuracies(settings: Settings, references: Mapping[str, float]) -> Figure:
    """Draw the test accuracy of each run, by setting, beside the report's figures, by label."""
    rows = {}
    for label, part in settings.parts.items():
        values = select_scores(part).dropna()
        rows[label] = Row(list(values), compute_interval(values), references.get(label))
    return plot_rows(rows, "test accuracy, %", write_title(f"Test accuracy{describe_choice(settings)}", settings))


def draw_differences(differences: Mapping[str, pd.Series], settings: Settings) -> Figure:
    """Draw differences paired by seed, the largest first."""
    named = [(values.mean(), label) for label, values in differences.items() if len(values)]
    rows = {
        label: Row(list(differences[label]), compute_interval(differences[label])) for _, label in sorted(named)[::-1]
    }
    title = write_title(f"Difference of test accuracy, paired by seed{describe_choice(settings)}", settings)
    return plot_rows(rows, "difference, percentage points", title, zero=True)


def draw_heat_map(settings: Settings) -> Figure | None:
    """Draw mean test accuracies, optimizer and learning rate by batch size; None if the batch size does not vary, or
    other settings do too.
    """
    others = [name for name in settings.columns if name != "batch_size"]
    if not {"batch_size"} < set(settings.columns) <= {"optimizer", "lr", "batch_size"}:
        return None
    table = settings.table.astype({"batch_size": int}).assign(score=select_scores(settings.table))
    wide = table.pivot_table("score", others, "batch_size", sort=False).sort_index(axis=1)
    rows = wide.index.to_frame().to_dict("records")
    names = [", ".join(name_value(name, text) for name, text in row.items()) for row in rows]
    title = write_title(f"Mean test accuracy, %{describe_choice(settings)}", settings)
    return plot_heat_map(wide.to_numpy(), names, [f"batch size {size}" for size in wide], title)


def draw_rates(settings: Settings) -> Figure | None:
    """Draw the accuracy over the learning rate, on validation images if all runs have some; None if nothing was run
    with three rates, or too much to tell apart.
    """
    others = [name for name in settings.columns if name != "lr"]
    validated = bool(settings.table["best_val_acc"].notna().all())
    groups: dict[str, list[dict[float, float]]] = {}
    parts = [part for _, part in settings.table.groupby(others or "format", sort=False) if part["lr"].nunique() > 2]
    for label, part in zip(label_settings(parts, others), parts, strict=True):
        values = part["best_val_acc"] if validated else select_scores(part)
        groups[label] = [{float(lr): value} for lr, value in zip(part["lr"], values, strict=True)]
    if not 0 < len(groups) <= len(COLOURS):
        return None
    images = "validation" if validated else "test"
    title = write_title(f"Accuracy on the {images} images; dots: runs, lines: their mean", settings)
    return plot_lines({"": groups}, ("learning rate", f"{images} accuracy, %"), title, log=True)


def draw_curves(settings: Settings, curves: pd.DataFrame) -> Figure | None:
    """Draw the curves that chose the epochs; None if there are none, or too many to tell apart."""
    found = {label: list(find_accuracies(part, curves)) for label, part in settings.parts.items()}
    drawn = {label: runs for label, runs in found.items() if runs}
    panels: Panels = {}
    for (heading, line), label in arrange(settings, list(drawn)).items():
        panels.setdefault(heading, {})[line] = [values for _, values in drawn[label]]
    images = " or ".join(sorted({SPLITS[stage] for runs in drawn.values() for stage, _ in runs}))
    title = write_title(f"Accuracy on the {images} images over epochs; {LINES}", settings)
    return plot_lines(panels, ("epoch", f"{images} accuracy, %"), title) if panels else None


def find_accuracies(part: pd.DataFrame, curves: pd.DataFrame) -> Iterator[tuple[str, dict[float, float]]]:
    """Yield for each run the accuracy that chose an epoch, in percent by epoch, and on which images it is: validation
    or the test set; on training images if none chose.
    """
    for run, chosen_on in zip(part["run"], part["select_on"], strict=True):
        own = curves[curves["run"] == run].set_index("epoch")
        for stage in (chosen_on, "train"):
            if f"{stage}_acc" in own and len(values := own[f"{stage}_acc"].dropna()):
                yield stage, {int(epoch): 100 * value for epoch, value in values.items()}  # type: ignore[call-overload]
                break


def draw_severities(settings: Settings, corrupted: pd.DataFrame) -> Figure | None:
    """Draw the accuracy over the severity of corruption, 0 for clean images: in a panel for each corruption; of many
    settings, their mean over the corruptions. None if there are too many to tell apart.
    """
    known = [label for label, part in settings.parts.items() if part["run"].isin(corrupted["run"]).any()]
    panels: Panels = {}
    for (heading, line), label in arrange(settings, known).items():
        for run in settings.parts[label]["run"]:
            wide = pivot_severities(corrupted, run)
            for kind, values in {heading: wide.mean(axis=1)}.items() if heading else wide.items():
                panels.setdefault(str(kind), {}).setdefault(line, []).append(values.to_dict())
    images = SPLITS[corrupted["on"].iloc[0]]
    title = write_title(f"Accuracy on corrupted {images} images; {LINES}", settings)
    return plot_lines(panels, ("severity; 0: clean", f"{images} accuracy, %"), title) if panels else None


def pivot_severities(corrupted: pd.DataFrame, run: str) -> pd.DataFrame:
    """Return the accuracies of a run, in percent, a row for each severity (0: clean), a column for each corruption."""
    own = corrupted[corrupted["run"] == run]
    wide = own.dropna(subset="severity").pivot(index="severity", columns="corruption", values="accuracy")
    for clean in own.loc[own["corruption"] == "clean", "accuracy"]:
        wide.loc[0] = clean
    return wide.sort_index()


def arrange(settings: Settings, names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the settings of these labels by the titles of their panels and the labels of their lines in it.

    There is one panel, without a title, or one for each value of the setting that leaves the fewest lines to tell
    apart; nothing if those are too many.
    """
    parts = [settings.parts[name] for name in names]
    choices: list[tuple[int, dict[tuple[str, str], str]]] = []
    for split in ("", *settings.columns):
        headings = [name_value(split, part.iloc[0][split]) if split else "" for part in parts]
        lines = label_settings(parts, [name for name in settings.columns if name != split])
        if len(set(headings)) <= PANELS and len(set(lines)) <= len(COLOURS):
            places = zip(headings, lines, strict=True)
            choices.append((len(set(lines)) if split else 0, dict(zip(places, names, strict=True))))
    return min(choices, key=lambda choice: choice[0], default=(0, {}))[1]


def write_title(text: str, settings: Settings) -> str:
    """Add to a title what all runs have in common."""
    known = settings.describe()
    common = [known[label] for label in ("network", "preprocessing", "augmentation", "epochs") if label in known]
    return f"{text}\n{'; '.join(common)}{' epochs' * ('epochs' in known)}"


def describe_choice(settings: Settings) -> str:
    return " (epoch chosen on the test set)" * ("test" in set(settings.table["select_on"]))
