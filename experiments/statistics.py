"""Statistics of runs: intervals of means, and comparisons paired by seed. Accuracies are in percent."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tabulate import tabulate

from cifar10.errors import SettingError
from experiments.runs import COLUMNS, canonical

RESAMPLES = 9999
MIN_PAIRS = 6  # with fewer, flipping the signs of all pairs cannot give a p below 0.05: the least is 2 / 2^pairs
PLAIN, SIGNED = "{:.2f}".format, "{:+.2f}".format


def scored(part: pd.DataFrame) -> pd.Series:
    """The accuracy that counts: of the epoch chosen on validation; where there is none, as the runs chose it."""
    return part["test_acc_at_best_val"].fillna(part["best_test_acc"]).fillna(part["last_test_acc"])


def interval(values: pd.Series, number: Callable[[float], str] = PLAIN) -> str:
    if len(values) < 2:
        return number(values.iloc[0]) if len(values) else ""
    error = stats.sem(values)
    text = f"{number(values.mean())} ± {values.std():.2f}"
    if error == 0:
        return text
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
    return f"{text} ({number(low)} to {number(high)})"


def paired_differences(one: pd.DataFrame, other: pd.DataFrame, option: str, group: str) -> pd.Series:
    """Of the runs with the same seed, the first's accuracy minus the second's, in points.

    Raises:
        SettingError: A group has several runs of a seed.
    """
    return (by_seed(one, option, group) - by_seed(other, option, group)).dropna()


def compared(cells: pd.DataFrame, groups: Sequence[str]) -> tuple[str, str]:
    """The answer in two sentences, and the figures that it stands on.

    Paired by seed: the difference's 95% interval by bootstrap (BCa, Efron 1987), p by flipping the signs of all pairs
    (exact as long as 2^pairs is within RESAMPLES), and the effect size, mean / standard deviation of the differences.

    Raises:
        UsageError: Not two groups; a group has several runs of a seed; fewer than two seeds in common.
    """
    if len(groups) != 2:
        raise SettingError("compare", " ".join(groups), "takes two groups")
    names = [" ".join(shlex.split(group)) for group in groups]
    parts = [select(cells, group, "compare") for group in names]
    one, other = (by_seed(part, "compare", group) for part, group in zip(parts, names, strict=True))
    seeds = [seed for seed in one.index if seed in other.index]
    if len(seeds) < 2:
        raise SettingError("compare", " and ".join(names), f"{len(seeds)} seeds in common, two are needed at least")
    pair = one[seeds].to_numpy(), other[seeds].to_numpy()
    difference = pair[0] - pair[1]
    p, ends = significance(pair), bootstrap(difference)
    settings = [setting_of(cells, group, seeds) for group in names]
    figures = {
        "pairs": len(seeds),
        f"{names[0]}, mean, %": PLAIN(pair[0].mean()),
        f"{names[1]}, mean, %": PLAIN(pair[1].mean()),
        "mean difference, points": SIGNED(difference.mean()),
        "95% interval (BCa bootstrap)": f"{SIGNED(ends[0])} to {SIGNED(ends[1])}" if ends else EQUAL,
        "p (sign flips, two-sided)": f"{p:.2g}",
        "effect size (mean / sd of the differences)": PLAIN(difference.mean() / difference.std(ddof=1))
        if ends
        else EQUAL,
        "pairs in which the first is better": f"{(difference > 0).sum()} of {len(seeds)}",
    }
    head = f"## {names[0]} against {names[1]}\n\n"
    page = head + tabulate(figures.items(), ("paired by seed", ""), "pipe", disable_numparse=True)
    return verdict(settings, pair, p, ends, chosen_on_test(parts)), page


EQUAL = "none: all differences are equal"


def significance(pair: tuple[np.ndarray, np.ndarray]) -> float:
    """p, two-sided, that flipping the signs of the paired differences gives."""
    return stats.permutation_test(
        pair,
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).pvalue


def bootstrap(difference: np.ndarray) -> tuple[float, float] | None:
    """The 95% interval of the mean of the differences; None where all are equal, or too alike to resample."""
    if np.ptp(difference) < 1e-9:
        return None
    drawn = stats.bootstrap((difference,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(0))
    low, high = drawn.confidence_interval
    return None if math.isnan(low) or math.isnan(high) else (float(low), float(high))


def chosen_on_test(parts: Sequence[pd.DataFrame]) -> bool:
    """Whether an epoch of these runs was chosen on the test set."""
    return any((part["select_on"] == "test").any() for part in parts)


def verdict(
    settings: Sequence[str],
    pair: tuple[np.ndarray, np.ndarray],
    p: float,
    ends: tuple[float, float] | None,
    on_test: bool,
) -> str:
    """Two bold sentences: what each setting reaches, and whether the difference is more than seeds explain."""
    difference = pair[0] - pair[1]
    better, worse = settings if difference.mean() >= 0 else settings[::-1]
    means = sorted((pair[0].mean(), pair[1].mean()), reverse=True)
    pairs, size = len(difference), abs(difference.mean())
    answer = (
        f"**With {better} the network reaches {means[0]:.2f}% test accuracy, with {worse} {means[1]:.2f}%: means of "
        f"{pairs} runs each, paired by seed"
        + (", whose epoch was chosen on the test set, which flatters. " if on_test else ". ")
    )
    if pairs < MIN_PAIRS:
        least = 2 / 2**pairs
        return answer + (
            f"{pairs} pairs are too few to tell whether the difference of {size:.2f} points is more than seeds "
            f"explain: the smallest p that they could give is {least:.2g}.**"
        )
    if p >= 0.05:
        return answer + f"The difference of {size:.2f} points is within what seeds alone explain (p = {p:.2g}).**"
    low, high = sorted(end * np.sign(difference.mean()) for end in ends) if ends else (size, size)
    within = f" (95% interval {low:.2f} to {high:.2f})" if ends else ""
    return answer + f"The difference of {size:.2f} points{within} is more than seeds explain (p = {p:.2g}).**"


def select(cells: pd.DataFrame, group: str, option: str) -> pd.DataFrame:
    """The runs of a group, "optimizer=sgd lr=0.05"; SettingError, which names the option, if none is."""
    for word in group.split():
        flag, equals, value = word.partition("=")
        if not equals or flag not in COLUMNS:
            raise SettingError(option, group, f"{word} is no flag=value of these runs")
        cells = cells[cells[flag] == canonical(flag, value)]
    if cells.empty:
        raise SettingError(option, group, "no run is in this group")
    return cells


def by_seed(part: pd.DataFrame, option: str, group: str) -> pd.Series:
    if part["seed"].duplicated().any():
        raise SettingError(option, group, "several runs have the same seed; name more flags, or seeds")
    return scored(part).set_axis(part["seed"]).dropna()


def setting_of(cells: pd.DataFrame, group: str, seeds: Sequence[int]) -> str:
    """The group in words, with the learning rate, which is what was tuned."""
    part = select(cells, group, "compare")
    rates = part.loc[part["seed"].isin(seeds), "lr"].unique()
    text = " ".join(word.removeprefix("optimizer=") for word in group.split())
    return text if "lr=" in group or len(rates) != 1 else f"{text} (learning rate {float(rates[0]):g})"


def plain(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
