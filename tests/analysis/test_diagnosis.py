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
    sentences,
)
from conftest import ROOT

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
N = 20
FALLING = {"schedule": "onecycle"}
RUN = {
    **{"epochs": 10, "plain_epochs": 0, "lr": 0.03, "schedule": "onecycle", "weight_decay": 0.0},
    **{"crop": 2, "flip": True, "cutout": 0, "network": "lenet5", "width": 3},
}


def falling(epochs: int = N, start: float = 2.0, end: float = 0.8, speed: float = 5.0) -> np.ndarray:
    """An exponential that has come down to near `end`."""
    return end + (start - end) * np.exp(-speed * np.arange(epochs) / epochs)


def trend_of(**changes: Any) -> Trend:
    """The trend of a run that learned well and has levelled off, but for `changes`."""
    curves = {
        "train_loss": falling(),
        "train_acc": 0.80 - 0.4 * falling(start=1, end=0, speed=10),
        "val_loss": falling(end=0.85),
        "val_acc": 0.77 - 0.4 * falling(start=1, end=0, speed=10),
    }
    return analyse(**(curves | changes), class_names=NAMES)


def halves(gain: float) -> np.ndarray:
    """Validation accuracy that gains so much in the second half of the run, evenly."""
    return np.concatenate([np.linspace(0.4, 0.77 - gain, N // 2), np.linspace(0.77 - gain, 0.77, N // 2 + 1)[1:]])


def test_the_best_epoch_is_the_first_with_the_highest_validation_accuracy() -> None:
    accuracy = [0.3, 0.5, 0.6, 0.7, 0.7, 0.65]
    assert trend_of(**{name: accuracy for name in ("train_loss", "train_acc", "val_loss", "val_acc")}).best_epoch == 4


def test_that_the_last_epochs_improve_is_no_reason_for_more() -> None:
    val_acc = halves(0.09)
    trend = trend_of(val_acc=val_acc, train_acc=val_acc + 0.08, config=FALLING)
    assert trend.last_epochs == "improve" and trend.last_window == 5
    assert trend.last_change == pytest.approx(4 * 0.009)
    assert trend.advice == REGULARISE
    assert "as the learning rate fell" in sentences(trend)["last epochs"]
    assert "rate fell" not in sentences(trend_of(val_acc=val_acc))["last epochs"]


def test_a_gap_that_augmented_batches_make_small_is_no_reason_for_a_wider_network() -> None:
    trend = trend_of(train_acc=trend_of().best_acc + np.linspace(-0.3, 0.01, N), config=RUN)
    assert trend.gap < 0.03 and trend.advice == MORE_EPOCHS
    assert "of augmented batches" in sentences(trend)["gap"]
    assert "of augmented batches" not in sentences(trend_of(clean_acc=0.8))["gap"]


BEST = trend_of().best_acc
CHANCE = {
    **{"train_acc": np.full(N, 0.1), "val_acc": np.full(N, 0.1)},
    **{"train_loss": np.full(N, 2.3), "val_loss": np.full(N, 2.3)},
}
LARGE_GAP = {"train_acc": np.linspace(0.5, 0.9, N)}


@pytest.mark.parametrize(
    ("curves", "config", "advice", "words"),
    [
        ({}, {}, MORE_EPOCHS, "3.0 points above validation accuracy; below 7, longer training .*; try --epochs 20$"),
        (CHANCE, {}, LOWER_LR, "chance"),
        (LARGE_GAP, {}, REGULARISE, "13.0 points above"),
        ({"clean_acc": BEST + 0.02}, {}, WIDER, "2.0 points above validation accuracy only"),
        ({"clean_acc": BEST + 0.02}, {"network": "resnet"}, MORE_EPOCHS, ""),
        ({"clean_acc": BEST + 0.04}, {}, MORE_EPOCHS, "4.0 points above"),
        ({"clean_acc": BEST + 0.08}, {}, REGULARISE, "8.0 points .* one run cannot tell"),
        ({"clean_acc": BEST + 0.12}, {}, REGULARISE, "12.0 points above validation accuracy;"),
        ({}, {"schedule": "constant"}, FALLING_LR, "; try --schedule onecycle$"),
        (LARGE_GAP, {"schedule": "constant"}, REGULARISE, ""),
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
    accuracy = np.linspace(0.43, 0.65, 14)
    assert analyse(train_loss, accuracy, val_loss, accuracy, NAMES).overfitting_onset == 9


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


def test_a_short_run_that_learns_fast_is_not_taken_for_a_bad_one() -> None:
    # Six epochs of adam at a learning rate of 0.0005.
    val_acc = [0.4284, 0.5354, 0.5842, 0.6170, 0.6420, 0.6562]
    trend = analyse(2.5 - np.array(val_acc), val_acc, 2.5 - np.array(val_acc), val_acc, NAMES, config=FALLING)
    assert trend.last_epochs == "improve" and trend.advice == MORE_EPOCHS


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_four_epochs_are_enough(epochs: int) -> None:
    curve = np.linspace(0.3, 0.5, epochs)
    trend = analyse(curve, curve, curve, curve, NAMES, by_class={"cat": curve})
    assert (TOO_FEW in sentences(trend).values()) == (epochs < 4) == (not trend.advice) == (not trend.changes)


def test_the_classes_that_gained_most_and_least_since_the_middle_are_named() -> None:
    steps = np.arange(N) / 100
    trend = trend_of(by_class={"cat": 0.6 - steps, "dog": 0.4 + steps, "frog": np.full(N, 0.5)})
    assert [name for name, _ in trend.changes] == ["dog", "frog", "cat"]
    assert dict(trend.changes) == pytest.approx({"dog": 0.1, "frog": 0.0, "cat": -0.1})
    assert "most dog +10.0, frog +0.0; least cat -10.0" in sentences(trend)["classes"]


def test_hardest_classes_and_most_confused_pairs_come_from_the_confusion_matrix() -> None:
    confusion = np.diag([90] * 10)
    confusion[3, 5], confusion[5, 3], confusion[2, 4] = 40, 10, 30
    trend = trend_of(confusion=confusion)
    assert [name for name, _ in trend.hardest] == ["cat", "bird", "dog"]
    assert trend.hardest[0][1] == pytest.approx(90 / 130)
    assert trend.confused == [("cat", "dog", 40, 10), ("bird", "deer", 30, 0)]
    assert "cat/dog: 40 and 10; bird/deer: 30 and 0" in markdown(trend)


def test_a_class_without_images_is_not_hard_and_no_confusion_makes_no_pair() -> None:
    confusion = np.diag([9] * 9 + [0])
    trend = trend_of(confusion=confusion)
    assert "truck" not in [name for name, _ in trend.hardest] and trend.confused == []


def test_curves_that_start_late_keep_the_numbers_of_their_epochs() -> None:
    curve = [0.3, 0.6, 0.5, 0.4]
    trend = analyse(curve, curve, curve, curve, NAMES, first_epoch=11)
    assert trend.best_epoch == 12 and trend.epochs == 14


def test_the_trend_survives_json() -> None:
    trend = trend_of(confusion=np.diag([9] * 10), by_class={"cat": falling()})
    again = Trend.read(json.loads(json.dumps(asdict(trend))))
    assert again and sentences(again) == sentences(trend)
    assert all(not isinstance(value, float) or math.isfinite(value) for value in asdict(trend).values())
    assert Trend.read(asdict(trend) | {"noise": 0.1}) is None  # of another version


def test_texts_name_the_images_on_which_the_epoch_was_chosen() -> None:
    words = markdown(trend_of(images="test", train_acc=np.linspace(0.5, 0.9, N)))
    assert "highest test accuracy" in words and "validation" not in words


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of epochs"):
        analyse([1.0], [1.0, 2.0], [1.0], [1.0], NAMES)
    with pytest.raises(ValueError, match="at least one"):
        analyse([], [], [], [], NAMES)


@pytest.mark.parametrize(
    ("advice", "changes", "words"),
    [
        (LOWER_LR, {}, "--lr 0.01 (--find_lr tests the range)"),
        (LOWER_LR, {"schedule": "constant"}, "--lr 0.01 (--find_lr tests the range) or --schedule onecycle"),
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


def test_of_a_run_whose_flags_are_not_known_the_advice_names_none() -> None:
    for advice in (MORE_EPOCHS, LOWER_LR, HIGHER_LR, REGULARISE, PREPROCESS, WIDER):
        assert flags_to_try(advice, {}) == flags_to_try(advice, {"unknown": 1}) == ""
    assert "--" not in sentences(trend_of())["advice"]


@pytest.mark.parametrize(
    ("config", "of_loss"),
    [
        ({}, "(mean over the epoch)"),
        ({"crop": 2, "label_smoothing": 0.0, "teacher": None}, "(mean over the epoch, augmented)"),
        ({"flip": True, "label_smoothing": 0.1}, "(mean over the epoch, augmented, smoothed labels)"),
        ({"teacher": "t.ckpt", "teacher_weight": 0.0}, "(mean over the epoch)"),
        (
            {"teacher": "t.ckpt", "label_smoothing": 0.1},
            "(mean over the epoch, soft targets, smoothed labels)",
        ),
    ],
)
def test_how_training_curves_are_measured_is_said(config: dict[str, Any], of_loss: str) -> None:
    accuracy, loss = describe_measurement(config)
    assert loss == of_loss and accuracy == of_loss.replace(", soft targets", "").replace(", smoothed labels", "")


def test_the_table_of_the_rules_in_the_documents_is_that_of_the_runs() -> None:
    curves = pd.read_csv(ROOT / "results" / "coursework" / "curves.csv")
    table = dict.fromkeys(("rises", "below 7", "7 to 10", "above 10"), (0, 0))
    for _, run in curves.groupby("run"):
        losses, accuracies = (
            [run[f"{images}_{name}"].to_numpy() for images in ("train", "test")] for name in ("loss", "acc")
        )
        for cut in range(4, len(run) // 2 + 1):
            trend = analyse(losses[0][:cut], accuracies[0][:cut], losses[1][:cut], accuracies[1][:cut], NAMES)
            kind = "7 to 10" if trend.gap <= PAYS_NOT_ABOVE else "above 10"
            kind = "below 7" if trend.gap < PAYS_BELOW else kind
            kind = "rises" if trend.overfitting_onset else kind
            cases, lower = table[kind]
            table[kind] = cases + 1, lower + int(losses[1][: 2 * cut].min() < losses[1][:cut].min())
    page = (ROOT / "docs" / "tensorboard.md").read_text(encoding="utf-8")
    for kind, (cases, lower) in table.items():
        assert re.search(rf"{kind}.* \| {cases} \| {lower} \|", page), (kind, cases, lower)
