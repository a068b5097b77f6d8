"""The networks by name: one list that the command line shows and the training uses.

Adding a network is a class in models/networks.py and a line here. One in a file of your own needs neither:
`network: file.py:Class`. PyTorch is imported only when a network is built, so that the command line can read the list
at once.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from cifar10.records import CLASS_NAMES
from core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Known:
    """A class of `models.networks`, whether its layers have a `width`, and the network that its `folded` gives."""

    class_name: str
    has_width: bool = False
    folded: str | None = None


NETWORKS = {
    "lenet5": Known("LeNet5", has_width=True),
    "lenet5-bn": Known("BatchNormLeNet5", has_width=True, folded="lenet5"),
    "resnet": Known("ResNet"),
}


def make_network(name: str, width: int = 3, sha256: str | None = None) -> nn.Module:
    """A new network: float images [B, 3, 32, 32] to logits [B, classes].

    Args:
        name: Of NETWORKS, or "file.py:Class", which is called with the number of classes. The file is run.
        width: Of a network that has one.
        sha256: What `network_sha256` of this name has to be; None takes the file as it is.

    Raises:
        UsageError: The file is not there, is another one, cannot be run, or has no such network.
    """
    if known := NETWORKS.get(name):
        from models import networks

        network_class = getattr(networks, known.class_name)
        return network_class(num_classes=len(CLASS_NAMES), **({"width": width} if known.has_width else {}))
    path, class_name = _split(name)
    source = _read(path)
    found = hashlib.sha256(source).hexdigest()
    if sha256 not in (None, found):
        raise UsageError(f"{path}: is not the file that the run had: its SHA-256 is {found}, not {sha256}")
    try:
        return _tried(_class_in(path, source, class_name)(len(CLASS_NAMES)))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:  # the file is someone's program
        raise UsageError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def network_sha256(name: str) -> str | None:
    """The SHA-256 of the file of a "file.py:Class", not of what it imports; None for a name of NETWORKS.

    UsageError if the file cannot be read."""
    return None if name in NETWORKS else hashlib.sha256(_read(_split(name)[0])).hexdigest()


def _split(name: str) -> tuple[Path, str]:
    path, _, class_name = name.rpartition(":")
    return Path(path).expanduser(), class_name


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _class_in(path: Path, source: bytes, name: str) -> type[nn.Module]:
    """Run a file whose content is `source`, so that what was hashed is what runs, and return its class `name`."""
    from torch import nn

    module = ModuleType(f"network_{hashlib.sha256(source).hexdigest()[:16]}")  # no name that shadows another module
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look classes up there
    # An import would take Python's kept bytecode for the file, which an edit within the same second does not renew.
    exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    found = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UsageError(f"has no torch.nn.Module called {name}")
    return found


def _tried(network: nn.Module) -> nn.Module:
    """The network, which has answered once: so lazy layers know their sizes, and others do not fail in an epoch."""
    import torch

    with torch.no_grad():
        logits = network.eval()(torch.zeros(2, 3, 32, 32))
    shape = list(logits.shape)
    if shape != [2, len(CLASS_NAMES)]:
        raise UsageError(f"its network makes {shape} of images [2, 3, 32, 32], not logits [2, {len(CLASS_NAMES)}]")
    return network.train()
