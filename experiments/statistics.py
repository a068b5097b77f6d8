"""Statistics of runs: intervals, comparisons paired by seed, agreement with others' figures. Accuracies in percent.

All intervals are Student's t and take the values for normal. Of fewer than three values there is none: it would say
little more than that there are few.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from core.errors import SettingError
from experiments.grid import parse_flags
from experiments.runs import COLUMNS, normalize_value

ENOUGH = 3  # values or pairs, for an interval
PLAIN, SIGNED = "{:.2f}".format, "{:+.2f}".format
EQUAL, FEW = "none: all differences are equal", "none: fewer than three pairs"


def select_scores(part: pd.DataFrame) -> pd.Series:
    """Return the accuracy that counts: of the epoch chosen on validation, or as the runs chose it where none was."""
    return part["test_acc_at_best_val"].fillna(part["best_test_acc"]).fillna(part["last_test_acc"])


def compute_interval(values: pd.Series) -> tuple[float, float] | None:
    """Return the 95% interval of the mean; None of fewer than ENOUGH values, or of equal ones."""
    if len(values) < ENOUGH or np.ptp(values) < 1e-9:
        return None
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return float(low), float(high)


def write_interval(ends: tuple[float, float], number: Callable[[float], str] = PLAIN) -> str:
    return f"{number(ends[0])} to {number(ends[1])}"


def write_mean(values: pd.Series, number: Callable[[float], str] = PLAIN) -> str:
    """Write mean ± standard deviation (95% interval of the mean), as far as there are values enough."""
    if len(values) < 2:
        return number(values.iloc[0]) if len(values) else ""
    ends = compute_interval(values)
    interval = f" ({write_interval(ends, number)})" if ends else ""
    return f"{number(values.mean())} ± {values.std():.2f}{interval}"


def predict_interval(values: pd.Series) -> tuple[float, float]:
    """Return where one run more of this setting would lie with 95%: mean ± t s √(1 + 1/n), n at least 2."""
    margin = stats.t.ppf(0.975, len(values) - 1) * values.std() * math.sqrt(1 + 1 / len(values))
    return values.mean() - margin, values.mean() + margin


def describe_agreement(settings: Sequence[tuple[pd.Series, float]]) -> str:
    """Say whether the report's figures are reproduced: over all settings, and in those with several seeds.

    Of each setting there are the accuracies of its runs, and the report's figure, which is of one run.
    """
    if not settings:
        return ""
    difference = write_mean(pd.Series([runs.mean() - figure for runs, figure in settings]), SIGNED)
    text = f"Our accuracy minus the report's, over {len(settings)} settings: {difference} percentage points."
    repeated = [(predict_interval(runs), figure) for runs, figure in settings if len(runs) >= ENOUGH]
    inside = sum(low <= figure <= high for (low, high), figure in repeated)
    if repeated:
        text += (
            f" The report's figure is within the 95% prediction interval of a single run in {inside} of the "
            f"{len(repeated)} settings with at least {ENOUGH} seeds."
        )
    return text


@dataclass(frozen=True, eq=False)
class Group:
    """Runs with some settings in common."""

    name: str
    settings: dict[str, str]
    runs: pd.DataFrame

    def describe(self, seeds: pd.Index) -> str:
        """Return the group in words, with the learning rate of these seeds, which is what was tuned."""
        rates = self.runs.loc[self.runs["seed"].isin(seeds), "lr"].unique()
        text = self.name.replace("optimizer=", "")
        return text if "lr" in self.settings or len(rates) != 1 else f"{text} (learning rate {float(rates[0]):g})"


@dataclass(frozen=True, eq=False)
class Comparison:
    """The first of some groups against each of the others."""

    answer: str  # in words
    figures: pd.DataFrame  # that the answer stands on
    differences: dict[str, pd.Series]  # percentage points, by seed


def compare_groups(table: pd.DataFrame, texts: Sequence[str]) -> Comparison:
    """Compare the first group of runs with each of the others, in pairs of the same seed.

    p is that of the paired t test, two-sided, corrected if there are several comparisons (Holm 1979, A Simple
    Sequentially Rejective Multiple Test Procedure); the effect size is mean / standard deviation of the differences.

    Args:
        texts: Groups such as "optimizer=sgd lr=0.05", which names all runs with these settings.

    Raises:
        SettingError: There are fewer than two groups, a group has several runs of a seed, or two have fewer than two
            seeds in common.
    """
    first, *others = (find_group(table, text, "compare") for text in texts)
    if len({first.name, *(other.name for other in others)}) < max(2, len(texts)):
        raise SettingError("compare", " ".join(texts), "takes two groups or more, each once")
    pairs = [pair_by_seed(first, other) for other in others]
    differences = [pair["first"] - pair["second"] for pair in pairs]
    raw = [compute_p(difference) for difference in differences]
    corrected = correct_holm(raw)
    answers, figures = [], {}
    for number, (other, pair) in enumerate(zip(others, pairs, strict=True)):
        figures[f"{first.name} against {other.name}"] = {
            "pairs": str(len(pair)),
            "mean of the first, %": PLAIN(pair["first"].mean()),
            "mean of the second, %": PLAIN(pair["second"].mean()),
            **describe_difference(differences[number], raw[number], corrected[number]),
        }
        described = [group.describe(pair.index) for group in (first, other)]
        on_test = any((group.runs["select_on"] == "test").any() for group in (first, other))
        answers.append(write_verdict(described, pair.to_numpy().T, corrected[number], len(others), on_test))
    frame = pd.DataFrame(figures).drop([] if others[1:] else "p, corrected (Holm)")
    names = [f"{first.name} minus {other.name}".replace("optimizer=", "") for other in others]
    frame = frame.rename_axis("paired by seed").reset_index()
    return Comparison("\n\n".join(answers), frame, dict(zip(names, differences, strict=True)))


def describe_difference(difference: pd.Series, p: float, corrected: float) -> dict[str, str]:
    """Return the figures of a difference, paired by seed, as texts by label."""
    ends, missing = compute_interval(difference), FEW if len(difference) < ENOUGH else EQUAL
    return {
        "mean difference, percentage points": SIGNED(difference.mean()),
        "95% interval (Student's t)": write_interval(ends, SIGNED) if ends else missing,
        "p (paired t test, two-sided)": f"{p:.2g}" if ends else missing,
        "p, corrected (Holm)": f"{corrected:.2g}" if ends else missing,
        "effect size (mean / sd of the differences)": PLAIN(difference.mean() / difference.std()) if ends else "",
        "pairs in which the first is better": f"{(difference > 0).sum()} of {len(difference)}",
    }


def compute_p(difference: pd.Series) -> float:
    """Return p, two-sided, of a mean difference of 0 (t test); 1 of fewer than ENOUGH pairs."""
    if len(difference) < ENOUGH:
        return 1.0
    if np.ptp(difference) < 1e-9:
        return float(abs(difference.mean()) < 1e-9)
    return float(stats.ttest_1samp(difference, 0).pvalue)


def correct_holm(values: Sequence[float]) -> np.ndarray:
    """Return p of several tests at once, corrected by Holm's steps."""
    steps = np.maximum.accumulate(np.sort(values) * np.arange(len(values), 0, -1))
    return np.minimum(steps, 1)[np.argsort(np.argsort(values))]


def write_verdict(
    groups: Sequence[str], pair: np.ndarray, p: float, comparisons: int = 1, on_test: bool = False
) -> str:
    """Say in two bold sentences what each of two groups reaches, and whether the difference is more than chance.

    Args:
        pair: Accuracies, float64 [2, pairs].
        p: Corrected for the number of comparisons.
        on_test: Whether an epoch was chosen on the test set.
    """
    order = [1, 0] if pair[0].mean() < pair[1].mean() else [0, 1]  # the better group first
    (first, second), (one, other) = (groups[each] for each in order), pair[order]
    difference = pd.Series(one - other)
    ends, pairs = compute_interval(difference), len(difference)
    size = f"difference, {difference.mean():.2f} percentage points"
    chance = f"p = {p:.2g}" + (f", corrected for {comparisons} comparisons" if comparisons > 1 else "")
    if pairs < ENOUGH:
        answer = f"{pairs} pairs are too few to tell whether the {size}, is more than chance"
    elif ends is None:
        answer = f"The {size}, is the same in each pair"
    else:
        size += f" (95% interval {write_interval(ends)})"
        answer = f"The {size}, is {'more than' if p < 0.05 else 'within what'} chance explains ({chance})"
    flatters = "; the epoch was chosen on the test set, which flatters" if on_test else ""
    return (
        f"**{first} reaches {one.mean():.2f}% test accuracy, {second} {other.mean():.2f}% (means of {pairs} runs each, "
        f"paired by seed{flatters}). {answer}.**"
    )


def subtract_baseline(table: pd.DataFrame, part: pd.DataFrame, baseline: str, varying: Sequence[str]) -> pd.Series:
    """Return the difference, by seed, of a setting from the one that has the baseline's settings and else its own; the
    series is empty if the setting is the baseline.
    """
    group = find_group(table, baseline, "baseline")
    named = {*group.settings, *(["teacher_sha256"] if "teacher" in group.settings else [])}
    free = [name for name in varying if name not in named]
    base = group.runs[(group.runs[free] == part.iloc[0][free]).all(axis=1)]
    if set(base.index) == set(part.index):
        return pd.Series(dtype=float)
    return (index_by_seed(part, "baseline", baseline) - index_by_seed(base, "baseline", baseline)).dropna()


def pair_by_seed(first: Group, second: Group) -> pd.DataFrame:
    """Return the accuracies of two groups, in two columns, by the seeds that they have in common."""
    columns = [index_by_seed(group.runs, "compare", group.name) for group in (first, second)]
    table = pd.concat(columns, axis=1, join="inner", keys=["first", "second"])
    if len(table) < 2:
        names = f"{first.name} and {second.name}"
        raise SettingError("compare", names, f"{len(table)} seeds in common, two are needed at least")
    return table


def index_by_seed(runs: pd.DataFrame, option: str, group: str) -> pd.Series:
    if runs["seed"].duplicated().any():
        raise SettingError(option, group, "several runs have the same seed; name more settings, or seeds")
    return select_scores(runs).set_axis(runs["seed"]).dropna()


def find_group(table: pd.DataFrame, text: str, option: str) -> Group:
    """Return the runs of a group, "optimizer=sgd lr=5e-2"; SettingError, which names the option, if there is none.

    Its settings are in the order of the table, and their values as `runs.list_texts` writes them.
    """
    texts = parse_flags(text)
    if unknown := sorted(texts.keys() - set(COLUMNS)):
        raise SettingError(option, text, f"runs of a table do not differ in {unknown[0]}")
    found = {name: normalize_value(name, value) for name, value in texts.items()}
    settings = {name: found[name] for name in COLUMNS if name in found}
    runs = table[(table[list(settings)] == pd.Series(settings, dtype=str)).all(axis=1)]
    if runs.empty:
        raise SettingError(option, text, "no run is in this group")
    return Group(" ".join(f"{name}={value}" for name, value in settings.items()), settings, runs)
