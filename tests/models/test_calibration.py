"""Temperature scaling: what is fitted, where it is kept, and who applies it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate as main_program
from analysis.figures import calibration_error
from cifar_datamodule import CIFAR10DataModule
from conftest import evaluated
from core.errors import SettingError
from lenet_module import LeNetModule
from models.calibration import fit_temperature
from models.checkpoint import load_checkpoint
from models.classifier import load_classifier


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0])
def test_labels_drawn_by_the_probabilities_give_back_what_the_logits_were_multiplied_by(factor: float) -> None:
    logits = 2 * torch.randn(20_000, 10)
    labels = torch.multinomial(logits.softmax(1), 1)[:, 0]
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)
    scaled = factor * logits / fit_temperature(factor * logits, labels)
    assert calibration_error(scaled.softmax(1), labels) < 0.015


def test_a_run_fits_its_best_checkpoint_and_everything_that_gives_probabilities_applies_it(
    run: Any, data_dir: Path
) -> None:
    path = run().checkpoint
    checkpoint = load_checkpoint(path)
    assert (
        checkpoint.temperature != 1 and load_checkpoint(path.parent, last=True).temperature == 1
    )  # fitted to the best epoch's

    classifier = load_classifier(path)
    datamodule = CIFAR10DataModule.load_from_checkpoint(path, data_dir=data_dir, weights_only=True)
    datamodule.prepare_data()
    datamodule.setup()
    module = LeNetModule.load_from_checkpoint(path, weights_only=True).eval()
    images, _ = next(iter(datamodule.test_dataloader()))
    with torch.no_grad():
        expected = (module(images) / checkpoint.temperature).softmax(1)
        torch.testing.assert_close(module.predict_step(images, 0), expected)

    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = (classifier.compute_logits(pixels.numpy()) / checkpoint.temperature).softmax(1)
        torch.testing.assert_close(classifier(pixels), expected)


def test_a_temperature_of_another_run_is_evaluated_and_released(
    run: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(val_size=0).checkpoint  # without validation nothing is fitted
    assert load_checkpoint(path).temperature == 1
    released = tmp_path / "released.ckpt"
    line = [str(path), "--data_dir", str(data_dir), "--temperature", "3", "--release", str(released)]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *line])
    main_program.main()
    printed = capsys.readouterr().out
    assert load_checkpoint(released).temperature == 3
    own, other = evaluated(path, data_dir), evaluated(released, data_dir)
    assert (own["test/loss"], own["test/acc"]) == (other["test/loss"], other["test/acc"])
    assert own["test/ece"] != other["test/ece"]
    assert f"expected calibration error  {other['test/ece']:.2%}\n" in printed


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_temperature_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", "run.ckpt", "--temperature", value])
    with pytest.raises(SettingError, match="temperature"):
        main_program.main()
