"""What the curves of a run say, and what to try next: pure functions on the values of each epoch.

All accuracies are fractions; a point is 0.01. The measurements behind the rules are in docs/tensorboard.md.

best epoch       The highest validation accuracy, the first of equals, as the checkpoint is chosen.
gap              Training minus validation accuracy in the best epoch. The training accuracy is measured as that of
                 validation is, on whole images that are not augmented.
overfitting      Sets in after the epoch of the lowest validation loss, if at least three epochs follow it, the mean
                 over their second half is more than 4% above that of the lowest and its neighbours, and the last
                 training loss is below that epoch's. From one epoch to the next, validation losses jump by 1.5 to 4%.
last epochs      A straight line through validation accuracy over the last quarter of the epochs, but at least five and
                 at most ten: it improves or gets worse if the line's change is more than a point, almost twice the
                 standard error of an accuracy on 5,000 images. A rate that falls to zero makes most runs improve, so
                 this is no reason for more epochs.

With fewer than four epochs nothing of this is said. The advice is that of the first rule that holds:

1. last training accuracy below twice chance         lower learning rate
2. overfitting has set in                            more augmentation or weight decay
3. last epochs get worse                             lower learning rate
4. gap of 7 points or more                           more augmentation or weight decay
5. constant rate                                     a rate that falls to zero
6. more than 10 points since the middle of the run   lower learning rate: little was learned while it was high
7. rate below half of the optimizer's default        higher learning rate
8. images with less in them than they could have     other preprocessing
9. gap below 3 points                                wider network, if it can be
10. none of these                                    more epochs
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from core.markdown import markdown_table
from models.optimizers import OPTIMIZERS
from models.registry import NETWORKS

Curve: TypeAlias = Sequence[float] | np.ndarray  # a value an epoch
Ending: TypeAlias = Literal["improve", "level", "worsen"]

SPLITS = {"train": "training", "val": "validation", "test": "test"}  # what the images of each stage are called
MIN_EPOCHS = 4
POINT = 0.01
PAYS_BELOW, PAYS_NOT_ABOVE = 7 * POINT, 10 * POINT  # gaps between which one run cannot tell whether more epochs pay
TOO_FEW = "too few epochs to say"

LOWER_LR = "lower learning rate"
HIGHER_LR = "higher learning rate"
FALLING_LR = "learning rate that falls to zero"
REGULARISE = "more augmentation or weight decay"
PREPROCESS = "other preprocessing"
WIDER = "wider network"
MORE_EPOCHS = "more epochs"


@dataclass(frozen=True)
class Trend:
    """The trend of a run; epochs are counted from 1, accuracies and their differences are fractions."""

    epochs: int
    best_epoch: int
    best_acc: float
    train_acc: float  # in the best epoch, on images that are not augmented
    images: str = "validation"  # on which the best epoch was chosen
    lowest_loss_epoch: int = 0  # of validation
    loss_rise: float = 0.0  # of the last validation loss above the lowest, as a share of it
    overfitting_onset: int | None = None  # first epoch of the rise of validation loss
    last_epochs: Ending | None = None  # None below MIN_EPOCHS
    last_change: float = 0.0  # of validation accuracy over the last `last_window` epochs
    last_window: int = 0
    rate_falls: bool = False  # whether the learning rate fell
    changes: list[tuple[str, float]] = field(default_factory=list)  # see `class_changes`
    hardest: list[tuple[str, float]] = field(default_factory=list)  # see `hardest_classes`
    confused: list[tuple[str, str, int, int]] = field(default_factory=list)  # see `confused_pairs`
    advice: str = ""  # one of the above; empty below MIN_EPOCHS
    reason: str = ""
    flags: str = ""  # that follow the advice, in words; empty if there are none

    @property
    def gap(self) -> float:
        return self.train_acc - self.best_acc

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self | None:
        """Make a trend of plain values, such as `asdict` gives; None if they are of a version with other fields."""
        return cls(**values) if values.keys() == {each.name for each in fields(cls)} else None


def analyse(
    train_loss: Curve,
    train_acc: Curve,
    val_loss: Curve,
    val_acc: Curve,
    clean_acc: float,
    by_class: Mapping[str, Curve],
    confusion: np.ndarray,
    config: Mapping[str, Any],
    images: str = "validation",
) -> Trend:
    """Read the trend off the curves of a run.

    Args:
        clean_acc: Training accuracy of the best epoch on images that are not augmented.
        by_class: Validation accuracy of each of the C classes, by their names.
        confusion: int [C, C], rows true, of the best epoch.
        config: The flags of the run, plain values by name.
        images: What the images are called on which the best epoch was chosen.
    """
    epochs, best, class_names = len(val_acc), int(np.argmax(val_acc)), list(by_class)
    trend = Trend(
        epochs=epochs,
        best_epoch=best + 1,
        best_acc=float(val_acc[best]),
        train_acc=clean_acc,
        images=images,
        hardest=hardest_classes(confusion, class_names),
        confused=confused_pairs(confusion, class_names),
    )
    if epochs < MIN_EPOCHS:
        return trend
    window = min(max(5, epochs // 4), 10, epochs)
    lowest = int(np.argmin(val_loss))
    change = float(np.polyfit(np.arange(window), val_acc[-window:], 1)[0]) * (window - 1)
    trend = replace(
        trend,
        lowest_loss_epoch=lowest + 1,
        loss_rise=float(val_loss[-1] / val_loss[lowest] - 1),
        overfitting_onset=overfitting_onset(train_loss, val_loss),
        last_epochs="level" if abs(change) <= POINT else "improve" if change > 0 else "worsen",
        last_change=change,
        last_window=window,
        rate_falls=config["schedule"] != "constant",
        changes=class_changes(by_class),
    )
    if train_acc[-1] < 2 / len(class_names):
        advice, reason = LOWER_LR, "the network has hardly learned more than chance"
    else:
        gained = float(val_acc[-1] - val_acc[(epochs - 1) // 2]) if epochs >= 10 else 0.0
        advice, reason = advise(trend, gained, config)
    return replace(trend, advice=advice, reason=reason, flags=flags_to_try(advice, config))


def overfitting_onset(train_loss: Curve, val_loss: Curve) -> int | None:
    """Return the epoch from which validation loss rises while training loss falls; None if there is none."""
    lowest = int(np.argmin(val_loss))
    after = val_loss[lowest + 1 :]
    if len(after) < 3 or train_loss[-1] >= train_loss[lowest]:
        return None
    level = np.mean(val_loss[max(lowest - 1, 0) : lowest + 2])  # the lowest of many noisy values is too low
    return lowest + 2 if np.mean(after[len(after) // 2 :]) > 1.04 * level else None


def class_changes(by_class: Mapping[str, Curve]) -> list[tuple[str, float]]:
    """Return how the accuracy of each class changed from the middle of the run to its end, the largest gain first.

    Means over `compared_epochs`: from one epoch to the next, the accuracy of a class jumps by several points.
    """
    changes = []
    for name, curve in by_class.items():
        middle, end = (np.mean(curve[first - 1 : last]) for first, last in compared_epochs(len(curve)))
        changes.append((name, float(end - middle)))
    return sorted(changes, key=lambda pair: -pair[1])


def compared_epochs(epochs: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the first and last of at most three epochs in the middle of a run, and of as many at its end."""
    count = min(3, max(1, epochs // 4))
    first = (epochs - count) // 2 + 1
    return (first, first + count - 1), (epochs - count + 1, epochs)


def hardest_classes(confusion: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, float]]:
    """Return the three classes with the lowest accuracy, by a confusion matrix, int [C, C], rows true."""
    accuracy = confusion.diagonal() / np.maximum(confusion.sum(1), 1)
    order = [label for label in np.argsort(accuracy, kind="stable") if confusion[label].sum()]
    return [(class_names[label], float(accuracy[label])) for label in order[:3]]


def confused_pairs(confusion: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """Return the two pairs of classes with the most confusions, both ways: (a, b, a taken for b, b taken for a)."""
    both = np.triu(confusion + confusion.T, k=1)
    pairs = [divmod(int(index), len(confusion)) for index in np.argsort(-both, axis=None, kind="stable")[:2]]
    return [
        (class_names[a], class_names[b], int(confusion[a, b]), int(confusion[b, a])) for a, b in pairs if both[a, b]
    ]


def advise(trend: Trend, gained: float, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the advice and its reason: of the rules in the module's docstring, from the second on, the first that
    holds. `gained` is what accuracy gained since the middle of the run.
    """
    gap, images = trend.gap, trend.images
    default = OPTIMIZERS[config["optimizer"]].lr
    if trend.overfitting_onset is not None:
        return REGULARISE, f"{images} loss rises after epoch {trend.lowest_loss_epoch}"
    if trend.last_epochs == "worsen":
        return LOWER_LR, "the last epochs got worse without overfitting"
    above = f"training accuracy is {gap / POINT:.1f} points above {images} accuracy"
    if gap >= PAYS_BELOW:
        unclear = "; whether more epochs pay as well, one run cannot tell" if gap < PAYS_NOT_ABOVE else ""
        return REGULARISE, above + unclear
    if config["schedule"] == "constant":
        return FALLING_LR, "steps as large as at the start keep the weights from settling"
    if gained > 10 * POINT:
        half = f"{gained / POINT:.0f} points of accuracy came in the second half"
        return LOWER_LR, f"{half}, when the rate fell: little was learned while it was high"
    if config["lr"] < default / 2:
        return HIGHER_LR, f"it is below half of {default:g}, which was best for {config['optimizer']} on LeNet-5"
    if flags_to_try(PREPROCESS, config):
        better = "mean/std normalization alone was as accurate or more on clean images (results/preprocessing)"
        return PREPROCESS, better
    if gap < 3 * POINT and flags_to_try(WIDER, config):
        return WIDER, f"{above} only, so it does not fit even the training images"
    usual = f"below {PAYS_BELOW / POINT:.0f}, longer training has mostly lowered the loss (docs/tensorboard.md)"
    return MORE_EPOCHS, f"{above}; {usual}"


def flags_to_try(advice: str, config: Mapping[str, Any]) -> str:
    """Return the flags of `train` that follow an advice and that a run of this `config` does not have yet, in words."""
    plain, lr, known = config["plain_epochs"], config["lr"], NETWORKS.get(config["network"])
    augmented = plain < config["epochs"]  # plain epochs have no crop and no cutout
    options = {
        MORE_EPOCHS: ((True, f"--epochs {2 * config['epochs']}"),),
        LOWER_LR: (
            (True, f"--lr {lr / 3:.2g} (--find_lr tests the range)"),
            (config["schedule"] == "constant", "--schedule onecycle"),
        ),
        HIGHER_LR: ((True, f"--lr {lr * 3:.2g}"),),
        FALLING_LR: ((True, "--schedule onecycle"),),
        REGULARISE: (
            (augmented and config["crop"] < 4, "--crop 4"),
            (augmented and config["cutout"] < 8, "--cutout 8"),
            (not config["flip"], "--flip true"),
            (plain > 0, "fewer --plain_epochs"),
            (True, "a higher --weight_decay"),
        ),
        PREPROCESS: (
            (config["segment"] != "none", "--segment none"),
            (config["denoise"] != "none" and config["corrupt"] == "none", "--denoise none"),
            (config["normalize"] == "none", "--normalize dataset"),
        ),
        WIDER: ((known is not None and known.has_width, f"--width {max(4, config['width'] + 1)}"),),
    }
    return " or ".join(words for holds, words in options[advice] if holds)


def describe_measurement(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return how the training accuracy and the training loss of a run with these flags are measured, in brackets."""
    augmented = any(config[flag] for flag in ("crop", "flip", "cutout", "random_corruption"))
    parts = ["mean over the epoch", *["augmented"] * augmented]
    targets = ["soft targets"] * bool(config["teacher"] and config["teacher_weight"])
    targets += ["smoothed labels"] * bool(config["label_smoothing"])
    return f"({', '.join(parts)})", f"({', '.join(parts + targets)})"


def sentences(trend: Trend) -> dict[str, str]:
    """Return the trend in words, by what each is about."""
    images, enough = trend.images, trend.last_epochs is not None
    words = {"best epoch": f"{trend.best_epoch} of {trend.epochs}: highest {images} accuracy, {trend.best_acc:.2%}"}
    side = f"{abs(trend.gap) / POINT:.1f} points {'above' if trend.gap > 0 else 'below'} {images} accuracy"
    words["gap"] = (
        f"with its weights, accuracy on training images without augmentation is {trend.train_acc:.2%}, {side}"
    )
    words |= dict.fromkeys(("overfitting", "last epochs"), TOO_FEW)
    lowest = f"{images} loss is lowest in epoch {trend.lowest_loss_epoch}"
    if trend.overfitting_onset is not None:
        words["overfitting"] = f"yes: {lowest} and ends {trend.loss_rise:.1%} above that, while training loss falls"
    elif enough and trend.lowest_loss_epoch < trend.epochs:
        words["overfitting"] = f"none found: {lowest}, and ends {trend.loss_rise:.1%} above that"
    elif enough:
        words["overfitting"] = f"none found: {lowest}, the last"
    if trend.last_epochs:
        verb = {"improve": "still improve", "level": "have levelled off", "worsen": "get worse"}[trend.last_epochs]
        because = ", as the learning rate fell" if trend.rate_falls and trend.last_epochs != "worsen" else ""
        change = (
            f"a straight line through the last {trend.last_window} changes by {trend.last_change / POINT:+.1f} points"
        )
        words["last epochs"] = f"{verb}: {change}{because}"
    if trend.changes:
        named = [f"{name} {change / POINT:+.1f}" for name, change in trend.changes]
        spans = [f"{first} to {last}" for first, last in compared_epochs(trend.epochs)]
        compared = f"points, means of epochs {spans[1]} minus {spans[0]}"
        words["classes"] = f"most {', '.join(named[:2])}; least {named[-1]} ({compared})"
    if trend.hardest:
        words["hardest"] = ", ".join(f"{name} {accuracy:.0%}" for name, accuracy in trend.hardest)
    if trend.confused:
        pairs = (f"{a} taken for {b} {one}, {b} for {a} {other}" for a, b, one, other in trend.confused)
        words["confused"] = "; ".join(pairs)
    tried = f"; try {trend.flags}" if trend.flags else ""
    words["advice"] = f"{trend.advice}, because {trend.reason}{tried}" if enough else TOO_FEW
    return words


def markdown(trend: Trend) -> str:
    """Return the trend as a table in Markdown."""
    return markdown_table(("trend", ""), sentences(trend).items()) + "\n"
