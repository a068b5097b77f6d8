"""The configuration of a run: `RunConfig`, all its settings in groups.

The command line, recipes, checkpoints, sweeps, reports and resume read and write this class. A new flag is one field of
a group. Light to import.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cifar10.config import Augmentation, Data, DataConfig, Preprocessing
from core.errors import SettingError, UsageError
from core.settings import Settings, get_fields, setting, to_text, to_word
from core.shell import format_command
from models.config import ModelConfig, Network, Optimization, Teacher
from models.registry import NETWORKS, hash_network

Strategy: TypeAlias = Literal[
    "auto", "single_device", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"
]
NAME_LETTERS = 100  # of a run's folder: Windows limits whole paths to 260


@dataclass(frozen=True, kw_only=True)
class Length(Settings):
    """Length: the number of epochs."""

    epochs: int = setting(10, "Number of epochs: passes over the training images.", at_least=1, at_most=1_000_000)


@dataclass(frozen=True, kw_only=True)
class Hardware(Settings):
    """Hardware: devices and number format, named as in Lightning's Trainer."""

    threads: int | None = setting(
        None,
        "CPU threads of each process; null leaves it to PyTorch. Another number changes the rounding.",
        identity=False,
        at_least=1,
        at_most=4096,
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = setting("cpu", "Kind of device.")
    devices: int | str = setting(
        1, "Number of processes on this machine, or of GPUs.", named="devices", at_least=-1, at_most=65_536
    )
    num_nodes: int = setting(1, "Number of machines that train together.", at_least=1, at_most=65_536)
    strategy: Strategy = setting("auto", "Lightning's strategy for several devices.")
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"] = setting(
        "auto",
        "Number format of the training steps. auto is bf16-mixed on x86 processors with AVX-512 BF16 or AMX, else "
        "32-true. Evaluation is always in float32.",
        named=None,
    )

    def check(self) -> None:
        super().check()
        if self.accelerator == "cpu":
            self.check_cpu()

    def check_cpu(self) -> None:
        """Raise SettingError for what a CPU cannot do."""
        if self.devices != "auto" and not (isinstance(self.devices, int) and self.devices > 0):
            raise SettingError("devices", self.devices, "must be a number of processes, 1 or above, or auto on the CPU")
        if self.precision.startswith("16"):
            raise SettingError("precision", self.precision, "float16 needs a GPU; the CPU has bf16-mixed")


@dataclass(frozen=True, kw_only=True)
class Output(Settings):
    """Output: folders and pictures."""

    log_dir: Path = setting(Path("logs"), "Folder for logs, which TensorBoard reads.", identity=False)
    checkpoint_dir: Path = setting(Path("checkpoints"), "Folder for checkpoints.", identity=False, resumable=False)
    tag: str | None = setting(
        None,
        "Text in the name of the run's folder, in place of the settings that differ from the defaults; these stay: "
        "optimizer, learning rate, batch size and seed.",
        identity=False,
    )
    pictures: bool = setting(
        True,
        "Pictures as files and in TensorBoard, and its graph and projector; logs are small without them.",
        identity=False,
    )
    quiet: bool = setting(False, "Print nothing but the summary.", identity=False)
    fast_dev_run: bool = setting(
        False, "Run one batch of everything and save nothing.", identity=False, resumable=False
    )

    def check(self) -> None:
        super().check()
        if self.tag and not re.fullmatch(r"[\w.=+-]+", self.tag):
            raise SettingError("tag", self.tag, "must be letters, digits and _ . = + - only")


@dataclass(frozen=True, kw_only=True)
class RunConfig(DataConfig, ModelConfig, Length, Hardware, Output):
    """All settings of a run."""

    def check(self) -> None:
        super().check()
        if self.plain_epochs > self.epochs:
            raise SettingError("plain_epochs", self.plain_epochs, f"more than the run's {self.epochs} epochs")
        if isinstance(self.devices, int) and self.devices > 0:
            self.check_batch(self.devices * self.num_nodes)

    def check_batch(self, processes: int) -> None:
        """Raise SettingError if the processes cannot share a batch, or each has one image to normalize over."""
        if self.batch_size % processes:
            raise SettingError(
                "batch_size", self.batch_size, f"does not divide by the {processes} processes (devices times num_nodes)"
            )
        known = NETWORKS.get(self.network)
        if known and known.folds_to and self.batch_size == processes:
            raise SettingError("batch_size", self.batch_size, "batch normalization needs two images in each process")

    @property
    def name(self) -> str:
        """The name of the run's folder, at most NAME_LETTERS long.

        It has optimizer, learning rate, batch size, what else differs from the defaults, and seed. A tag stands at the
        end, instead of what differs.
        """
        defaults = RunConfig(optimizer=self.optimizer)
        names = ["optimizer", "lr", "batch_size"]
        for name, each in SETTINGS.items():
            named = each.metadata["identity"] and each.metadata["named"] is not None and name not in [*names, "seed"]
            if named and not self.tag and getattr(self, name) != getattr(defaults, name):
                names.append(name)
        words = [to_word(SETTINGS[name], getattr(self, name)) for name in (*names, "seed")]
        name = "-".join([*words, *filter(None, [self.tag])]).rstrip(".")  # Windows drops a dot at the end
        if len(name) > NAME_LETTERS:
            name = f"{name[: NAME_LETTERS - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return name

    def identity(self) -> str:
        """Return a text that is equal for equal runs. Files count by their content, which `resolve_config` adds."""
        parts = {name: value for name, value in self.plain().items() if SETTINGS[name].metadata["identity"]}
        return json.dumps(parts, sort_keys=True)


GROUPS: tuple[type[Settings], ...] = (
    *(Optimization, Length, Network, Teacher),
    *(Augmentation, Preprocessing, Data, Output, Hardware),
)  # in the order in which people want to know
SETTINGS = {name: each for group in GROUPS for name, each in get_fields(group).items()}


def check_files(config: RunConfig) -> None:
    """Raise UsageError if the file of a network or a teacher is missing, without importing PyTorch."""
    hash_network(config.network)
    if config.teacher and not config.teacher.exists():
        raise SettingError("teacher", config.teacher, "not there; python train.py --config teacher trains one")


def resolve_config(config: RunConfig) -> RunConfig:
    """Return a configuration with the SHA-256 of its files and the fastest number format of this processor.

    Raises:
        UsageError: A file is missing, or its SHA-256 is not the one in the configuration.
    """
    known: dict[str, Any] = {"network_sha256": hash_network(config.network), "teacher_sha256": None}
    if config.teacher:
        from models.distillation import hash_teacher  # takes PyTorch

        known["teacher_sha256"] = hash_teacher(config.teacher)
    for name, found in known.items():
        asked = getattr(config, name)
        if asked and asked != found:
            raise SettingError(name, asked, f"the {name.partition('_')[0]} that is there is another one")
    if config.precision == "auto":
        from training.hardware import fastest_precision  # takes PyTorch

        known["precision"] = fastest_precision(config.accelerator)
    return replace(config, **known)


def read_config(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a run wrote; UsageError if a setting is missing, unknown or invalid."""
    if unknown := sorted(values.keys() - SETTINGS.keys()):
        raise UsageError(f"has {unknown[0]}, which this version does not know")
    return RunConfig.read(values)


def format_flags(flags: Mapping[str, Any]) -> str:
    """Return the command that trains with these flags."""
    return format_command("python", "train.py", *(f"--{name}={to_text(value)}" for name, value in flags.items()))
