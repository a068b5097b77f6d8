"""Checkpoints of every format, of networks that have learned nothing, and networks in files of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifar10.config import Preprocessing
from models.networks import LeNet5
from training.config import RunConfig

# What each version of the program wrote as the settings of a run, all of format 1.
FIRST = {
    **{"optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0005, "momentum": 0.9, "nesterov": True},
    **{"schedule": "onecycle", "epochs": 10, "batch_size": 128, "label_smoothing": 0.0, "width": 1},
    **{"crop": 2, "flip": True, "cutout": 0, "val_size": 5000, "split_seed": 0, "select_on": "val", "seed": 0},
    **{"data_dir": "data", "mirror": None, "log_dir": "logs", "checkpoint_dir": "checkpoints", "threads": None},
    **{"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"},
    "fast_dev_run": False,
}
PREPROCESSED = {
    **{"denoise": "none", "denoise_strength": None, "segment": "none", "normalize": "dataset", "corrupt": "none"},
    **{"severity": None, "corrupt_on": "test"},
}
BEFORE_TEACHERS = FIRST | PREPROCESSED | {"pictures": False, "quiet": False}
WITH_TEACHERS = BEFORE_TEACHERS | {
    **{"network": "lenet5", "teacher": None, "teacher_weight": 0.9, "plain_epochs": 0, "tag": None},
}
STATISTICS = {"mean": torch.tensor([125.0, 123.0, 114.0]), "std": torch.tensor([63.0, 62.0, 67.0])}


def write_checkpoint(path: Path, flags: Mapping[str, Any], network: nn.Module | None = None, **entries: Any) -> Path:
    """A file as train.py writes it.

    Args:
        flags: The settings of the run, as they were written.
        network: None is `sure_network()`.
        entries: Others, or instead of those that there are.
    """
    network = network or sure_network()
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    there = {"state_dict": weights, "epoch": 1, "flags": dict(flags), "CIFAR10DataModule": STATISTICS}
    torch.save(there | entries, path)
    return path


def sure_network() -> LeNet5:
    """A small network that has learned nothing but to be sure of itself."""
    torch.manual_seed(0)
    network = LeNet5(width=1)
    network.fc3.weight.data *= 20
    return network


def made_up_checkpoint(path: Path, **data: Any) -> Path:
    """Of the format before numbers, of `sure_network`; `data` is what its data module's state has more or instead."""
    return write_checkpoint(path, WITH_TEACHERS, CIFAR10DataModule=STATISTICS | data)


def of_format_2(
    path: Path, module: nn.Module | None = None, /, preprocessing: Mapping[str, Any] | None = None, **changes: Any
) -> Path:
    """A file of format 2, with all settings of a run.

    Args:
        module: The network; None is `sure_network()`.
        preprocessing: Of the data module's state; None is normalize "dataset".
        changes: Of the settings.
    """
    flags = RunConfig(network="lenet5", width=1).plain() | PREPROCESSED | changes
    state = STATISTICS | {"preprocessing": dict(preprocessing or Preprocessing(normalize="dataset").plain())}
    return write_checkpoint(path, flags, module, format=2, CIFAR10DataModule=state)


PERCEPTRON = """
from torch import nn


class Perceptron(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), nn.Tanh(), nn.Linear(16, classes))

    def forward(self, images):
        return self.layers(images)
"""

ALL_CONVOLUTIONAL = """
from torch import nn


class AllConvolutional(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.second = nn.Conv2d(8, classes, 3, stride=2)

    def forward(self, images):
        return self.second(self.first(images).relu()).mean((2, 3))
"""

FLATTENS_BY_VIEW = """
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 5)
        self.fc = nn.Linear(6 * 14 * 14, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x.view(len(x), 3, 32, 32))), 2)
        return self.fc(x.view(-1, 6 * 14 * 14))
"""

DROPS_OUT = """
from torch import nn


class Dropping(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(3072, 8), nn.Dropout(), nn.Linear(8, classes))
"""
OWN_NETWORKS = {
    "Dropping": DROPS_OUT,
    "Perceptron": PERCEPTRON,
    "AllConvolutional": ALL_CONVOLUTIONAL,
    "Net": FLATTENS_BY_VIEW,
}


def own_network(folder: Path, class_name: str) -> str:
    """Write a file with one of OWN_NETWORKS, and return the name of the network, file.py:Class."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.py").write_text(OWN_NETWORKS[class_name])
    return f"{folder / 'own.py'}:{class_name}"
