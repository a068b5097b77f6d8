"""Checkpoints of networks that have learned nothing, and networks in files of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifar10.config import Preprocessing
from core.settings import FORMAT
from models.networks import LeNet5
from training.config import RunConfig

PREPROCESSED = Preprocessing().plain()
FLAGS = RunConfig(network="lenet5", width=1).plain()
STATE: dict[str, Any] = {
    "mean": torch.tensor([125.0, 123.0, 114.0]),
    "std": torch.tensor([63.0, 62.0, 67.0]),
    "preprocessing": PREPROCESSED,
}  # of the data module


def write_checkpoint(
    path: Path, module: nn.Module | None = None, /, state: Mapping[str, Any] | None = None, **changes: Any
) -> Path:
    """Write a file as train.py does.

    Args:
        module: The network; None is `sure_network()`.
        state: What the data module's state has instead of STATE; of "preprocessing" what is not PREPROCESSED.
        changes: Of FLAGS, the run's settings.
    """
    weights = {f"model.{name}": value for name, value in (module or sure_network()).state_dict().items()}
    entries = {"state_dict": weights, "epoch": 1, "format": FORMAT, "flags": FLAGS | changes}
    data = STATE | dict(state or {})
    data["preprocessing"] = PREPROCESSED | data["preprocessing"]
    torch.save(entries | {"CIFAR10DataModule": data}, path)
    return path


def change_entries(path: Path, **entries: Any) -> Path:
    """Change entries of a checkpoint, or add some."""
    torch.save(torch.load(path, weights_only=True) | entries, path)
    return path


def sure_network() -> LeNet5:
    """Return a small network that has learned nothing, with large logits."""
    torch.manual_seed(0)
    network = LeNet5(width=1)
    network.fc3.weight.data *= 20
    return network


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
