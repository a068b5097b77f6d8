"""Networks by name, for the command line and for training.

To add a network, write a class in models/networks.py and one line here. A network in a file of your own needs neither:
its name is "file.py:Class". PyTorch is imported only when a network is made: the command line reads the list at once.
"""

from __future__ import annotations

import inspect
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cifar10.records import CLASS_NAMES
from core import files
from core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NetworkClass:
    """A class of models/networks.py, its title, whether it takes a `width`, and the network that its `fold` makes."""

    class_name: str
    title: str
    has_width: bool = False
    folds_to: str | None = None


NETWORKS = {
    "lenet5": NetworkClass("LeNet5", "LeNet-5", has_width=True),
    "lenet5-bn": NetworkClass("BatchNormLeNet5", "LeNet-5 with batch normalization", has_width=True, folds_to="lenet5"),
    "resnet": NetworkClass("ResNet", "residual network"),
}


def make_network(name: str, width: int = 3, sha256: str | None = None) -> nn.Module:
    """Make a new network that maps float images [B, 3, 32, 32] to logits [B, classes].

    Args:
        name: A key of NETWORKS, or "file.py:Class". The file is run, unless it is the program that runs already. The
            class is called with the number of classes, or without arguments if it takes none.
        width: For a network that takes one.
        sha256: Required SHA-256 of the file; None accepts any.

    Raises:
        UsageError: The file is missing, is another one, cannot be run, or has no such network.
    """
    if known := NETWORKS.get(name):
        from models import networks

        network_class = getattr(networks, known.class_name)
        return network_class(num_classes=len(CLASS_NAMES), **({"width": width} if known.has_width else {}))
    path, source = read_source(name)
    found = files.sha256(source)
    if sha256 not in (None, found):
        raise UsageError(f"{path}: is not the file that the run used: its SHA-256 is {found}, not {sha256}")
    try:
        network_class = find_class(path, name.rpartition(":")[2])
        arguments = (len(CLASS_NAMES),) if inspect.signature(network_class).parameters else ()
        network = network_class(*arguments)
        check_network(network)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:  # the file is someone's program
        raise UsageError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return network


def hash_network(name: str) -> str | None:
    """Return the SHA-256 of the file in "file.py:Class", not of what it imports; None for a key of NETWORKS.

    UsageError if the file cannot be read.
    """
    return None if name in NETWORKS else files.sha256(read_source(name)[1])


def name_network(network: nn.Module) -> str:
    """Return "file.py:Class" for a network object, without the file's folder."""
    network_class = type(network)
    module = sys.modules.get(network_class.__module__)
    file = getattr(module, "__file__", None) or f"{network_class.__module__}.py"  # a notebook has no file
    return f"{Path(file).name}:{network_class.__name__}"


def missing_code(name: str) -> str:
    """Return what to say where a checkpoint names a network whose code the user has to pass again."""
    return f"its network is {name}, and a checkpoint holds no code: pass the network again (--network {name})"


def read_source(name: str) -> tuple[Path, bytes]:
    """Return the path in "file.py:Class" and the content of that file; UsageError if it cannot be read."""
    path = Path(name.rpartition(":")[0]).expanduser()
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def find_class(path: Path, class_name: str) -> type[nn.Module]:
    """Return a class of a Python file, which is run if it is not the program that runs already."""
    from torch import nn

    main = sys.modules["__main__"]
    is_running = Path(getattr(main, "__file__", None) or "").resolve() == path.resolve()
    # An import would use Python's cached bytecode, which misses an edit within the same second.
    found = (vars(main) if is_running else runpy.run_path(str(path), run_name="__network__")).get(class_name)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UsageError(f"has no torch.nn.Module called {class_name}")
    return found


def check_network(network: nn.Module) -> None:
    """Classify two blank images, so that lazy layers get their sizes; UsageError if the logits have a wrong shape."""
    import torch

    parameter = next(network.parameters(), torch.empty(0))
    with torch.no_grad():
        logits = network.eval()(torch.zeros(2, 3, 32, 32, device=parameter.device, dtype=parameter.dtype))
    network.train()
    if list(logits.shape) != [2, len(CLASS_NAMES)]:
        shapes = f"{list(logits.shape)} of images [2, 3, 32, 32], not logits [2, {len(CLASS_NAMES)}]"
        raise UsageError(f"the network makes {shapes}")
