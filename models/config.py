"""The settings of the rooms that learn: which network, how its weights are updated, who teaches it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, TypeAlias

from cifar10.errors import SettingError
from cifar10.settings import Settings, setting
from models.optimizers import OPTIMIZERS, SCHEDULES
from models.registry import NETWORKS

OptimizerName: TypeAlias = Literal[tuple(OPTIMIZERS)]  # type: ignore[valid-type]
ScheduleName: TypeAlias = Literal[tuple(SCHEDULES)]  # type: ignore[valid-type]


@dataclass(frozen=True, kw_only=True)
class Network(Settings):
    """Network: what learns."""

    network: str = setting(
        "lenet5",
        f"One of {', '.join(NETWORKS)}, or a class of your own, file.py:Class, which is called with the number of "
        "classes.",
        since=2,
        before="lenet5",
    )
    network_sha256: str | None = setting(
        None,
        "What the file of a class of your own has to be; null takes it as it is. A run writes it down.",
        since=2,
    )
    width: int = setting(
        3,
        "Factor on the classic layer widths of lenet5; 3 has 548,878 parameters, 1 has 62,006.",
        compared=True,
        at_least=1,
        at_most=100,
    )

    def check(self) -> None:
        known = NETWORKS.get(self.network)
        if known is None and not re.fullmatch(r".+\.py:[A-Za-z_]\w*", self.network):
            choices = ", ".join(map(repr, NETWORKS))
            raise SettingError("network", self.network, f"must be one of {choices}, or file.py:Class")
        if self.network_sha256 and known:
            raise SettingError("network_sha256", self.network_sha256, "is of a network file.py:Class alone")
        if self.width != Network.width and not (known and known.has_width):
            widths = " or ".join(name for name, each in NETWORKS.items() if each.has_width)
            raise SettingError("width", self.width, f"is of network {widths} alone")


@dataclass(frozen=True, kw_only=True)
class Optimization(Settings):
    """Optimization: how weights are updated."""

    optimizer: OptimizerName = setting("sgd", "How the weights are updated.", compared=True, named="")
    lr: float | None = setting(
        None, "Peak learning rate; null takes the optimizer's default.", compared=True, named="lr", above=0
    )
    weight_decay: float | None = setting(None, "Weight decay; null takes the optimizer's default.", at_least=0)
    momentum: float = setting(0.9, "Momentum of sgd.", at_least=0, below=1)
    nesterov: bool = setting(True, "Whether sgd's momentum is Nesterov's.")
    schedule: ScheduleName = setting(
        "onecycle",
        "The learning rate over the run; onecycle warms up for a quarter of it, then falls linearly to 0.",
        compared=True,
    )
    label_smoothing: float = setting(
        0.0, "Share of the training target that is spread over all classes.", at_least=0, below=1
    )

    def resolved(self) -> Self:
        """With the optimizer's defaults where nothing is given."""
        defaults = OPTIMIZERS[self.optimizer]
        return replace(
            self,
            lr=defaults.lr if self.lr is None else self.lr,
            weight_decay=defaults.weight_decay if self.weight_decay is None else self.weight_decay,
        )


@dataclass(frozen=True, kw_only=True)
class Teacher(Settings):
    """Teacher: a trained network whose soft targets are learned."""

    teacher: Path | None = setting(
        None,
        "Checkpoint, or a run's folder, of a network whose soft targets are learned beside the labels.",
        identity=False,
        resumable=False,
        since=2,
    )
    teacher_weight: float = setting(
        0.9, "Share of the soft targets in the training loss.", since=2, before=0.9, at_least=0, at_most=1
    )
    teacher_sha256: str | None = setting(
        None,
        "What the teacher's weights have to be; null takes those that are there. A run writes it down, since a "
        "teacher trained anew is another one.",
        since=2,
    )

    def check(self) -> None:
        if self.teacher_sha256 and not self.teacher:
            raise SettingError("teacher_sha256", self.teacher_sha256, "needs teacher")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Network, Optimization, Teacher):
    """All that `LeNetModule` needs to know."""
