"""The learning-rate range test."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from core.errors import UsageError
from core.signals import Stopped
from training import lr_finder
from training.config import RunConfig
from training.run import refuse_second_run


@pytest.fixture
def find_lr(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls the range test with 60 steps on the made-up data; returns the rate and the picture."""
    monkeypatch.setattr(lr_finder, "STEPS", 60)

    def call(**flags: Any) -> tuple[float, Path]:
        small: dict[str, Any] = {"batch_size": 50, "val_size": 100, "width": 1}
        return lr_finder.find_lr(RunConfig(data_dir=data_dir, log_dir=tmp_path / "logs", **small | flags))

    return call


def test_the_range_test_suggests_a_rate_shows_its_curve_and_touches_nothing_else(
    find_lr: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lr, picture = find_lr(optimizer="adam")
    assert 2e-6 < lr < 0.06
    assert picture.name == "lr_range_test.png" and picture.read_bytes().startswith(b"\x89PNG")
    assert EventAccumulator(str(picture.parent)).Reload().Tags()["images"] == ["whole_run/lr_range_test"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "logs"]


def test_the_suggested_rate_is_the_middle_of_the_valley_of_the_loss() -> None:
    lrs = np.logspace(-6, 0, 61)
    losses = np.interp(np.log10(lrs), [-6, -5, -4, -2, -1, 0], [2.3, 2.3, 1.7, 1.7, 5.0, 3.0])
    found = lr_finder.LRRange(lrs, losses)
    assert found.suggestion == pytest.approx(1e-3, rel=0.3)
    assert found.valley[0] == pytest.approx(10**-4.1, rel=0.3) and found.valley[1] == pytest.approx(1e-2, rel=0.3)
    falling = lr_finder.LRRange(lrs, np.linspace(2.3, 1.7, 61))
    assert falling.valley == (pytest.approx(10**-0.6), 1.0)


def test_the_range_test_ends_where_the_loss_does(find_lr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lr_finder, "HIGHEST", 1e6)
    lr, _ = find_lr(optimizer="sgd")
    assert lr < 10


def test_the_range_test_is_refused_beside_a_run_in_the_same_process(find_lr: Any) -> None:
    with refuse_second_run(), pytest.raises(UsageError, match="another run goes on in this process"):
        find_lr()


def test_a_signal_ends_the_range_test_as_it_ends_a_run(
    find_lr: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lr_finder.GrowingRate, "on_train_batch_end", lambda *rest: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped):
        find_lr()
    assert signal.getsignal(signal.SIGINT) == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
