"""How a run that was stopped goes on: from which checkpoint, as what, and where its folders are.

python train.py --resume checkpoints/adam-lr0.002-bs128-seed0/version_0
"""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.errors import SettingError, UsageError
from models.checkpoint import load_checkpoint
from training.checkpoints import config_of
from training.config import SETTINGS, RunConfig
from training.files import RunResult, read_result


def to_resume(path: Path, given: dict[str, Any]) -> tuple[RunConfig, Path]:
    """The configuration to go on with from a checkpoint, its own but for what a resumed run may change, and the file.

    Raises:
        UsageError: `path` is no checkpoint in the folder of its run, or `given` changes what the run is.
    """
    checkpoint = load_checkpoint(path, given.get("network"), last=True)
    config = config_of(checkpoint)
    path = Path(os.path.abspath(checkpoint.path))
    if not path.parent.name.startswith("version_"):
        raise UsageError(f"{path}: must be in its run's folder, checkpoints/<run>/version_N")
    if given.get("precision") == "auto":  # it is decided once, on the machine on which the run started
        given = given | {"precision": config.precision}
    changed = replace(config, **given)
    for name in given:
        before, after = getattr(config, name), getattr(changed, name)
        # More epochs are as if there had been more from the start, if nothing depends on how many there are.
        endless = name == "epochs" and config.schedule == "constant" and not config.plain_epochs
        same = name == "teacher" and config.teacher_sha256  # which is looked at
        free = SETTINGS[name].metadata["resumable"] or (endless and after > before) or same
        if before != after and not free:
            raise SettingError(name, after, f"the run to resume has {before}, which must stay")
    return replace(changed, **folders_of(config, path.parent, given)), path


def folders_of(config: RunConfig, folder: Path, given: Collection[str]) -> dict[str, Any]:
    """Where data, logs, checkpoints and teacher of a run are, but for what is `given`; UsageError if one is not there.

    Relative paths are meant from where the run was started, which the place of its checkpoints, the absolute `folder`,
    tells; if that was moved, or told nothing, from here.
    """
    inside = config.checkpoint_dir / folder.parent.name / folder.name
    start = Path(os.path.abspath(folder.joinpath(*[".."] * len(inside.parts))))
    told = not inside.is_absolute() and start / inside == folder
    start = start if told and start != Path.cwd() else Path()
    found = {"checkpoint_dir": start / config.checkpoint_dir if told else folder.parent.parent}
    for name, below in {"log_dir": f"{folder.parent.name}/{folder.name}", "data_dir": "", "teacher": ""}.items():
        path = getattr(config, name)
        if path and name not in given:
            there = [each for each in (start / path, path) if (each / below).exists()]
            if not there:
                raise SettingError(name, start / path / below, "not there; the run to resume needs it, so say where")
            found[name] = there[0]
    return found


def finished(config: RunConfig, resume: Path) -> RunResult | None:
    """Return the result of the run to resume, if it has trained all its epochs and was tested."""
    folder = config.log_dir / resume.parent.parent.name / resume.parent.name
    found = read_result(folder)
    if not found or found[1].epochs < config.epochs:
        return None
    assert found[1].checkpoint
    return replace(found[1], log_dir=folder, checkpoint=resume.parent / found[1].checkpoint.name)  # where they are now
