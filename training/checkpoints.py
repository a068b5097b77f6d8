"""A run on disk: checkpoints that are whole or not there, that move with their folder, and that are safe to open."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from cifar10.errors import UsageError
from cifar10.preprocessing import from_state
from cifar10.records import CLASS_NAMES
from cifar10.storage import write_bytes
from experiments.runs import NO_PART
from lenet_module import LeNetModule
from models.classifier import EXPECTED, LAST, load_checkpoint
from training.cli import Stopped


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then moves into place: a kill leaves the checkpoint before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), buffer.getbuffer())


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint of a run, written at the end of each epoch in which `monitor` is the highest so far.

    Without `monitor` it is written at the end of every epoch. (ModelCheckpoint's own `save_last` of Lightning 2.6 is
    not: it writes only in epochs that are the best.) Its state names files without their folder, so that a run can be
    moved and then resumed.

    Args:
        filename: Without ending; may name metrics in braces.
        flags: Of the run, primitives by name; written into the checkpoint as `flags`.
        monitor: Name of a logged metric.
    """

    def __init__(self, filename: str, flags: dict[str, Any], monitor: str | None = None) -> None:
        super().__init__(
            filename=filename,
            auto_insert_metric_name=False,
            monitor=monitor,
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.flags = flags

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["flags"] = self.flags

    _PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state |= {key: os.path.basename(state[key]) for key in self._PATHS}
        best = {os.path.basename(path): score for path, score in state["best_k_models"].items()}
        return state | {"dirpath": "", "best_k_models": best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = str(self.dirpath)
        state = dict(state_dict)
        state |= {key: os.path.join(folder, state[key]) if state[key] else "" for key in self._PATHS}
        best = {os.path.join(folder, name): score for name, score in state["best_k_models"].items()}
        super().load_state_dict(state | {"dirpath": self.dirpath, "best_k_models": best})


class StopOnSignal(Callback):
    """Ctrl-C and SIGTERM raise `Stopped` at the end of the running step; a second signal acts at once.

    Nothing is written then: the checkpoint of the last whole epoch is what a run goes on from.
    Handlers can be set in the main thread only; elsewhere this does nothing. Use as a context manager.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)

    def _stop(self, trainer: pl.Trainer, *hook_arguments: Any) -> None:
        if self.received is not None:
            folder = Path(getattr(trainer.checkpoint_callback, "dirpath", None) or "")
            raise Stopped(self.received, folder if (folder / LAST).exists() else None)

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _stop  # type: ignore[assignment]


def load_module(path: Path) -> tuple[LeNetModule, dict[str, Any]]:
    """The trained module of a checkpoint, and the checkpoint itself; UsageError if it does not fit `LeNetModule`."""
    checkpoint = load_checkpoint(path)
    try:
        module = LeNetModule(**checkpoint["hyper_parameters"])
        module.load_state_dict(checkpoint["state_dict"])
        from_state(checkpoint["CIFAR10DataModule"])  # raises if the data module could not take it
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UsageError(f"{path}: does not fit this network: {reason}") from error
    return module, checkpoint


def release(source: Path, target: Path, test_acc: float) -> None:
    """Write a checkpoint without what only training needs, and with what a user of its weights should know.

    Beside the entries that `load_checkpoint` expects it has `class_names`, `test_acc`, `measured_on`, and `command`,
    which makes the run again; of the run's flags, those in NO_PART are left out.

    Args:
        source: As `load_checkpoint` takes it.
        target: The file to write; its folder is made.
        test_acc: A fraction, on the test set.

    Raises:
        UsageError: `source` is no checkpoint of this program, or `target` cannot be written.
    """
    checkpoint = load_checkpoint(source)
    flags = {name: value for name, value in checkpoint["flags"].items() if name not in NO_PART}
    # All of them, since defaults change.
    words = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in flags.items()]
    facts = {
        "flags": flags,
        "class_names": list(CLASS_NAMES),
        "test_acc": round(test_acc, 6),  # float32 counts no further
        "measured_on": "the 10,000 test images of CIFAR-10, preprocessed as the flags say, one forward pass",
        "command": shlex.join(["python", "train.py", *words]),
    }
    try:
        AtomicCheckpointIO().save_checkpoint({name: checkpoint[name] for name in EXPECTED} | facts, target)
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror}") from error
