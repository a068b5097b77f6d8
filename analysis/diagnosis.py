"""What the curves of a run say, and what to try next: pure functions on the values of each epoch.

The rules, n being the epochs of the run. All accuracies are fractions; a point is 0.01.

noise            How far validation accuracy jumps from epoch to epoch, as a standard deviation: from its third
                 differences, which a smooth curve hardly has (their median size / (0.6745 sqrt 20): normal noise).
best epoch       The highest validation accuracy, the first of equals, as the checkpoint is chosen.
gap              Training minus validation accuracy in the best epoch.
overfitting      Sets in after the epoch of the lowest validation loss, if at least two epochs follow it, their mean is
                 above the lowest (smoothed over three epochs) by more than twice the loss's noise and by more than 1%,
                 and the last training loss is below that epoch's. Noise alone does this in one run of twenty.
last epochs      A straight line through validation accuracy over the last quarter of the epochs, but at least five and
                 at most ten: it improves or gets worse if the line's change is more than a quarter of a point and more
                 than twice the error that noise gives such a line; else it has levelled off.

The advice is that of the first rule that holds:

1. fewer than four epochs                            more epochs: too few to judge
2. last training accuracy below twice chance         lower learning rate: it hardly learns
3. overfitting has set in                            more augmentation or weight decay
4. last epochs get worse                             lower learning rate
5. last epochs improve                               more epochs
6. noise above 1.5 points                            lower learning rate
7. gap above 5 points                                more augmentation or weight decay
8. none of these                                     wider network: this one has learned what it can

Flags that follow the advice are named where the run's own are known: those that would change this run, and that it may
have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from core.markdown import markdown_table
from models.registry import NETWORKS

Curve: TypeAlias = Sequence[float] | np.ndarray  # a value an epoch
Ending: TypeAlias = Literal["improve", "level", "worsen", "unknown"]

MIN_EPOCHS = 4
POINT = 0.01
TRAINING = "training"  # what a training loss is called that is the plain cross-entropy, as the validation loss is

MORE_EPOCHS = "more epochs"
LOWER_LR = "lower learning rate"
REGULARISE = "more augmentation or weight decay"
WIDER = "wider network"


@dataclass(frozen=True)
class Trend:
    """The trend of a run; epochs are counted from 1, accuracies and their differences are fractions.

    `asdict` gives plain values, for JSON; `Trend(**values)` is the way back.
    """

    epochs: int
    best_epoch: int
    best_acc: float
    tied_since: int  # first epoch whose accuracy was less than the noise below the best
    overfitting_onset: int | None  # first epoch of the rise of validation loss; None if there is none
    gap: float
    noise: float
    last_epochs: Ending  # "unknown" below MIN_EPOCHS
    last_change: float  # of validation accuracy over the last `last_window` epochs
    last_window: int
    hardest: list[tuple[str, float]]  # see `hardest_classes`
    confused: list[tuple[str, str, int, int]]  # see `confused_pairs`
    advice: str  # MORE_EPOCHS, LOWER_LR, REGULARISE or WIDER
    reason: str
    flags: str = ""  # that follow the advice, in words; empty if there are none, or the run's own are not known


def analyse(
    train_loss: Curve,
    train_acc: Curve,
    val_loss: Curve,
    val_acc: Curve,
    class_names: Sequence[str],
    confusion: np.ndarray | None = None,
    first_epoch: int = 1,
    config: Mapping[str, Any] | None = None,
) -> Trend:
    """Read the trend off the curves of a run; ValueError if they have no epoch, or not the same number.

    Args:
        class_names: Of all C classes.
        confusion: int [C, C], rows true, of the best epoch.
        first_epoch: The number of the curves' first.
        config: The flags of the run, plain values by name; without them the advice names none.
    """
    epochs = len(val_acc)
    if not epochs or any(len(curve) != epochs for curve in (train_loss, train_acc, val_loss)):
        raise ValueError("the four curves need the same number of epochs, at least one")
    best = int(np.argmax(val_acc))
    noise = spread(val_acc)
    window = min(max(5, epochs // 4), 10, epochs)
    last: Ending = "unknown"
    change, onset = 0.0, None
    if epochs >= MIN_EPOCHS:
        last, change = last_epochs(val_acc, window, noise)
        onset = overfitting_onset(train_loss, val_loss, first_epoch)
    gap = train_acc[best] - val_acc[best]
    advice, reason = _advise(epochs, train_acc[-1] < 2 / len(class_names), onset, last, noise, gap)
    return Trend(
        epochs=first_epoch + epochs - 1,
        best_epoch=first_epoch + best,
        best_acc=float(val_acc[best]),
        tied_since=first_epoch + int(np.argmax(np.asarray(val_acc) >= val_acc[best] - noise)),
        overfitting_onset=onset,
        gap=float(gap),
        noise=noise,
        last_epochs=last,
        last_change=change,
        last_window=window,
        hardest=[] if confusion is None else hardest_classes(confusion, class_names),
        confused=[] if confusion is None else confused_pairs(confusion, class_names),
        advice=advice,
        reason=reason,
        flags=flags_to_try(advice, config or {}),
    )


def spread(curve: Curve) -> float:
    """The noise of a curve, as a standard deviation; 0 for fewer than four epochs."""
    if len(curve) < 4:
        return 0.0
    # The third difference of noise has the variance (1 + 9 + 9 + 1) sigma^2; 0.6745 is the normal median deviation.
    return float(np.median(np.abs(np.diff(curve, 3)))) / (0.6745 * math.sqrt(20))


def overfitting_onset(train_loss: Curve, val_loss: Curve, first_epoch: int = 1) -> int | None:
    """The epoch from which validation loss rises while training loss falls; None if there is none."""
    lowest = int(np.argmin(val_loss))
    after = val_loss[lowest + 1 :]
    if len(after) < 2 or train_loss[-1] >= train_loss[lowest]:
        return None
    level = float(np.mean(val_loss[max(lowest - 1, 0) : lowest + 2]))  # the lowest of many noisy values is too low
    rise = float(np.mean(after)) - level
    return first_epoch + lowest + 1 if rise > max(2 * spread(val_loss), 0.01 * level) else None


def last_epochs(val_acc: Curve, window: int, noise: float) -> tuple[Ending, float]:
    """Whether the last `window` epochs, at least three, still improve, and the change over them by a straight line."""
    slope = float(np.polyfit(np.arange(window), val_acc[-window:], 1)[0])
    change = slope * (window - 1)
    # The standard error of a line's slope through k points with noise sigma is sigma / sqrt(k (k^2 - 1) / 12).
    by_noise = noise * (window - 1) / math.sqrt(window * (window**2 - 1) / 12)
    if abs(change) <= max(2 * by_noise, POINT / 4):
        return "level", change
    return ("improve" if change > 0 else "worsen"), change


def hardest_classes(confusion: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, float]]:
    """The three classes of which the smallest share is recognised, by a confusion matrix, int [C, C], rows true."""
    accuracy = confusion.diagonal() / np.maximum(confusion.sum(1), 1)
    order = [label for label in np.argsort(accuracy, kind="stable") if confusion[label].sum()]
    return [(class_names[label], float(accuracy[label])) for label in order[:3]]


def confused_pairs(confusion: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """The two pairs of classes with the most confusions, both ways: (a, b, a taken for b, b taken for a)."""
    both = np.triu(confusion + confusion.T, k=1)
    pairs = [divmod(int(index), len(confusion)) for index in np.argsort(-both, axis=None, kind="stable")[:2]]
    return [
        (class_names[a], class_names[b], int(confusion[a, b]), int(confusion[b, a])) for a, b in pairs if both[a, b]
    ]


def _advise(epochs: int, by_chance: bool, onset: int | None, last: str, noise: float, gap: float) -> tuple[str, str]:
    """The advice and its reason: the first rule that holds, in the order of the module's docstring."""
    rules = (
        (epochs < MIN_EPOCHS, MORE_EPOCHS, f"{epochs} are too few to judge"),
        (by_chance, LOWER_LR, "the network has hardly learned more than chance"),
        (onset is not None, REGULARISE, f"from epoch {onset} on it overfits the training images"),
        (last == "worsen", LOWER_LR, "the last epochs got worse without overfitting"),
        (last == "improve", MORE_EPOCHS, "the last epochs still improved"),
        (noise > 1.5 * POINT, LOWER_LR, f"validation accuracy jumps by {noise / POINT:.1f} points from epoch to epoch"),
        (gap > 5 * POINT, REGULARISE, f"training accuracy is {gap / POINT:.1f} points above validation accuracy"),
    )
    for holds, advice, reason in rules:
        if holds:
            return advice, reason
    return WIDER, "it has levelled off without overfitting, so the network has learned what it can"


def flags_to_try(advice: str, config: Mapping[str, Any]) -> str:
    """The flags of `train` that follow an advice and that a run of this `config` does not have yet, in words; of those
    that are missing in it nothing is said.
    """
    plain = config.get("plain_epochs", 0)  # they have no crop and no cutout
    augmented = plain < config.get("epochs", math.inf)
    known = NETWORKS.get(config.get("network", ""))
    options = {
        MORE_EPOCHS: (("epochs" in config, f"--epochs {2 * config.get('epochs', 0)}"),),
        LOWER_LR: (
            ("lr" in config, f"--lr {config.get('lr', 0) / 3:.2g} (--find_lr tests the range)"),
            (config.get("schedule") == "constant", "--schedule onecycle"),
        ),
        REGULARISE: (
            (augmented and config.get("crop", math.inf) < 4, "--crop 4"),
            (augmented and config.get("cutout", math.inf) < 8, "--cutout 8"),
            (not config.get("flip", True), "--flip true"),
            (plain > 0, "fewer --plain_epochs"),
            ("weight_decay" in config, "a higher --weight_decay"),
        ),
        WIDER: ((known is not None and known.has_width, f"--width {max(4, config.get('width', 0) + 1)}"),),
    }
    return " or ".join(words for holds, words in options[advice] if holds)


def train_loss_name(config: Mapping[str, Any]) -> str:
    """What the training loss of a run with these flags is called beside its validation loss."""
    parts = ["soft targets"] if config.get("teacher") and config.get("teacher_weight", 1) else []
    parts += ["smoothed labels"] if config.get("label_smoothing") else []
    return f"{TRAINING} (with {' and '.join(parts)})" if parts else TRAINING


def sentences(trend: Trend, judged_on: str = "val") -> dict[str, str]:
    """The trend in words, by what each is about; `judged_on` "test" if the best epoch was chosen on the test set."""
    tied = "" if trend.tied_since == trend.best_epoch else f"; epoch {trend.tied_since} was within its noise"
    words = {
        "best epoch": f"{trend.best_epoch} of {trend.epochs}: highest validation accuracy, {trend.best_acc:.2%}{tied}",
        "overfitting": "none: validation loss does not rise while training loss falls"
        if trend.overfitting_onset is None
        else f"from epoch {trend.overfitting_onset} on validation loss rises while training loss falls",
        "gap": f"training accuracy minus validation accuracy is {trend.gap / POINT:+.1f} points in the best epoch",
        "last epochs": {
            "improve": "still improve",
            "level": "have levelled off",
            "worsen": "get worse",
            "unknown": "too few to say",
        }[trend.last_epochs],
        "noise": f"validation accuracy jumps by about {trend.noise / POINT:.1f} points from epoch to epoch",
    }
    if trend.last_epochs == "unknown":
        words["noise"] = "too few epochs to say"
    else:
        words["last epochs"] += f": {trend.last_change / POINT:+.1f} points over the last {trend.last_window}"
    if trend.hardest:
        shares = ", ".join(f"{name} {accuracy:.0%}" for name, accuracy in trend.hardest)
        words["hardest"] = f"{shares} of the images recognised"
    if trend.confused:
        pairs = (f"{one} {a} as {b} and {other} {b} as {a}" for a, b, one, other in trend.confused)
        words["confused"] = "; ".join(pairs)
    words["advice"] = f"{trend.advice}, because {trend.reason}" + (f"; try {trend.flags}" if trend.flags else "")
    return {name: said_of(judged_on, text) for name, text in words.items()}


def said_of(judged_on: str, text: str) -> str:
    """A text about validation as it holds for what `judged_on` names: "val", or "test" for the test set."""
    return text.replace("validation", "test").replace("Validation", "Test") if judged_on == "test" else text


def markdown(trend: Trend, judged_on: str = "val") -> str:
    """The trend as a table for people."""
    return markdown_table(("trend", ""), sentences(trend, judged_on).items()) + "\n"
