"""Read a run's checkpoint file or folder into one typed object.

    checkpoint = load_checkpoint(Path("checkpoints/lenet5-cifar10.ckpt"))
    network = checkpoint.make_network()  # float images [B, 3, 32, 32] to logits [B, 10]

Nothing in a file can run code, and a file that only a checkpoint names is never run. Imports no Lightning.
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

from cifar10.config import Data, DataConfig, Preprocessing
from cifar10.preprocessing import from_state
from cifar10.records import CLASS_NAMES
from core.errors import SettingError, UsageError
from core.settings import FORMAT, check_format, get_fields
from models import registry
from models.config import ModelConfig, Network

LAST = "last.ckpt"  # in a run's folder: the last whole epoch
BEST = "best-*=*.ckpt"  # and the best one, whose name ends with its accuracy

# Entries of a file. Lightning chose the first three; the third is the name of the data module's class.
STATE_DICT, EPOCH, DATA_STATE = "state_dict", "epoch", "CIFAR10DataModule"
FLAGS, NAMES = "flags", "class_names"
OPTIMIZER_STATES = "optimizer_states"  # of a run, which can be resumed from there; not in released weights
TEMPERATURE = "temperature"  # of `fit_temperature`; 1 if it is missing
MODEL = "model."  # prefix of the network's weights, since the network is an attribute of `LeNetModule`


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of a checkpoint file."""

    path: Path
    flags: dict[str, Any]  # settings of the run by name, as they were written
    epoch: int  # the last one trained, counted from 0
    network: Network
    data: Data
    data_state: dict[str, Any]  # of `CIFAR10DataModule`
    preprocessing: Preprocessing  # of the images that the network takes
    whitening: np.ndarray | None  # float32 [3, 3 * ZCA_SIDE**2 + 1] of `fit_whitening`, if the preprocessing has it
    mean: Tensor  # float32 [3], per channel, in [0, 255], as std
    std: Tensor
    class_names: tuple[str, ...]  # by label
    state_dict: dict[str, Tensor]  # of `LeNetModule`
    temperature: float  # by which to divide logits

    @property
    def is_of_run(self) -> bool:
        """Return whether train.py wrote it: a script of your own records the settings of the two classes alone."""
        return "epochs" in self.flags

    def make_network(self) -> nn.Module:
        """Make the trained network; UsageError if the weights are of another one."""
        chosen = self.network
        network = registry.make_network(chosen.network, chosen.width, chosen.network_sha256)
        with explain_errors(self.path):
            network.load_state_dict({name.removeprefix(MODEL): value for name, value in self.state_dict.items()})
        return network

    def fold(self) -> "Checkpoint":
        """Return the checkpoint with batch normalization merged into the weights, if its network can do that."""
        known = registry.NETWORKS.get(self.network.network)
        if known is None or known.folds_to is None:
            return self
        network: Any = self.make_network().eval()
        state_dict = {MODEL + name: value for name, value in network.fold().state_dict().items()}
        name, flags = known.folds_to, self.flags | {"network": known.folds_to}
        return replace(self, network=replace(self.network, network=name), flags=flags, state_dict=state_dict)

    def to_entries(self) -> dict[str, Any]:
        """Return tensors and plain values from which `load_checkpoint` makes the same checkpoint."""
        run = {"format": FORMAT, FLAGS: self.flags, EPOCH: self.epoch, NAMES: list(self.class_names)}
        return run | {TEMPERATURE: self.temperature, DATA_STATE: self.data_state, STATE_DICT: self.state_dict}


def load_checkpoint(path: str | Path, network: str | None = None, last: bool = False) -> Checkpoint:
    """Read a checkpoint of train.py, or of a script that trains `LeNetModule` on `CIFAR10DataModule`.

    Args:
        path: File, or checkpoint folder of a run. In a folder BEST is read, the epoch that the run tested, or LAST if
            there is no best epoch or `last` is set.
        network: "file.py:Class" of a network of your own, since a checkpoint holds no code.

    Raises:
        UsageError: The file is missing, damaged, of another program or format, contradicts itself, or would have run
            code; or `network` is missing or is not the network of the run.
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
        reason = error.strerror if error.filename else "damaged, or no PyTorch checkpoint"  # without one: its content
        raise UsageError(f"{path}: {reason}") from error
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path}: refused, it holds more than tensors and plain values, or is damaged") from error
    except Exception as error:  # PyTorch's reader raises whatever it trips over
        raise UsageError(f"{path}: damaged, or no PyTorch checkpoint") from error
    if not isinstance(entries, dict) or not entries.keys() >= {STATE_DICT, EPOCH} or not read_flags(entries):
        raise UsageError(f"{path}: no checkpoint of this project")
    if DATA_STATE not in entries:
        raise UsageError(f"{path}: was trained without CIFAR10DataModule, so its preprocessing is unknown")
    try:
        check_format(entries)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    with explain_errors(path):
        checkpoint = parse_entries(path, entries)
    return name_network_again(checkpoint, network)


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
    values = entries.get("datamodule_hyper_parameters", {}) | entries.get("hyper_parameters", {})
    known = get_fields(DataConfig) | get_fields(ModelConfig)
    return entries.get(FLAGS) or {name: value for name, value in values.items() if name in known}


def remove_compiled_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names that they have in a network without `torch.compile`."""
    return {name.replace(f"{MODEL}_orig_mod.", MODEL, 1): value for name, value in state_dict.items()}


def parse_entries(path: Path, entries: Mapping[str, Any]) -> Checkpoint:
    """Return the entries of a file as a checkpoint; any exception means that they are invalid."""
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
        data_state=state,
        preprocessing=preprocessing,
        whitening=whitening,
        mean=state["mean"].view(3),
        std=state["std"].view(3),
        class_names=names,
        state_dict=remove_compiled_prefix(entries[STATE_DICT]),
        temperature=temperature,
    )


def name_network_again(checkpoint: Checkpoint, name: str | None) -> Checkpoint:
    """Return the checkpoint with the place of its network's code, as the caller names it.

    UsageError if it is missing for a network of the user's own, or is another network than the checkpoint's.
    """
    known = checkpoint.network.network
    own = known not in registry.NETWORKS
    if own and name is None:
        raise UsageError(f"{checkpoint.path}: {registry.missing_code(known)}")
    if name is None or name == known:
        return checkpoint
    if not own or name in registry.NETWORKS or name.rpartition(":")[2] != known.rpartition(":")[2]:
        raise UsageError(f"{checkpoint.path}: its network is {known}, not {name}")
    flags = checkpoint.flags | {"network": name}
    return replace(checkpoint, network=replace(checkpoint.network, network=name), flags=flags)


@contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn an exception about the content of a checkpoint into a UsageError of one line."""
    try:
        yield
    except (UsageError, TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UsageError(f"{path}: does not fit this network: {reason}") from error
