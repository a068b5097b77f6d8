"""Pictures that compare runs, in the style of `figures`: pure functions from numbers to figures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analysis.figures import COLOURS, STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 9.6  # inches
INTERVAL = "95% interval of the mean (Student's t)"
LABEL = 30  # letters in a line, about a quarter of WIDTH


class Row(NamedTuple):
    """What runs of one setting reached."""

    values: Sequence[float]  # one a run
    interval: tuple[float, float] | None = None  # 95%, of their mean
    reference: float | None = None  # what someone else reached


def plot_rows(rows: Mapping[str, Row], label: str, title: str, zero: bool = False) -> Figure:
    """Draw each row's values as dots, with their mean, its interval and the reference; with `zero`, a line at 0."""
    names = [textwrap.fill(name, LABEL) for name in rows]
    lines = sum(name.count("\n") + 1 for name in names)
    figure = new_figure(WIDTH, 1.6 + 0.1 * len(names) + 0.22 * lines, title)
    axes = figure.subplots()
    one = "one pair of runs" if zero else "one run"
    for place, row in enumerate(rows.values()):
        here = [place] * len(row.values)
        axes.plot(row.values, here, "o", ms=5, color=COLOURS[0], alpha=0.5, mew=0, label=one)
        if len(row.values) > 1:
            axes.plot([np.mean(row.values)], [place], "|", ms=14, mew=2, color="black", label="mean")
        if row.interval:
            axes.plot(row.interval, [place, place], color="black", lw=1.2, label=INTERVAL)
        if row.reference is not None:
            axes.plot([row.reference], [place], "D", ms=6, color=COLOURS[1], mfc="none", mew=1.5, label="the report")
    if zero:
        axes.axvline(0, color="black", ls=":", lw=1)
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    drawn = {line.get_label(): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")}
    figure.legend(list(drawn.values()), list(map(str, drawn)), loc="outside lower center", ncols=len(drawn), fontsize=9)
    return figure


def plot_lines(
    panels: Mapping[str, Mapping[str, Sequence[Mapping[float, float]]]],
    labels: tuple[str, str],
    title: str,
    log: bool = False,
) -> Figure:
    """Draw groups of runs, each run's values by place: each group's mean in a colour and line style of its own, the
    same in all panels, its runs thin behind it.

    The mean is drawn where all runs of a group have a value; if there is no such place, where any has one.

    Args:
        panels: By title, empty if there is one; groups by name, as many as COLOURS in all at most.
        labels: Of the horizontal and of the vertical axis.
        log: Whether the horizontal axis is logarithmic.
    """
    names = list(dict.fromkeys(name for groups in panels.values() for name in groups))
    figure = new_figure(WIDTH, 4.8 + 0.1 * len(names), title)
    places = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (heading, groups) in zip(places, panels.items(), strict=True):
        for name, runs in groups.items():
            number = names.index(name)
            look = {"color": COLOURS[number], "ls": STYLES[number % len(STYLES)]}
            for run in runs if len(runs) > 1 else ():
                axes.plot(list(run), list(run.values()), lw=0.6, alpha=0.5, marker=marker(run), **look)
            own = list(map(set, runs))
            common = sorted(set.intersection(*own) or set.union(*own))
            mean = {place: float(np.mean([run[place] for run in runs if place in run])) for place in common}
            axes.plot(list(mean), list(mean.values()), label=name, marker=marker(mean, "o"), ms=5, **look)
        axes.set(xlabel=labels[0], title=heading, xscale="log" if log else "linear")
        if not log:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(labels[1])
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    if names != [""]:
        columns = max(1, min(4, int(110 / (8 + max(map(len, names))))))  # as many as fit beside each other
        figure.legend([lines[name] for name in names], names, loc="outside lower center", ncols=columns, fontsize=9)
    return figure


def marker(values: Mapping[float, float], shape: str = ".") -> str:
    """Return what marks a line's points: a line of one point would not be seen."""
    return shape if len(values) == 1 else ""


def plot_heat_map(table: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """Draw accuracies in percent, float [R, C], NaN where there is none, each on a ground that is the darker the
    higher it is.
    """
    names = [textwrap.fill(name, LABEL) for name in rows]
    figure = new_figure(WIDTH, 1.4 + 0.45 * len(rows), title)
    axes = figure.subplots()
    low, high = np.nanmin(table), np.nanmax(table)
    axes.imshow(table, cmap="Blues", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=9)
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if value - low > 0.6 * (high - low) else "black"
        if not np.isnan(value):
            text = axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9, color=colour)
            text.set_in_layout(False)
    return figure
