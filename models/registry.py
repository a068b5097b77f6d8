"""The networks by name: one list that the command line shows and the training uses.

PyTorch is imported only when a network is built, so that the command line can read the list at once.
"""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cifar10.errors import UsageError
from cifar10.records import CLASS_NAMES

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Known:
    """A class of `models.networks`, and whether its layers have a `width`."""

    class_name: str
    has_width: bool = False


NETWORKS = {
    "lenet5": Known("LeNet5", has_width=True),
    "resnet": Known("ResNet"),
}


def make_network(name: str, width: int = 3) -> nn.Module:
    """A new network: float images [B, 3, 32, 32] to logits [B, classes].

    Args:
        name: Of NETWORKS, or "file.py:Class", which is called with the number of classes. The file is run.
        width: Of a network that has one.

    Raises:
        UsageError: The file is not there, cannot be run, or has no such network.
    """
    if known := NETWORKS.get(name):
        from models import networks

        network_class = getattr(networks, known.class_name)
        return network_class(num_classes=len(CLASS_NAMES), **({"width": width} if known.has_width else {}))
    path, _, class_name = name.rpartition(":")
    return _class_in(Path(path).expanduser(), class_name)(len(CLASS_NAMES))


def _class_in(path: Path, name: str) -> type[nn.Module]:
    from torch import nn

    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is someone's program
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UsageError(f"{path}: has no torch.nn.Module called {name}")
    return found
