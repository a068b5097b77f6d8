"""The pictures of a report: accuracies of settings, over learning rate, over epochs, over severity of corruption."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.charts import Row, plot_heat_map, plot_lines, plot_rows
from analysis.figures import COLOURS
from experiments.statistics import PLAIN, mean_interval, scores
from experiments.tables import labels, named

COMMON = ("optimizer", "network", "width", "normalize", "random_corruption", "crop", "batch_size", "epochs")
NAMES = {"train": "training", "val": "validation", "test": "test"}
PANELS = 4  # side by side in a figure
LINES = "thin lines: runs; thick lines: their mean"
Settings: TypeAlias = Mapping[str, pd.DataFrame]  # the runs of each setting, by label
Panels: TypeAlias = dict[str, dict[str, list[dict[float, float]]]]  # by title, by group, of each run, by place


def draw_accuracies(settings: Settings, references: Mapping[str, float]) -> Figure:
    """Draw the test accuracy of each run, by setting, beside the report's figures, by label."""
    rows = {}
    for label, part in settings.items():
        values = scores(part).dropna()
        rows[label] = Row(list(values), mean_interval(values), references.get(label))
    return plot_rows(
        rows, "test accuracy, %", f"Test accuracy{how_chosen(settings)}\n{what_is_common(pd.concat(settings.values()))}"
    )


def draw_differences(differences: Mapping[str, pd.Series], settings: Settings) -> Figure:
    """Draw differences paired by seed, the largest first."""
    order = sorted(
        (label for label in differences if len(differences[label])), key=lambda label: -differences[label].mean()
    )
    rows = {label: Row(list(differences[label]), mean_interval(differences[label])) for label in order}
    common = what_is_common(pd.concat(settings.values()))
    title = f"Difference of test accuracy, paired by seed{how_chosen(settings)}\n{common}"
    return plot_rows(rows, "difference, percentage points", title, zero=True)


def draw_heat_map(settings: Settings, columns: Sequence[str], references: Mapping[str, float]) -> Figure | None:
    """Draw mean test accuracies, optimizer and learning rate by batch size, the report's figures in brackets; None if
    there is one row or column, or other settings vary too.
    """
    own = [name for name in columns if name != "batch_size"]
    if not {"batch_size"} < set(columns) <= {"optimizer", "lr", "batch_size"}:
        return None
    firsts = {label: part.iloc[0] for label, part in settings.items()}
    rows = {label: ", ".join(named(name, first[name]) for name in own) for label, first in firsts.items()}
    sizes = sorted({first["batch_size"] for first in firsts.values()}, key=int)
    names = list(dict.fromkeys(rows.values()))
    values, texts = np.full((len(names), len(sizes)), np.nan), np.full((len(names), len(sizes)), "", object)
    for label, part in settings.items():
        place = names.index(rows[label]), sizes.index(firsts[label]["batch_size"])
        values[place] = scores(part).mean()
        texts[place] = f"{values[place]:.2f}" + (f"\n({PLAIN(references[label])})" if label in references else "")
    title = (
        f"Mean test accuracy, %{how_chosen(settings)}\n{what_is_common(pd.concat(settings.values()))}"
        + "\n(in brackets: the report)" * bool(references)
    )
    return plot_heat_map(values, names, [f"batch size {size}" for size in sizes], title, texts)


def draw_rates(table: pd.DataFrame, columns: Sequence[str]) -> Figure | None:
    """Draw the accuracy over the learning rate, on validation images if all runs have some; None if nothing was run
    with three rates, or too much to tell apart.
    """
    others = [name for name in columns if name != "lr"]
    validated = bool(table["best_val_acc"].notna().all())
    values = table["best_val_acc"] if validated else scores(table)
    points = table.assign(point=[{float(lr): value} for lr, value in zip(table["lr"], values, strict=True)])
    parts = [part for _, part in points.groupby(others, sort=False)] if others else [points]
    parts = [part for part in parts if part["lr"].nunique() > 2]
    if not 0 < len(parts) <= len(COLOURS):
        return None
    groups = {
        label or "all runs": list(part["point"]) for label, part in zip(labels(parts, others), parts, strict=True)
    }
    images = "validation" if validated else "test"
    title = (
        f"Accuracy on the {images} images over learning rate; dots: runs, lines: their mean\n{what_is_common(table)}"
    )
    return plot_lines({"": groups}, ("learning rate", f"{images} accuracy, %"), title, log=True)


def draw_curves(settings: Settings, columns: Sequence[str], curves: pd.DataFrame) -> Figure | None:
    """Draw the curves that chose the epochs; None if there are none, or too many to tell apart."""
    drawn, stages = {}, set()
    for label, part in settings.items():
        if found := list(accuracies(part, curves)):
            drawn[label] = [values for _, values in found]
            stages |= {NAMES[stage] for stage, _ in found}
    places = arrange([settings[label] for label in drawn], columns)
    if not places:
        return None
    panels: Panels = {}
    for (heading, line), runs in zip(places, drawn.values(), strict=True):
        panels.setdefault(heading, {})[line] = runs
    images = " or ".join(sorted(stages))
    title = f"Accuracy on the {images} images over epochs; {LINES}\n{what_is_common(pd.concat(settings.values()))}"
    return plot_lines(panels, ("epoch", f"{images} accuracy, %"), title)


def accuracies(part: pd.DataFrame, curves: pd.DataFrame) -> Iterator[tuple[str, dict[float, float]]]:
    """Yield for each run the accuracy that chose an epoch, in percent by epoch, and on which images it is: validation
    or the test set; on training images if none chose.
    """
    for run, chosen_on in zip(part["run"], part["select_on"], strict=True):
        own = curves[curves["run"] == run].set_index("epoch")
        for stage in (chosen_on, "train"):
            if f"{stage}_acc" in own and len(values := own[f"{stage}_acc"].dropna()):
                yield stage, {int(epoch): 100 * value for epoch, value in values.items()}  # type: ignore[call-overload]
                break


def draw_severities(settings: Settings, columns: Sequence[str], corrupted: pd.DataFrame) -> Figure | None:
    """Draw the accuracy over the severity of corruption, 0 for clean images: in a panel for each corruption; of many
    settings, their mean over the corruptions. None if there are too many to tell apart.
    """
    parts = [part for part in settings.values() if part["run"].isin(corrupted["run"]).any()]
    places = arrange(parts, columns)
    if not places:
        return None
    panels: Panels = {}
    for (heading, line), part in zip(places, parts, strict=True):
        for run in part["run"]:
            if len(wide := by_severity(corrupted, run)):
                for kind, values in {heading: wide.mean(axis=1)}.items() if heading else wide.items():
                    panels.setdefault(str(kind), {}).setdefault(line, []).append(values.to_dict())
    images = NAMES[corrupted["on"].iloc[0]]
    title = f"Accuracy on corrupted {images} images{', mean of the corruptions' * bool(places[0][0])}; {LINES}\n"
    labels = "severity; 0: clean", f"{images} accuracy, %"
    return plot_lines(panels, labels, title + what_is_common(pd.concat(settings.values()))) if panels else None


def by_severity(corrupted: pd.DataFrame, run: str) -> pd.DataFrame:
    """Return the accuracies of a run, in percent, a row for each severity (0: clean), a column for each corruption."""
    own = corrupted[corrupted["run"] == run]
    wide = own.dropna(subset="severity").pivot(index="severity", columns="corruption", values="accuracy")
    clean = own.loc[own["corruption"] == "clean", "accuracy"]
    return pd.concat([pd.DataFrame({kind: clean.to_list() for kind in wide}, index=[0]), wide]) if len(wide) else wide


def arrange(parts: Sequence[pd.DataFrame], columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return for each setting the title of its panel and the label of its line in it. There is one panel, without a
    title, or one for each value of the setting that leaves the fewest lines to tell apart, the same in all; none if
    those are too many.
    """
    firsts = [part.iloc[0] for part in parts]
    choices: list[tuple[int, list[tuple[str, str]]]] = []
    for name in ("", *columns):
        headings = [named(name, first[name]) if name else "" for first in firsts]
        places = list(zip(headings, labels(parts, [each for each in columns if each != name]), strict=True))
        groups = {heading: {line for own, line in places if own == heading} for heading in headings}
        count = max(map(len, groups.values()), default=0)
        if len(groups) <= PANELS and count <= len(COLOURS) and len(set(map(frozenset, groups.values()))) == 1:
            choices.append((count if name else 0, places))
    return min(choices, key=lambda choice: choice[0], default=(0, []))[1]


def what_is_common(table: pd.DataFrame) -> str:
    """Say what all runs of a picture have in common."""
    names = [name for name in COMMON if table[name].nunique() == 1]
    return ", ".join(named(name, table[name].iloc[0]) for name in names)


def how_chosen(settings: Settings) -> str:
    on_test = any((part["select_on"] == "test").any() for part in settings.values())
    return ", epoch chosen on the test set" if on_test else ""
