"""How a run that was stopped goes on: from which checkpoint, as what, and where its folders are.

python train.py --resume checkpoints/adam-lr0.004-bs128-seed0/version_0
"""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core.errors import SettingError, UsageError
from models.checkpoint import load_checkpoint
from training.checkpoints import FOLDERS, PATHS, read_checkpoint_config
from training.config import SETTINGS, RunConfig
from training.files import RunResult, read_result


def read_run_to_resume(path: Path, given: dict[str, Any]) -> tuple[RunConfig, Path]:
    """Read how a run goes on.

    Args:
        path: Folder of its checkpoints, or a file in it.
        given: Settings to change, by name.

    Returns:
        The run's configuration with these changes, and the checkpoint.

    Raises:
        UsageError: `path` is no checkpoint of a run in its folder, or `given` would make it another run.
    """
    checkpoint = load_checkpoint(path, given.get("network"), last=True)
    config = read_checkpoint_config(checkpoint)
    path = Path(os.path.abspath(checkpoint.path))
    if not path.parent.name.startswith("version_"):
        raise UsageError(f"{path}: must be in its run's folder, checkpoints/<run>/version_N")
    entries = torch.load(path, map_location="cpu", weights_only=True)
    if "optimizer_states" not in entries:
        raise UsageError(f"{path}: released weights, without the state of the optimizer that a run needs to go on")
    changed = replace(config, **given)
    for name in given:
        before, after = getattr(config, name), getattr(changed, name)
        # More epochs are as if there had been more from the start, if nothing depends on how many there are.
        endless = name == "epochs" and config.schedule == "constant" and not config.plain_epochs
        same = name == "teacher" and config.teacher_sha256  # which is looked at
        free = SETTINGS[name].metadata["resumable"] or (endless and after > before) or same
        if before != after and not free:
            raise SettingError(name, after, f"the run to resume has {before}, which must stay")
    return replace(changed, **find_folders(config, path.parent, entries[FOLDERS], given)), path


def find_folders(config: RunConfig, folder: Path, stored: dict[str, str], given: Collection[str]) -> dict[str, Any]:
    """Return where a run's folders are now, by setting.

    Args:
        config: Of the run, as it was written.
        folder: Of its checkpoints, absolute.
        stored: Its other folders, seen from there; without those on another drive of Windows.
        given: Settings that are not looked for.

    Raises:
        SettingError: A folder that the run needs is not there.
    """
    found: dict[str, Any] = {}
    stored = {"checkpoint_dir": "../.."} | stored
    needed = {"log_dir": f"{folder.parent.name}/{folder.name}", "data_dir": "", "teacher": ""}  # what has to be there
    for name in ("checkpoint_dir", *PATHS):
        written = getattr(config, name)
        if written is None or name in given:
            continue
        now = Path(os.path.normpath(folder / stored[name])) if name in stored else written
        places = [written] if os.path.abspath(written) == str(now) else [now, written]
        there = [path for path in places if (path / needed.get(name, "")).exists()]
        if not there and name in needed:
            place = places[0] / needed[name]
            raise SettingError(name, place, "not there; the run to resume needs it, so say where")
        found[name] = (there or places)[0]
    return found


def find_result(config: RunConfig, resume: Path) -> RunResult | None:
    """Return the result of the run to resume; None if it still has to train or to be tested."""
    folder = config.log_dir / resume.parent.parent.name / resume.parent.name
    found = read_result(folder)
    if not found or found[1].epochs < config.epochs:
        return None
    assert found[1].checkpoint
    return replace(found[1], log_dir=folder, checkpoint=resume.parent / found[1].checkpoint.name)  # where they are now
