"""The rules of the trend, on made-up curves of each kind."""

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from analysis.diagnosis import (
    LOWER_LR,
    MORE_EPOCHS,
    REGULARISE,
    WIDER,
    Trend,
    analyse,
    flags_to_try,
    markdown,
    sentences,
    spread,
    train_loss_name,
)

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
N = 20


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


def test_the_best_epoch_is_the_first_with_the_highest_validation_accuracy() -> None:
    accuracy = [0.3, 0.5, 0.6, 0.7, 0.7, 0.65]
    assert trend_of(**{name: accuracy for name in ("train_loss", "train_acc", "val_loss", "val_acc")}).best_epoch == 4


def test_a_run_that_has_levelled_off_without_overfitting_needs_a_wider_network() -> None:
    trend = trend_of()
    assert trend.last_epochs == "level" and trend.overfitting_onset is None
    assert trend.gap == pytest.approx(0.03)
    assert trend.advice == WIDER


def test_a_run_that_still_improves_needs_more_epochs() -> None:
    trend = trend_of(val_acc=np.linspace(0.4, 0.7, N), config={"epochs": N})
    assert trend.last_epochs == "improve" and trend.last_window == 5
    assert trend.last_change == pytest.approx(4 * 0.3 / (N - 1))
    assert trend.advice == MORE_EPOCHS
    assert "--epochs 40" in sentences(trend)["advice"]


def test_overfitting_sets_in_after_the_lowest_validation_loss() -> None:
    val_loss = np.concatenate([np.linspace(2, 1, 8), np.linspace(1.05, 1.6, 12)])
    trend = trend_of(val_loss=val_loss)
    assert trend.overfitting_onset == 9
    assert trend.advice == REGULARISE
    assert "from epoch 9 on" in sentences(trend)["overfitting"]


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
        trends.append(trend_of(val_loss=0.85 + 0.05 * noise[0], val_acc=0.77 + 0.004 * noise[1]))
    assert sum(trend.overfitting_onset is not None for trend in trends) < 20
    assert sum(trend.last_epochs != "level" for trend in trends) < 30


def test_a_jumping_validation_curve_needs_a_lower_learning_rate() -> None:
    random = np.random.default_rng(0)
    trends = [trend_of(val_acc=0.7 + 0.03 * random.normal(0, 1, N)) for _ in range(100)]
    assert np.median([trend.noise for trend in trends]) == pytest.approx(0.03, rel=0.1)
    level = [trend for trend in trends if trend.last_epochs == "level" and trend.noise > 0.015]
    assert len(level) > 80
    assert all(trend.advice == LOWER_LR and "jumps by" in trend.reason for trend in level)


def test_a_short_run_that_learns_fast_is_not_taken_for_a_noisy_one() -> None:
    # Six epochs of adam at a learning rate of 0.0005.
    val_acc = [0.4284, 0.5354, 0.5842, 0.6170, 0.6420, 0.6562]
    trend = analyse(2.5 - np.array(val_acc), val_acc, 2.5 - np.array(val_acc), val_acc, NAMES)
    assert trend.last_epochs == "improve" and trend.advice == MORE_EPOCHS


def test_a_run_at_chance_needs_a_lower_learning_rate() -> None:
    chance = np.full(N, 0.1)
    trend = trend_of(train_loss=np.full(N, 2.3), train_acc=chance, val_loss=np.full(N, 2.3), val_acc=chance)
    assert trend.advice == LOWER_LR and "chance" in trend.reason


def test_a_large_gap_needs_regularisation_even_before_the_loss_rises() -> None:
    trend = trend_of(train_acc=np.linspace(0.5, 0.9, N))
    assert trend.gap > 0.05 and trend.overfitting_onset is None
    assert trend.advice == REGULARISE


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_few_epochs_are_too_few_to_judge(epochs: int) -> None:
    curve = np.linspace(0.3, 0.5, epochs)
    trend = analyse(curve, curve, curve, curve, NAMES)
    assert trend.last_epochs == "unknown" and trend.advice == MORE_EPOCHS
    assert markdown(trend)


def test_the_noise_of_a_smooth_curve_is_none_and_that_of_jumps_is_their_standard_deviation() -> None:
    assert spread(np.linspace(0, 1, 50)) == pytest.approx(0)
    assert spread(falling(200)) < 1e-3
    jumps = np.random.default_rng(1).normal(0, 0.02, 2000)
    assert spread(falling(2000) + jumps) == pytest.approx(0.02, rel=0.1)


def test_hardest_classes_and_most_confused_pairs_come_from_the_confusion_matrix() -> None:
    confusion = np.diag([90] * 10)
    confusion[3, 5], confusion[5, 3], confusion[2, 4] = 40, 10, 30
    trend = trend_of(confusion=confusion)
    assert [name for name, _ in trend.hardest] == ["cat", "bird", "dog"]
    assert trend.hardest[0][1] == pytest.approx(90 / 130)
    assert trend.confused == [("cat", "dog", 40, 10), ("bird", "deer", 30, 0)]
    assert "40 cat as dog and 10 dog as cat" in markdown(trend)


def test_a_class_without_images_is_not_hard_and_no_confusion_makes_no_pair() -> None:
    confusion = np.diag([9] * 9 + [0])
    trend = trend_of(confusion=confusion)
    assert "truck" not in [name for name, _ in trend.hardest] and trend.confused == []


def test_curves_that_start_late_keep_the_numbers_of_their_epochs() -> None:
    curve = [0.3, 0.6, 0.5, 0.4]
    trend = analyse(curve, curve, curve, curve, NAMES, first_epoch=11)
    assert trend.best_epoch == 12 and trend.epochs == 14


def test_the_trend_survives_json() -> None:
    trend = trend_of(confusion=np.diag([9] * 10))
    again = Trend(**json.loads(json.dumps(asdict(trend))))
    assert sentences(again) == sentences(trend)
    assert all(not isinstance(value, float) or math.isfinite(value) for value in asdict(trend).values())


def test_of_three_epochs_nothing_is_said_about_noise() -> None:
    curve = [0.3, 0.6, 0.5, 0.4]
    for epochs, words in ((3, "too few epochs to say"), (4, "points from epoch to epoch")):
        part = curve[:epochs]
        assert words in sentences(analyse(part, part, part, part, NAMES))["noise"]


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of epochs"):
        analyse([1.0], [1.0, 2.0], [1.0], [1.0], NAMES)
    with pytest.raises(ValueError, match="at least one"):
        analyse([], [], [], [], NAMES)


RUN = {
    **{"epochs": 10, "plain_epochs": 0, "lr": 0.03, "schedule": "onecycle", "weight_decay": 0.0},
    **{"crop": 2, "flip": True, "cutout": 0, "network": "lenet5", "width": 3},
}


@pytest.mark.parametrize(
    ("advice", "changes", "words"),
    [
        (MORE_EPOCHS, {}, "--epochs 20"),
        (LOWER_LR, {}, "--lr 0.01 (--find_lr tests the range)"),
        (LOWER_LR, {"schedule": "constant"}, "--lr 0.01 (--find_lr tests the range) or --schedule onecycle"),
        (REGULARISE, {}, "--crop 4 or --cutout 8 or a higher --weight_decay"),
        (REGULARISE, {"crop": 4, "cutout": 12}, "a higher --weight_decay"),
        (REGULARISE, {"crop": 5, "flip": False}, "--cutout 8 or --flip true or a higher --weight_decay"),
        (REGULARISE, {"plain_epochs": 10}, "fewer --plain_epochs or a higher --weight_decay"),
        (WIDER, {"width": 1}, "--width 4"),
        (WIDER, {"width": 5}, "--width 6"),
        (WIDER, {"network": "resnet"}, ""),
    ],
)
def test_no_flag_is_advised_that_the_run_has_already_or_may_not_have(
    advice: str, changes: dict[str, Any], words: str
) -> None:
    assert flags_to_try(advice, RUN | changes) == words


def test_of_a_run_whose_flags_are_not_known_the_advice_names_none() -> None:
    for advice in (MORE_EPOCHS, LOWER_LR, REGULARISE, WIDER):
        assert flags_to_try(advice, {}) == flags_to_try(advice, {"unknown": 1}) == ""
    assert "--" not in sentences(trend_of())["advice"]
    assert sentences(trend_of(config=RUN))["advice"].endswith("; try --width 4")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "training"),
        ({"label_smoothing": 0.0, "teacher": None, "teacher_weight": 0.9}, "training"),
        ({"label_smoothing": 0.1}, "training (with smoothed labels)"),
        ({"teacher": "t.ckpt", "teacher_weight": 0.0}, "training"),
        ({"teacher": "t.ckpt", "label_smoothing": 0.1}, "training (with soft targets and smoothed labels)"),
    ],
)
def test_a_training_loss_that_is_more_than_cross_entropy_has_a_name_that_says_so(
    config: dict[str, Any], name: str
) -> None:
    assert train_loss_name(config) == name
