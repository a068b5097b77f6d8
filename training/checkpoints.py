"""A run on disk: checkpoints that are whole or not there, that move with their folder, and that are safe to open."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from cifar10.config import DataConfig
from cifar_datamodule import CIFAR10DataModule
from core.errors import UsageError
from core.files import write_bytes
from core.settings import FORMAT, get_fields
from core.shell import find_script, format_command
from core.signals import StopSignals
from lenet_module import LeNetModule
from models.checkpoint import FLAGS, LAST, TEMPERATURE, Checkpoint
from models.config import ModelConfig
from training.config import SETTINGS, RunConfig, format_flags, read_config

PATHS = ("log_dir", "data_dir", "cache_dir", "teacher")  # settings
FOLDERS = "folders"  # an entry of a run's checkpoint, beside those of `models.checkpoint`


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are written beside the target, flushed, then moved there: a kill leaves the one before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), buffer.getbuffer())


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint of a run with its `config`, written at the end of each epoch in which the logged metric `monitor` is
    the highest so far.

    Without `monitor` it is written at the end of every epoch. (ModelCheckpoint's own `save_last` of Lightning 2.6 is
    not: it writes only in epochs that are the best.) Its state names files without their folder, so that a run can be
    moved and then resumed.
    """

    def __init__(self, filename: str, config: RunConfig, monitor: str | None = None) -> None:
        super().__init__(
            filename=filename,
            auto_insert_metric_name=False,
            monitor=monitor,
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.config = config
        self.folders: dict[str, str] = {}  # of the run, seen from that of its checkpoints

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint |= {"format": FORMAT, FLAGS: self.config.plain(), FOLDERS: self.folders}

    def state_dict(self) -> dict[str, Any]:
        return rename_files(super().state_dict(), os.path.basename) | {"dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = rename_files(state_dict, lambda name: os.path.join(str(self.dirpath), name) if name else "")
        super().load_state_dict(state | {"dirpath": self.dirpath})


def rename_files(state: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Return the state of a ModelCheckpoint with other names of its files."""
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    best = {rename(path): score for path, score in state["best_k_models"].items()}
    return state | {name: rename(state[name]) for name in names} | {"best_k_models": best}


class StopOnSignal(StopSignals, Callback):
    """Stop a run at once: nothing is written, and the run resumes from the checkpoint of its last whole epoch.

    `folder` is that of the run's checkpoints, once there is one. Of several processes each stops by itself, as soon as
    all have met, and only the first of a machine prints a line.
    """

    folder: Path | None = None
    silent = False

    def __init__(self, later: bool = False) -> None:
        super().__init__(self._advise, later)

    def _advise(self) -> str:
        if self.folder is None or not (self.folder / LAST).exists():
            return "no epoch was complete yet"
        return f"go on with: {format_command('python', find_script('train.py'), '--resume', self.folder)}"

    def _met(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.silent = trainer.local_rank > 0
        if folder := getattr(trainer.checkpoint_callback, "dirpath", None):  # sent by the first process
            self.folder = Path(folder)
        if trainer.world_size > 1:  # in place of Lightning's handler, in which the processes exchange something
            self.listen()

    on_train_start = on_test_start = _met

    def stop(self, number: int, frame: FrameType | None = None) -> None:
        if self.silent:
            os._exit(0)  # for any other status, Lightning would kill the first process
        super().stop(number, frame)


def calibrate(path: Path, temperature: float) -> None:
    """Add the temperature of `fit_temperature` to a run's checkpoint."""
    entries = torch.load(path, weights_only=True)
    AtomicCheckpointIO().save_checkpoint(entries | {TEMPERATURE: temperature}, path)


def relate_folders(config: RunConfig, folder: Path) -> dict[str, str]:
    """Return where the folders and the teacher of a run are, by setting, as seen from the folder of its checkpoints."""
    found = {}
    for name in PATHS:
        if path := getattr(config, name):
            with suppress(ValueError):  # another drive of Windows
                found[name] = Path(os.path.relpath(path, folder)).as_posix()
    return found


def read_checkpoint_config(checkpoint: Checkpoint) -> RunConfig:
    """Return the configuration of the run that a checkpoint is of; UsageError, which names the file, if it has none."""
    if not checkpoint.is_of_run:
        raise UsageError(f"{checkpoint.path}: train.py did not write it, so it lacks the settings of a run")
    try:
        return read_config(checkpoint.flags)
    except UsageError as error:
        raise UsageError(f"{checkpoint.path}: {error}") from error


def release(checkpoint: Checkpoint, target: Path, test_acc: float) -> None:
    """Write a checkpoint without what only training needs, and with what a user of its weights should know, to the file
    `target`, whose folder is made; UsageError if it cannot be written.

    `load_checkpoint` and Lightning read it; beside their entries it has `test_acc`, a fraction, `measured_on`, and
    `command`, which makes the run again. Of the run's settings it has those that its weights depend on. Batch
    normalisation is folded into the weights.
    """
    values, also = read_checkpoint_config(checkpoint).plain(), ("teacher", "threads")  # which change the weights' bits
    flags = {name: values[name] for name, each in SETTINGS.items() if each.metadata["identity"] or name in also}
    facts = {
        "test_acc": round(test_acc, 6),  # float32 counts no further
        "measured_on": "the 10,000 test images of CIFAR-10, preprocessed as the flags say, one forward pass",
        "command": format_flags(flags),  # all of them, since defaults change
    }
    checkpoint = checkpoint.fold()
    flags["network"] = checkpoint.network.network
    parts = (get_fields(kind) for kind in (ModelConfig, DataConfig))
    model, data = ({name: flags[name] for name in part if name in flags} for part in parts)
    lightning = {
        "pytorch-lightning_version": pl.__version__,
        LeNetModule.CHECKPOINT_HYPER_PARAMS_KEY: model | {"val_name": flags["select_on"]},
        CIFAR10DataModule.CHECKPOINT_HYPER_PARAMS_KEY: data,
    }
    entries = replace(checkpoint, flags=flags).to_entries() | lightning | facts
    try:
        AtomicCheckpointIO().save_checkpoint(entries, target)
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror}") from error
