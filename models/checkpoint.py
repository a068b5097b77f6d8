"""Read a run's checkpoint file or folder into one typed object.

    checkpoint = load_checkpoint(Path("checkpoints/lenet5-cifar10.ckpt"))
    network = checkpoint.make_network()  # float images [B, 3, 32, 32] to logits [B, 10]

Nothing in a file can run code, and a file that only a checkpoint names is never run. Imports no Lightning.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

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
    state_dict: dict[str, Tensor]  # of `LeNetModule`
    temperature: float  # by which to divide logits
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES  # by label

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
    except Exception as error:  # PyTorch's reader raises whatever it trips over
        reason = "refused, it is damaged or holds more than tensors and plain values"
        if isinstance(error, OSError) and error.filename:  # without a name, it is about the content
            reason = str(error.strerror)
        raise UsageError(f"{path}: {reason}") from error
    with explain_errors(path):
        if not isinstance(entries, dict) or not entries.keys() >= {STATE_DICT, EPOCH} or not read_flags(entries):
            raise UsageError("no checkpoint of this project")
        if DATA_STATE not in entries:
            raise UsageError("was trained without CIFAR10DataModule, so its preprocessing is unknown")
        check_format(entries)
        return parse_entries(path, entries, network)


def refuse_overwriting(option: str, path: Path) -> None:
    """Raise SettingError, which names the option, if the file `path` would lie among the checkpoints of a run."""
    if (path.parent / LAST).exists():
        raise SettingError(option, path, "a run has its checkpoints there; name another folder")


def read_flags(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings in a checkpoint by name: all of a run, or those of the two Lightning classes."""
    values = entries.get("datamodule_hyper_parameters", {}) | entries.get("hyper_parameters", {})
    known = get_fields(DataConfig) | get_fields(ModelConfig)
    return entries.get(FLAGS) or {name: value for name, value in values.items() if name in known}


def parse_entries(path: Path, entries: Mapping[str, Any], name: str | None) -> Checkpoint:
    """Return the entries of a file, and the place of its network's code as the caller names it, as a checkpoint.

    Any exception means that the entries are invalid, or that the name is missing or is that of another network.
    """
    flags, state = dict(read_flags(entries)), entries[DATA_STATE]
    known = Network.read(flags).network
    if name is None and known not in registry.NETWORKS:
        raise UsageError(registry.missing_code(known))
    flags["network"] = name or known
    other_class = flags["network"].rpartition(":")[2] != known.rpartition(":")[2]
    if flags["network"] != known and (other_class or {known, name} & registry.NETWORKS.keys()):
        raise UsageError(f"its network is {known}, not {name}")
    preprocessing, whitening = from_state(state)
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
        state_dict=dict(entries[STATE_DICT]),
        temperature=float(entries.get(TEMPERATURE, 1)),
    )


@contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn an exception about the content of a checkpoint into a UsageError of one line."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UsageError(f"{path}: does not fit this network: {reason}") from error
