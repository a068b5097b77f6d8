"""Statistics of runs: intervals, comparisons paired by seed, agreement with others' figures. Accuracies in percent."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from core.errors import SettingError
from experiments.runs import COLUMNS, canonical

RESAMPLES = 9999
PLAIN, SIGNED = "{:.2f}".format, "{:+.2f}".format
EQUAL = "none: all differences are equal"


def scored(part: pd.DataFrame) -> pd.Series:
    """The accuracy that counts: of the epoch chosen on validation; where there is none, as the runs chose it."""
    return part["test_acc_at_best_val"].fillna(part["best_test_acc"]).fillna(part["last_test_acc"])


def mean_interval(values: pd.Series) -> tuple[float, float] | None:
    """The 95% interval of the mean, Student's t; None of less than two values, or of equal ones."""
    if len(values) < 2 or (error := stats.sem(values)) == 0:
        return None
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), error)
    return float(low), float(high)


def interval(values: pd.Series, number: Callable[[float], str] = PLAIN) -> str:
    """Mean ± standard deviation (95% interval of the mean), as far as there are values enough."""
    if len(values) < 2:
        return number(values.iloc[0]) if len(values) else ""
    text = f"{number(values.mean())} ± {values.std():.2f}"
    ends = mean_interval(values)
    return f"{text} ({number(ends[0])} to {number(ends[1])})" if ends else text


def prediction(values: pd.Series) -> tuple[float, float]:
    """Where one run more of this setting would lie with 95%, by Student's t: mean ± t s √(1 + 1/n), n at least 2."""
    margin = stats.t.ppf(0.975, len(values) - 1) * values.std() * math.sqrt(1 + 1 / len(values))
    return values.mean() - margin, values.mean() + margin


def agreement(settings: Sequence[tuple[pd.Series, float]]) -> str:
    """Whether the report's figures are reproduced, in words: over all settings, and in those with several seeds.

    Of each setting there are the accuracies of its runs, and the report's figure, which is of one run.
    """
    if not settings:
        return ""
    difference = interval(pd.Series([runs.mean() - figure for runs, figure in settings]), SIGNED)
    text = (
        f"Ours minus the report's accuracy over {len(settings)} settings: {difference} points, mean ± standard "
        "deviation (95% interval of the mean, Student's t)."
    )
    repeated = [(prediction(runs), figure) for runs, figure in settings if len(runs) > 1]
    inside = sum(low <= figure <= high for (low, high), figure in repeated)
    if repeated:
        text += (
            f" The report's figure is within the 95% prediction interval of a single run in {inside} of the "
            f"{len(repeated)} settings with several seeds."
        )
    return text


def minus_baseline(cells: pd.DataFrame, part: pd.DataFrame, baseline: str, varying: Sequence[str]) -> str:
    """The difference, paired by seed, of a setting from the one that has the baseline's flags and else its own."""
    base = select(cells, baseline, "baseline")
    named = {word.partition("=")[0] for word in baseline.split()}
    named |= {"teacher_sha256"} if "teacher" in named else set()
    free = [flag for flag in varying if flag not in named]
    base = base[(base[free] == part.iloc[0][free]).all(axis=1)]
    if set(base.index) == set(part.index):
        return ""  # it is the baseline
    ours, theirs = (by_seed(runs, "baseline", baseline) for runs in (part, base))
    return interval((ours - theirs).dropna(), SIGNED)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The first of some groups against each of the others."""

    answer: str  # in words
    figures: pd.DataFrame  # that the answer stands on
    differences: dict[str, tuple[np.ndarray, tuple[float, float] | None]]  # points, and the interval of their mean


def compare_groups(cells: pd.DataFrame, groups: Sequence[str]) -> Comparison:
    """Compare the first group with each of the others.

    Paired by seed: the difference's 95% interval by bootstrap (BCa, Efron 1987), p by flipping the signs of all pairs
    (exact as long as 2^pairs is within RESAMPLES), and the effect size, mean / standard deviation of the differences.
    Of several comparisons at once p is corrected. SettingError if there are fewer than two groups, a group has several
    runs of a seed, or they have fewer than two seeds in common.
    """
    try:
        first, *others = [" ".join(shlex.split(group)) for group in groups]
    except ValueError as error:  # of an open quote
        raise SettingError("compare", " ".join(groups), str(error)) from error
    if not others or len({first, *others}) < len(groups):
        raise SettingError("compare", " ".join(groups), "takes two groups or more, each once")
    parts = {group: select(cells, group, "compare") for group in (first, *others)}
    tables = [paired(parts, first, other) for other in others]
    pairs = [table.to_numpy().T for table in tables]
    raw = [significance(pair) for pair in pairs]
    p, least = holm(raw), holm([2 / 2 ** len(table) for table in tables])  # the least: of equal signs in all pairs
    answers, figures, differences = [], {}, {}
    for number, (other, pair) in enumerate(zip(others, pairs, strict=True)):
        difference = pair[0] - pair[1]
        ends = bootstrap(difference)
        settings = [setting_of(parts[group], group, tables[number].index) for group in (first, other)]
        effect = PLAIN(difference.mean() / difference.std(ddof=1)) if ends else EQUAL
        on_test = any((parts[group]["select_on"] == "test").any() for group in (first, other))
        answers.append(verdict(settings, pair, p[number], ends, on_test, least[number], len(pairs)))
        differences[f"{first} minus {other}".replace("optimizer=", "")] = difference, ends
        figures[f"{first} against {other}"] = {
            "pairs": str(len(difference)),
            "mean of the first, %": PLAIN(pair[0].mean()),
            "mean of the second, %": PLAIN(pair[1].mean()),
            "mean difference, points": SIGNED(difference.mean()),
            "95% interval (BCa bootstrap)": f"{SIGNED(ends[0])} to {SIGNED(ends[1])}" if ends else EQUAL,
            "p (sign flips, two-sided)": f"{raw[number]:.2g}",
            "p, corrected (Holm)": f"{p[number]:.2g}",
            "effect size (mean / sd of the differences)": effect,
            "pairs in which the first is better": f"{(difference > 0).sum()} of {len(difference)}",
        }
    table = pd.DataFrame(figures).drop([] if others[1:] else "p, corrected (Holm)")
    return Comparison("\n\n".join(answers), table.rename_axis("paired by seed").reset_index(), differences)


def paired(parts: Mapping[str, pd.DataFrame], *groups: str) -> pd.DataFrame:
    """The accuracies of groups, a column each, by the seeds that they have in common."""
    scores = [by_seed(parts[group], "compare", group) for group in groups]
    table = pd.concat(scores, axis=1, join="inner", keys=groups)
    if len(table) < 2:
        raise SettingError("compare", " and ".join(groups), f"{len(table)} seeds in common, two are needed at least")
    return table


def holm(values: Sequence[float]) -> np.ndarray:
    """p of several tests at once, corrected (Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure)."""
    steps = np.maximum.accumulate(np.sort(values) * np.arange(len(values), 0, -1))
    return np.minimum(steps, 1)[np.argsort(np.argsort(values))]


def significance(pair: np.ndarray) -> float:
    """p, two-sided, that flipping the signs of the paired differences gives."""
    return stats.permutation_test(
        tuple(pair),
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


def verdict(
    settings: Sequence[str],
    pair: Sequence[np.ndarray] | np.ndarray,
    p: float,
    ends: tuple[float, float] | None,
    on_test: bool,
    least: float,
    comparisons: int = 1,
) -> str:
    """Two bold sentences: what each setting reaches, and whether the difference is more than seeds explain.

    Args:
        pair: Accuracies, float64 [2, pairs].
        p, least: Corrected for the comparisons; what these pairs give, and the least that so many could.
        ends: Of the difference's interval.
        on_test: Whether an epoch was chosen on the test set.
    """
    difference = pair[0] - pair[1]
    better, worse = settings if difference.mean() >= 0 else settings[::-1]
    low, high = sorted((pair[0].mean(), pair[1].mean()))
    pairs, size = len(difference), f"difference of {abs(difference.mean()):.2f} points"
    corrected = f", corrected for {comparisons} comparisons" if comparisons > 1 else ""
    flatters = ", whose epoch was chosen on the test set, which flatters" if on_test else ""
    if least >= 0.05:
        answer = (
            f"{pairs} pairs are too few to tell whether the {size} is more than seeds explain: the smallest p that "
            f"they could give is {least:.2g}{corrected}"
        )
    elif p >= 0.05:
        answer = f"The {size} is within what seeds alone explain (p = {p:.2g}{corrected})"
    else:
        bounds = sorted(end * np.sign(difference.mean()) for end in ends or ())
        within = f" (95% interval {bounds[0]:.2f} to {bounds[1]:.2f})" if ends else ""
        answer = f"The {size}{within} is more than seeds explain (p = {p:.2g}{corrected})"
    return (
        f"**With {better} the network reaches {high:.2f}% test accuracy, with {worse} {low:.2f}%: means of {pairs} "
        f"runs each, paired by seed{flatters}. {answer}.**"
    )


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


def setting_of(part: pd.DataFrame, group: str, seeds: pd.Index) -> str:
    """The group in words, with the learning rate, which is what was tuned."""
    rates = part.loc[part["seed"].isin(seeds), "lr"].unique()
    text = " ".join(word.removeprefix("optimizer=") for word in group.split())
    return text if "lr=" in group or len(rates) != 1 else f"{text} (learning rate {float(rates[0]):g})"
