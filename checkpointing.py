"""A run on disk: checkpoints that are whole or not there, that move with their folder, and that are safe to open."""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from atomic_file import write_bytes
from command_line import Stopped, UsageError

EXPECTED = {"epoch", "state_dict", "hyper_parameters", "flags", "CIFAR10DataModule"}  # in a checkpoint of train.py


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then moves into place: a kill leaves the checkpoint before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), buffer.getbuffer())


class RunCheckpoints(ModelCheckpoint):
    """The best and the last checkpoint of a run, written at the end of each epoch.

    Its state names files without their folder, so that a run can be moved and then resumed.

    Args:
        monitor: The metric whose highest value is best; None keeps the last checkpoint only.
        flags: Of the run, primitives by name; written into each checkpoint as `flags`.
    """

    def __init__(self, monitor: str | None, flags: dict[str, Any]) -> None:
        name = (monitor or "").replace("/", "_")
        super().__init__(
            filename=f"best-epoch={{epoch:02d}}-{name}={{{monitor}:.4f}}",
            auto_insert_metric_name=False,
            monitor=monitor,
            mode="max",
            save_top_k=1 if monitor else 0,
            save_last=True,
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
            last = getattr(trainer.checkpoint_callback, "last_model_path", "")
            raise Stopped(self.received, Path(last).parent if last else None)

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _stop  # type: ignore[assignment]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `train.train`, or the `last.ckpt` of a run's folder; nothing in it can run code.

    Raises:
        UsageError: It is not there, damaged, of another program, or would have run code.
    """
    path = path / "last.ckpt" if path.is_dir() else path
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path}: refused, it holds more than tensors and plain values, or is damaged") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise UsageError(f"{path}: damaged, or no PyTorch checkpoint") from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= EXPECTED:
        raise UsageError(f"{path}: no checkpoint of train.py")
    return checkpoint
