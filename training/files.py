"""What a run leaves on disk: the names of its files, its folders, and its configuration. Light to import."""

import itertools
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from core.errors import UsageError
from core.files import write_bytes
from core.locks import hold_lock
from core.settings import FORMAT
from training.config import RunConfig, read_config, written

# In the log folder of a run, logs/<name>/version_N.
CONFIG = "config.yaml"  # what the run is; `--config` takes it back
SUMMARY = "summary.json"  # its result, once it is finished
OLD_CONFIG = "hparams.yaml"  # of runs before format 2
LOCK = "run.lock"  # among the checkpoints, while a process is at the run


def reserve_version(log_dir: Path, checkpoint_dir: Path) -> str:
    """Make the folders `version_N` of a new run below both, and return that name.

    mkdir decides who has N, so no two runs share it, however close together they start.
    """
    for number in itertools.count():
        version = f"version_{number}"
        try:
            if not (checkpoint_dir / version).exists():
                (log_dir / version).mkdir(parents=True)
                (checkpoint_dir / version).mkdir(parents=True, exist_ok=True)
                return version
        except FileExistsError:
            if not (log_dir / version).is_dir():
                raise UsageError(f"{log_dir / version}: in the way of a folder") from None
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}") from error
    raise AssertionError


def lock_run(folder: Path) -> ExitStack:
    """Keep a run, by the folder of its checkpoints, for this process, until the context that is returned ends, or the
    process does, however it does; UsageError if another process has it.
    """
    held, path = ExitStack(), folder / LOCK
    held.enter_context(hold_lock(path, f"{folder}: another process is at this run"))
    if sys.platform != "win32":  # where the lock takes its file away itself
        held.callback(path.unlink, missing_ok=True)
    return held


def write_config(folder: Path, config: RunConfig) -> None:
    """The run's configuration, whole or not at all."""
    text = "# This run again, with the same versions, machine and threads bit for bit: python train.py --config FILE\n"
    text += yaml.safe_dump(written(config), sort_keys=False, allow_unicode=True)
    write_bytes(folder / CONFIG, text.encode())


def read_run_config(folder: Path) -> RunConfig | None:
    """The configuration of the run in a log folder; None if a run of an early format was killed while it wrote it.
    UsageError if the file is damaged, or a newer version wrote it.
    """
    old = not (folder / CONFIG).exists()
    path = folder / (OLD_CONFIG if old else CONFIG)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return read_config(values, values.pop("format", 1))
    except (UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError, UsageError) as error:
        if old:
            return None
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error


def write_result(folder: Path, config: RunConfig, result: dict[str, Any]) -> None:
    """The summary of a finished run: its configuration, and its result."""
    text = json.dumps({"format": FORMAT, "flags": config.plain()} | result, indent=2)
    write_bytes(folder / SUMMARY, text.encode())


def read_result(folder: Path) -> tuple[RunConfig, dict[str, Any]] | None:
    """Configuration and result of the run in a log folder; None if it is not finished. UsageError as of
    `read_run_config`.
    """
    path = folder / SUMMARY
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return read_config(result.pop("flags"), result.pop("format", 1)), result
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: damaged, or not of train.py; move the run's folder away") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
