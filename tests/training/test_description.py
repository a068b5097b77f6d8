"""The description of what a run trains."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.config import Network
from models.registry import make_network
from training.config import RunConfig
from training.description import count_parameters, describe, describe_in_lines


def test_the_default_run_is_described_on_three_lines() -> None:
    config = RunConfig(optimizer="adam", precision="bf16-mixed", threads=1)
    assert describe_in_lines(config, 548_878).splitlines() == [
        "Training LeNet-5, width 3, 548,878 parameters: 10 epochs, batch 128, adam, lr 0.004, onecycle schedule, "
        "weight decay 0",
        "Images: 45,000 for training, 5,000 for validation; mean/std normalization; random crop (up to 2 pixels), "
        "horizontal flip",
        "Number format: bf16-mixed, 1 thread; seed 0",
    ]


@pytest.mark.parametrize(
    ("flags", "label", "text"),
    [
        ({"network": "lenet5-bn"}, "network", "LeNet-5 with batch normalization, width 3"),
        ({"network": "own.py:Net"}, "network", "own.py:Net"),
        ({"teacher": "t.ckpt"}, "network", "LeNet-5, width 3, distilled from t.ckpt with weight 0.9"),
        ({"normalize": "zca-half", "denoise": "median"}, "preprocessing", "median filter (strength 3), half whitening"),
        (
            {"corrupt": "blur", "segment": "otsu", "normalize": "none"},
            "preprocessing",
            "blur corruption of severity 3 of the test images, otsu segmentation, no normalization",
        ),
        ({"crop": 0, "flip": False}, "augmentation", "no crop, no flip"),
        (
            {"cutout": 8, "random_corruption": 0.35, "corruption_versions": 3, "plain_epochs": 2},
            "augmentation",
            "random crop (up to 2 pixels), horizontal flip, cutout of 8 pixels, 35% corrupted images (3 versions of "
            "each), neither crop nor cutout in the last 2 epochs",
        ),
        (
            {"label_smoothing": 0.1, "nesterov": False},
            "optimizer",
            "sgd, lr 0.05, onecycle schedule, weight decay 0.0005, momentum 0.9, label smoothing 0.1",
        ),
        (
            {"val_size": 0, "select_on": "test"},
            "images",
            "50,000 for training, 0 for validation, the epoch is chosen on the test set",
        ),
        (
            {"threads": 2, "devices": 2, "precision": "32-true"},
            "number format",
            "32-true, 2 threads, devices 2, nodes 1, strategy auto",
        ),
    ],
)
def test_what_is_trained_is_said_in_words(flags: dict[str, Any], label: str, text: str) -> None:
    assert describe(RunConfig(**flags))[label] == text


def test_nothing_is_said_of_what_varies() -> None:
    rows = describe(RunConfig(), 62_006, without=("lr", "width", "seed", "crop", "flip"))
    assert rows["optimizer"].startswith("sgd, onecycle") and rows.get("network") is None
    assert "seed" not in rows and "augmentation" not in rows


@pytest.mark.parametrize(("name", "width"), [("lenet5", 1), ("lenet5-bn", 3), ("resnet", 3)])
def test_parameters_are_counted_without_random_numbers(name: str, width: int) -> None:
    assert count_parameters(Network(network="own.py:Net")) is None  # whoever has made it counts them
    state = torch.get_rng_state()
    found = count_parameters(Network(network=name, width=width))
    assert torch.equal(torch.get_rng_state(), state)
    saved = make_network("lenet5" if name == "lenet5-bn" else name, width)
    assert found == sum(parameter.numel() for parameter in saved.parameters())


def test_a_run_says_what_it_trains_on_the_screen_in_its_report_and_in_tensorboard(finished: SimpleNamespace) -> None:
    line = "median filter (strength 3), half whitening"
    assert line in finished.printed.splitlines()[1]
    report = (finished.log_dir / "report.md").read_text()
    assert line in report and "62,006 parameters" in report
    assert f"PyTorch {torch.__version__.partition('+')[0]}, Lightning" in report
    assert line.encode() in b"".join(path.read_bytes() for path in finished.log_dir.glob("events*"))
