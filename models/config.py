"""Settings of the network, its optimization and its teacher."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from core.errors import SettingError
from core.settings import Settings, setting
from models.optimizers import OPTIMIZERS
from models.registry import NETWORKS


def _by_optimizer(field: str) -> str:
    """Return a default by optimizer, such as "sgd 0.1, adam and adamw 0.002"."""
    names: dict[float, list[str]] = {}
    for name, defaults in OPTIMIZERS.items():
        names.setdefault(getattr(defaults, field), []).append(name)
    return ", ".join(f"{' and '.join(alike)} {value:g}" for value, alike in names.items())


OptimizerName: TypeAlias = Literal[
    "sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad", "adadelta", "adafactor", "asgd", "muon"
]


@dataclass(frozen=True, kw_only=True)
class Network(Settings):
    """Network: what is trained."""

    network: str = setting(
        "lenet5",
        f"Network to train: {', '.join(NETWORKS)}, or a class of your own as file.py:Class, which is called with the "
        "number of classes. lenet5-bn is lenet5 with batch normalization, merged into the weights after training.",
    )
    network_sha256: str | None = setting(
        None, "SHA-256 that the file of your own network must have; null accepts any. A run records it.", named=None
    )
    width: int = setting(
        3,
        "Multiplies the layer widths of the classic LeNet-5: 3 has 548,878 parameters, 1 has 62,006.",
        at_least=1,
        at_most=100,
    )

    def check(self) -> None:
        super().check()
        known = NETWORKS.get(self.network)
        if known is None and not re.fullmatch(r".+\.py:[A-Za-z_]\w*", self.network):
            choices = ", ".join(map(repr, NETWORKS))
            raise SettingError("network", self.network, f"must be one of {choices}, or file.py:Class")
        if self.network_sha256 and known:
            raise SettingError("network_sha256", self.network_sha256, "only a network file.py:Class has one")
        if self.width != Network.width and not (known and known.has_width):
            widths = " or ".join(name for name, each in NETWORKS.items() if each.has_width)
            raise SettingError("width", self.width, f"only {widths} has one")


@dataclass(frozen=True, kw_only=True)
class Optimization(Settings):
    """Optimization: how the weights are updated."""

    optimizer: OptimizerName = setting(
        "sgd",
        "Optimizer. muon is Muon for filters and hidden layers, and AdamW for the rest; all others are PyTorch's.",
    )
    lr: float | None = setting(
        None,
        f"Peak learning rate; null takes the optimizer's default: {_by_optimizer('lr')}.",
        follows="optimizer",
        above=0,
    )
    weight_decay: float | None = setting(
        None,
        f"Weight decay; null takes the optimizer's default: {_by_optimizer('weight_decay')}.",
        named="wd",
        follows="optimizer",
        at_least=0,
    )
    momentum: float = setting(0.9, "Momentum; only sgd uses it.", at_least=0, below=1)
    nesterov: bool = setting(True, "Nesterov momentum instead of the classic one; only sgd uses it.")
    schedule: Literal["onecycle", "cosine", "step", "constant"] = setting(
        "onecycle",
        "Learning-rate schedule over the whole run. onecycle rises for a quarter of the run, then falls linearly to 0.",
    )
    label_smoothing: float = setting(
        0.0, "Label smoothing: share of the target that is spread evenly over all classes.", at_least=0, below=1
    )

    def check(self) -> None:
        """Fill in the optimizer's defaults, too, where a value is null."""
        super().check()
        for name in ("lr", "weight_decay"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(OPTIMIZERS[self.optimizer], name))


@dataclass(frozen=True, kw_only=True)
class Teacher(Settings):
    """Teacher: knowledge distillation from a trained network."""

    teacher: Path | None = setting(
        None,
        "Checkpoint file, or a run's checkpoint folder, of the network whose soft targets are learned; null is off.",
        identity=False,
        resumable=False,
    )
    teacher_weight: float = setting(
        0.9, "Weight of the soft targets in the training loss; the labels have the rest.", at_least=0, at_most=1
    )
    teacher_sha256: str | None = setting(
        None, "SHA-256 that the teacher must have; null accepts any. A run records it.", named="teacher-"
    )

    def check(self) -> None:
        super().check()
        if self.teacher_sha256 and not self.teacher:
            raise SettingError("teacher_sha256", self.teacher_sha256, "needs teacher")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Network, Optimization, Teacher):
    """All settings of `LeNetModule`."""
