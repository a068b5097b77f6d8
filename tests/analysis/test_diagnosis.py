"""The rules of the trend, on made-up curves of each kind."""

import json
import math
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.diagnosis import (
    FALLING_LR,
    HIGHER_LR,
    LOWER_LR,
    MORE_EPOCHS,
    PAYS_BELOW,
    PAYS_NOT_ABOVE,
    PREPROCESS,
    REGULARISE,
    TOO_FEW,
    WIDER,
    Trend,
    analyse,
    describe_measurement,
    flags_to_try,
    markdown,
    overfitting_onset,
    sentences,
)
from conftest import ROOT
from training.config import RunConfig

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
N = 20
RUN = RunConfig(optimizer="adam").plain()


def falling(epochs: int = N, start: float = 2.0, end: float = 0.8, speed: float = 5.0) -> np.ndarray:
    """An exponential that has come down to near `end`."""
    return end + (start - end) * np.exp(-speed * np.arange(epochs) / epochs)


def trend_of(**changes: Any) -> Trend:
    """The trend of a run that learned well and has levelled off, with a gap of 4 points, but for `changes`."""
    curves: dict[str, Any] = {
        "train_loss": falling(),
        "train_acc": 0.80 - 0.4 * falling(start=1, end=0, speed=10),
        "val_loss": falling(end=0.85),
        "val_acc": 0.77 - 0.4 * falling(start=1, end=0, speed=10),
        "by_class": {name: falling() for name in NAMES},
        "confusion": np.diag([9] * 9 + [0]),
        "config": RUN,
    }
    curves |= changes
    return analyse(**{"clean_acc": max(curves["val_acc"]) + 0.04} | curves)


def halves(gain: float) -> np.ndarray:
    """Validation accuracy that gains so much in the second half of the run, evenly."""
    return np.concatenate([np.linspace(0.4, 0.77 - gain, N // 2), np.linspace(0.77 - gain, 0.77, N // 2 + 1)[1:]])


def test_the_best_epoch_is_the_first_with_the_highest_validation_accuracy() -> None:
    accuracy = [0.3, 0.5, 0.6, 0.7, 0.7, 0.65]
    assert trend_of(**dict.fromkeys(("train_loss", "train_acc", "val_loss", "val_acc"), accuracy)).best_epoch == 4


def test_that_the_last_epochs_improve_is_no_reason_for_more() -> None:
    val_acc = halves(0.09)
    trend = trend_of(val_acc=val_acc, clean_acc=val_acc[-1] + 0.08)
    assert trend.last_epochs == "improve" and trend.last_window == 5
    assert trend.last_change == pytest.approx(4 * 0.009)
    assert trend.advice == REGULARISE
    assert "as the learning rate fell" in sentences(trend)["last epochs"]
    assert "rate fell" not in sentences(trend_of(val_acc=val_acc, config=RUN | CONSTANT))["last epochs"]


BEST = trend_of().best_acc
CONSTANT = {"schedule": "constant"}
CHANCE = {
    **{"train_acc": np.full(N, 0.1), "val_acc": np.full(N, 0.1)},
    **{"train_loss": np.full(N, 2.3), "val_loss": np.full(N, 2.3)},
}
LARGE_GAP = {"clean_acc": BEST + 0.13}


@pytest.mark.parametrize(
    ("curves", "config", "advice", "words"),
    [
        ({}, {}, MORE_EPOCHS, "4.0 points above validation accuracy; below 7, longer training .*; try --epochs 20$"),
        (CHANCE, {}, LOWER_LR, "chance"),
        (LARGE_GAP, {}, REGULARISE, "13.0 points above"),
        ({"clean_acc": BEST + 0.02}, {}, WIDER, "2.0 points above validation accuracy only"),
        ({"clean_acc": BEST + 0.02}, {"network": "resnet"}, MORE_EPOCHS, ""),
        ({"clean_acc": BEST + 0.08}, {}, REGULARISE, "8.0 points .* one run cannot tell"),
        ({"clean_acc": BEST + 0.12}, {}, REGULARISE, "12.0 points above validation accuracy;"),
        ({}, CONSTANT, FALLING_LR, "; try --schedule onecycle$"),
        (LARGE_GAP, CONSTANT, REGULARISE, ""),
        ({"val_acc": halves(0.15)}, {}, LOWER_LR, "15 points of accuracy came in the second half"),
        ({"val_acc": halves(0.08)}, {}, MORE_EPOCHS, ""),
        ({}, {"optimizer": "sgd", "lr": 0.02}, HIGHER_LR, "below half of 0.05.*; try --lr 0.06$"),
        ({}, {"optimizer": "sgd", "lr": 0.03}, MORE_EPOCHS, ""),
        ({}, {"segment": "otsu"}, PREPROCESS, "; try --segment none$"),
        ({}, {"denoise": "median"}, PREPROCESS, "; try --denoise none$"),
        ({}, {"normalize": "none"}, PREPROCESS, "; try --normalize dataset$"),
        ({}, {"denoise": "median", "corrupt": "gaussian"}, MORE_EPOCHS, ""),
    ],
)
def test_the_advice_is_that_of_the_first_rule_that_holds(
    curves: dict[str, Any], config: dict[str, Any], advice: str, words: str
) -> None:
    trend = trend_of(**curves, config=RUN | config)
    said = sentences(trend)["advice"]
    assert trend.advice == advice and re.search(words, said), said


def test_overfitting_sets_in_after_the_lowest_validation_loss() -> None:
    val_loss = np.concatenate([np.linspace(2, 1, 8), np.linspace(1.05, 1.6, 12)])
    trend = trend_of(val_loss=val_loss)
    assert trend.overfitting_onset == 9
    assert trend.advice == REGULARISE
    assert "lowest in epoch 8 and ends 60.0% above that" in sentences(trend)["overfitting"]


def test_a_slow_rise_to_the_end_is_overfitting() -> None:
    # width 1, adam, no augmentation, 14 epochs
    train_loss = [1.827, 1.449, 1.306, 1.204, 1.103, 1.020, 0.940, 0.864, 0.797, 0.732, 0.671, 0.608, 0.549, 0.498]
    val_loss = [1.554, 1.390, 1.339, 1.274, 1.148, 1.097, 1.084, 1.082, 1.089, 1.092, 1.089, 1.121, 1.142, 1.158]
    assert overfitting_onset(train_loss, val_loss) == 9


def test_where_no_overfitting_is_found_it_is_said_what_the_loss_did() -> None:
    assert sentences(trend_of())["overfitting"] == f"none found: validation loss is lowest in epoch {N}, the last"
    val_loss = [*falling(N - 1), 0.83]
    assert "lowest in epoch 19, and ends" in sentences(trend_of(val_loss=val_loss))["overfitting"]


def test_a_validation_loss_that_rises_with_the_training_loss_is_no_overfitting() -> None:
    rising = np.concatenate([np.linspace(2, 1, 8), np.linspace(1.05, 1.6, 12)])
    trend = trend_of(train_loss=rising, val_loss=rising, val_acc=0.9 - rising / 4)
    assert trend.overfitting_onset is None
    assert trend.last_epochs == "worsen" and trend.advice == LOWER_LR


@pytest.mark.parametrize("last", [[1.5], [1.001, 1.002]])
def test_one_bad_epoch_or_a_rise_of_a_thousandth_is_no_overfitting(last: list[float]) -> None:
    val_loss = np.concatenate([np.linspace(2, 1, N - len(last)), last])
    assert trend_of(val_loss=val_loss).overfitting_onset is None


def test_noise_alone_is_seldom_taken_for_overfitting_or_a_change() -> None:
    random = np.random.default_rng(0)
    trends = []
    for _ in range(200):
        noise = random.normal(0, 1, (2, N))
        trends.append(trend_of(val_loss=0.85 * (1 + 0.025 * noise[0]), val_acc=0.77 + 0.004 * noise[1]))
    assert sum(trend.overfitting_onset is not None for trend in trends) < 20
    assert sum(trend.last_epochs != "level" for trend in trends) < 30


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_four_epochs_are_enough(epochs: int) -> None:
    curve = np.linspace(0.3, 0.5, epochs)
    trend = trend_of(
        **dict.fromkeys(("train_loss", "train_acc", "val_loss", "val_acc"), curve),
        by_class=dict.fromkeys(NAMES, curve),
    )
    assert (TOO_FEW in sentences(trend).values()) == (epochs < 4) == (not trend.advice) == (not trend.changes)


def test_the_classes_that_gained_most_and_least_since_the_middle_are_named() -> None:
    steps = np.arange(N) / 100
    trend = trend_of(by_class={"cat": 0.6 - steps, "dog": 0.4 + steps, "frog": np.full(N, 0.5)}, confusion=np.eye(3))
    assert [name for name, _ in trend.changes] == ["dog", "frog", "cat"]
    assert dict(trend.changes) == pytest.approx({"dog": 0.09, "frog": 0.0, "cat": -0.09})  # epochs 9 to 11 and 18 to 20
    assert (
        "most dog +9.0, frog +0.0; least cat -9.0 (points, means of epochs 18 to 20 minus 9 to 11)"
        in sentences(trend)["classes"]
    )


def test_hardest_classes_and_most_confused_pairs_come_from_the_confusion_matrix() -> None:
    confusion = np.diag([90] * 10)
    confusion[3, 5], confusion[5, 3], confusion[2, 4] = 40, 10, 30
    trend = trend_of(confusion=confusion)
    assert [name for name, _ in trend.hardest] == ["cat", "bird", "dog"]
    assert trend.hardest[0][1] == pytest.approx(90 / 130)
    assert trend.confused == [("cat", "dog", 40, 10), ("bird", "deer", 30, 0)]
    assert "cat taken for dog 40, dog for cat 10; bird taken for deer 30, deer for bird 0" in markdown(trend)


def test_the_trend_survives_json() -> None:
    trend = trend_of()
    again = Trend.read(json.loads(json.dumps(asdict(trend))))
    assert Trend.read(asdict(trend) | {"noise": 0.1}) is None  # of another version
    assert again
    assert sentences(again) == sentences(trend)
    assert all(not isinstance(value, float) or math.isfinite(value) for value in asdict(trend).values())
    assert "truck" not in dict(trend.hardest) and trend.confused == []  # no image, no mistake


def test_texts_name_the_images_on_which_the_epoch_was_chosen() -> None:
    words = markdown(trend_of(images="test"))
    assert "highest test accuracy" in words and "validation" not in words


@pytest.mark.parametrize(
    ("advice", "changes", "words"),
    [
        (LOWER_LR, {}, "--lr 0.0013 (--find_lr tests the range)"),
        (LOWER_LR, CONSTANT, "--lr 0.0013 (--find_lr tests the range) or --schedule onecycle"),
        (REGULARISE, {}, "--crop 4 or --cutout 8 or a higher --weight_decay"),
        (REGULARISE, {"crop": 4, "cutout": 12}, "a higher --weight_decay"),
        (REGULARISE, {"crop": 5, "flip": False}, "--cutout 8 or --flip true or a higher --weight_decay"),
        (REGULARISE, {"plain_epochs": 10}, "fewer --plain_epochs or a higher --weight_decay"),
        (WIDER, {"width": 1}, "--width 4"),
        (WIDER, {"width": 5}, "--width 6"),
    ],
)
def test_no_flag_is_advised_that_the_run_has_already_or_may_not_have(
    advice: str, changes: dict[str, Any], words: str
) -> None:
    assert flags_to_try(advice, RUN | changes) == words


@pytest.mark.parametrize(
    ("config", "of_loss"),
    [
        ({}, "(mean over the epoch, augmented)"),
        ({"crop": 0, "flip": False}, "(mean over the epoch)"),
        ({"label_smoothing": 0.1}, "(mean over the epoch, augmented, smoothed labels)"),
        ({"teacher": "t.ckpt", "teacher_weight": 0.0}, "(mean over the epoch, augmented)"),
        (
            {"teacher": "t.ckpt", "label_smoothing": 0.1},
            "(mean over the epoch, augmented, soft targets, smoothed labels)",
        ),
    ],
)
def test_how_training_curves_are_measured_is_said(config: dict[str, Any], of_loss: str) -> None:
    accuracy, loss = describe_measurement(RUN | config)
    assert loss == of_loss and accuracy == of_loss.replace(", soft targets", "").replace(", smoothed labels", "")


def test_the_table_of_the_rules_in_the_documents_is_that_of_the_runs() -> None:
    curves = pd.read_csv(ROOT / "results" / "coursework" / "curves.csv")
    table = dict.fromkeys(("rises", "below 7", "7 to 10", "above 10"), (0, 0))
    for _, run in curves.groupby("run"):
        losses, accuracies = (
            [run[f"{images}_{name}"].to_numpy() for images in ("train", "test")] for name in ("loss", "acc")
        )
        for cut in range(4, len(run) // 2 + 1):
            names = ("train_loss", "val_loss", "train_acc", "val_acc")
            cut_off = {name: curve[:cut] for name, curve in zip(names, [*losses, *accuracies], strict=True)}
            trend = trend_of(**cut_off, clean_acc=accuracies[0][accuracies[1][:cut].argmax()])
            kind = "7 to 10" if trend.gap <= PAYS_NOT_ABOVE else "above 10"
            kind = "below 7" if trend.gap < PAYS_BELOW else kind
            kind = "rises" if trend.overfitting_onset else kind
            cases, lower = table[kind]
            table[kind] = cases + 1, lower + int(losses[1][: 2 * cut].min() < losses[1][:cut].min())
    page = (ROOT / "docs" / "tensorboard.md").read_text(encoding="utf-8")
    for kind, (cases, lower) in table.items():
        assert re.search(rf"{kind}.* \| {cases} \| {lower} \|", page), (kind, cases, lower)
