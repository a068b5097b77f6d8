"""Checkpoints: the one reader of a run's file or folder, which gives one typed thing.

    checkpoint = load_checkpoint(Path("checkpoints/lenet5-cifar10.ckpt"))
    network = checkpoint.make_network()  # float images [B, 3, 32, 32] to logits [B, 10]

Nothing in a file can run code, and no file that only a checkpoint names is run. Imports no Lightning.
"""

import math
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar10.config import Data, Preprocessing
from cifar10.preprocessing import from_state
from cifar10.records import CLASS_NAMES
from core.errors import SettingError, UsageError
from core.settings import FORMAT, check_format
from models import registry
from models.config import Network

# In a run's folder: of the last whole epoch, and of the best one, with what it reached at the end of its name.
LAST, BEST = "last.ckpt", "best-*=*.ckpt"

# Entries of a file. Lightning chose the first three; the third is the name of the data module's class.
STATE_DICT, EPOCH, DATA_STATE = "state_dict", "epoch", "CIFAR10DataModule"
FLAGS, NAMES = "flags", "class_names"
OPTIMIZER_STATES = "optimizer_states"  # of a run, which can be resumed from there; not in released weights
TEMPERATURE = "temperature"  # without it, 1
MODEL = "model."  # before the names of the network's weights, which are an attribute of `LeNetModule`


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run left."""

    path: Path
    flags: dict[str, Any]  # the run's settings by name, as they were written
    epoch: int  # the last one trained, counted from 0
    network: Network
    data: Data
    preprocessing: Preprocessing  # what images have to go through before the network
    whitening: np.ndarray | None  # float32 [3, 3 * ZCA_SIDE**2 + 1] of `fit_whitening`, if the preprocessing has it
    mean: Tensor  # float32 [3], per channel, in [0, 255], as std
    std: Tensor
    class_names: tuple[str, ...]  # by label
    state_dict: dict[str, Tensor]  # of `LeNetModule`
    temperature: float  # of `fit_temperature`

    def make_network(self) -> nn.Module:
        """The trained network; UsageError if the weights are of another one."""
        chosen = self.network
        network = registry.make_network(chosen.network, chosen.width, chosen.network_sha256)
        with _fitting(self.path):
            network.load_state_dict({name.removeprefix(MODEL): value for name, value in self.state_dict.items()})
        return network

    def folded(self) -> "Checkpoint":
        """The checkpoint of the network that answers the same without what only training needs; it may be itself."""
        known = registry.NETWORKS.get(self.network.network)
        if known is None or known.folded is None:
            return self
        network: Any = self.make_network().eval()
        state_dict = {MODEL + name: value for name, value in network.folded().state_dict().items()}
        name, flags = known.folded, self.flags | {"network": known.folded}
        return replace(self, network=replace(self.network, network=name), flags=flags, state_dict=state_dict)

    def data_state(self) -> dict[str, Any]:
        """The state of the data module, as `CIFAR10DataModule.load_state_dict` takes it."""
        state = {"mean": self.mean, "std": self.std, "preprocessing": self.preprocessing.plain()}
        return state | ({} if self.whitening is None else {"whitening": torch.from_numpy(self.whitening)})

    def entries(self) -> dict[str, Any]:
        """Tensors and plain values, from which `load_checkpoint` makes the same checkpoint."""
        run = {"format": FORMAT, FLAGS: self.flags, EPOCH: self.epoch, NAMES: list(self.class_names)}
        run |= {TEMPERATURE: self.temperature}
        return run | {DATA_STATE: self.data_state(), STATE_DICT: self.state_dict}


def load_checkpoint(path: str | Path, network: str | None = None, last: bool = False) -> Checkpoint:
    """Read a checkpoint of train.py.

    Args:
        path: The file, or the folder of its run: then BEST is read, the epoch that the run tested, or LAST if no epoch
            was chosen, or if `last` is set.
        network: For a network of someone's own, its "file.py:Class": a checkpoint brings no code.

    Raises:
        UsageError: It is not there, damaged, of another program or format, or would have run code; its
            entries contradict each other; or `network` is not the network of the run, or is missing.
    """
    path = Path(path)
    if path.is_dir():
        best = sorted(path.glob(BEST), key=lambda file: file.stem.rpartition("=")[2])
        path = best[-1] if best and not last else path / LAST
        if not path.exists():
            raise UsageError(f"{path.parent}: a folder without {LAST}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of files that are refused right after
            entries = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or 'damaged, or no PyTorch checkpoint'}") from error
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path}: refused, it holds more than tensors and plain values, or is damaged") from error
    except Exception as error:  # PyTorch's reader raises whatever it trips over
        raise UsageError(f"{path}: damaged, or no PyTorch checkpoint") from error
    if not isinstance(entries, dict) or not entries.keys() >= {STATE_DICT, EPOCH} or not read_flags(entries):
        raise UsageError(f"{path}: no checkpoint of this project")
    if DATA_STATE not in entries:
        raise UsageError(f"{path}: was trained without CIFAR10DataModule, so its preprocessing is unknown")
    checkpoint = _checkpoint(path, entries)
    return replace(checkpoint, **_named(checkpoint, network))


def refuse_overwriting(option: str, path: Path) -> None:
    """Raise SettingError, which names the option, if the file `path` is a checkpoint of a run, or would lie among
    them: to resume the run, each has to stay as it is.
    """
    of_run = (path.parent / LAST).exists() or any(path.parent.glob(BEST))
    if not of_run and path.is_file():
        with suppress(Exception):  # a file of another kind
            of_run = OPTIMIZER_STATES in torch.load(path, map_location="cpu", weights_only=True)
    if of_run:
        raise SettingError(option, path, "a run has its checkpoints there; name another file")


def read_flags(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings in a checkpoint by name: all of a run, or those of the two Lightning classes."""
    return entries.get(FLAGS) or {
        **entries.get("datamodule_hyper_parameters", {}),
        **entries.get("hyper_parameters", {}),
    }


def remove_compiled_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names that they have in a network without `torch.compile`."""
    return {name.replace(f"{MODEL}_orig_mod.", MODEL, 1): value for name, value in state_dict.items()}


def _checkpoint(path: Path, entries: Mapping[str, Any]) -> Checkpoint:
    try:
        check_format(entries)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    with _fitting(path):
        flags, state = dict(read_flags(entries)), entries[DATA_STATE]
        preprocessing, whitening = from_state(state)
        temperature = float(entries.get(TEMPERATURE, 1))
        if not 0 < temperature < math.inf:
            raise UsageError(f"temperature {temperature} is not above 0")
        names = tuple(entries.get(NAMES, CLASS_NAMES))
        if len(names) != len(CLASS_NAMES) or not all(isinstance(name, str) for name in names):
            raise UsageError(f"has no names of {len(CLASS_NAMES)} classes")
        return Checkpoint(
            path=path,
            flags=flags,
            epoch=int(entries[EPOCH]),
            network=Network.read(flags),
            data=Data.read(flags),
            preprocessing=preprocessing,
            whitening=whitening,
            mean=state["mean"].view(3),
            std=state["std"].view(3),
            class_names=names,
            state_dict=remove_compiled_prefix(entries[STATE_DICT]),
            temperature=temperature,
        )


def _named(checkpoint: Checkpoint, name: str | None) -> dict[str, Any]:
    """The fields that say where the network's code is, by what the caller named."""
    network, flags = checkpoint.network, checkpoint.flags
    own = network.network not in registry.NETWORKS
    if own and name is None:
        raise UsageError(f"{checkpoint.path}: {registry.missing_code(network.network)}")
    if name is None or name == network.network:
        return {}
    if not own or name in registry.NETWORKS or name.rpartition(":")[2] != network.network.rpartition(":")[2]:
        raise UsageError(f"{checkpoint.path}: its network is {network.network}, not {name}")
    return {"network": replace(network, network=name), "flags": flags | {"network": name}}


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the content of a checkpoint into one line."""
    try:
        yield
    except (UsageError, TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UsageError(f"{path}: does not fit this network: {reason}") from error
