"""What a run leaves on disk: the names of its files, its folders, and its configuration. Light to import."""

import itertools
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from analysis.diagnosis import Trend
from core.errors import UsageError
from core.files import write_bytes
from core.settings import FORMAT, check_format
from training.config import RunConfig, read_config

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

# In the log folder of a run, logs/<name>/version_N.
CONFIG = "config.yaml"  # the run's configuration, also for `--config`
SUMMARY = "summary.json"  # its result, once it is finished
LOCK = "run.lock"  # among the checkpoints, while a process trains the run


@dataclass(frozen=True)
class RunResult:
    """The result of a run. Accuracies are fractions; with `select_on` "test" both are of the test set."""

    epochs: int
    select_on: str
    best_epoch: int | None  # None, as `val_acc`, if no epoch was chosen
    val_acc: float | None
    test_acc: float
    test_loss: float
    seconds: float  # of the whole command, without the time during which the run was stopped
    images_per_second: float  # trained on, over the whole time of the epochs
    log_dir: Path | None  # None, as `checkpoint`, of a run that writes nothing
    checkpoint: Path | None
    trend: Trend | None  # None without validation images

    def plain(self) -> dict[str, Any]:
        """Return all values by name, as JSON takes them."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def read(cls, values: dict[str, Any]) -> "RunResult":
        """Make a result from what `plain` returned; TypeError if the names are not those of the fields."""
        paths = {name: values[name] and Path(values[name]) for name in ("log_dir", "checkpoint")}
        return cls(**values | paths | {"trend": values["trend"] and Trend.read(values["trend"])})


def reserve_version(log_dir: Path, checkpoint_dir: Path) -> str:
    """Make the folders `version_N` of a new run below both, and return that name.

    N is of the run whose mkdir succeeds, so no two runs share it, however close together they start.
    """
    for number in itertools.count():
        version = f"version_{number}"
        if (checkpoint_dir / version).exists():
            continue
        with suppress(FileExistsError):  # another run has made it
            (log_dir / version).mkdir(parents=True)
            (checkpoint_dir / version).mkdir(parents=True, exist_ok=True)
            return version
    raise AssertionError


def write_config(folder: Path, config: RunConfig) -> None:
    """Write the configuration of a run into its log folder, whole or not at all."""
    text = "# This run again, with the same versions, machine and threads bit for bit: python train.py --config FILE\n"
    text += yaml.safe_dump({"format": FORMAT} | config.plain(), sort_keys=False, allow_unicode=True)
    write_bytes(folder / CONFIG, text.encode())


def read_run_config(folder: Path) -> RunConfig:
    """Read the configuration of the run in a log folder; UsageError if the file is damaged or of another format."""
    path = folder / CONFIG
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        check_format(values)
        return read_config({name: value for name, value in values.items() if name != "format"})
    except (UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError, UsageError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error


def find_checkpoints(path: Path) -> Path:
    """Return the checkpoint folder of the run whose log folder `path` is; any other path is returned as it is.

    UsageError if it is not where the run was started, nor below the working directory.
    """
    if not (path / CONFIG).exists():
        return path
    config = read_run_config(path)
    if found := find_other(path.resolve(), config.log_dir, config.checkpoint_dir):
        return found
    raise UsageError(
        f"{path}: is a log folder, and its checkpoints are not in {config.checkpoint_dir}; name their folder"
    )


def find_other(folder: Path, own: Path, other: Path) -> Path | None:
    """Return the other of the two folders of a run, where the run was started or below the working directory.

    Args:
        folder: The one that is known.
        own, other: The settings `log_dir` and `checkpoint_dir`, in the order of these folders.
    """
    start = Path(os.path.normpath(folder.parent.parent / os.path.relpath(".", own)))
    found = other / folder.parent.name / folder.name
    places = [found] if start == Path.cwd() else [start / found, found]
    return next((path for path in places if path.exists()), None)


def find_logs(checkpoint: "Checkpoint") -> Path | None:
    """Return the log folder of the run that a checkpoint belongs to; None if it is neither where the run was started,
    nor below the working directory, or the checkpoint is of no run, as released weights are.
    """
    flags = checkpoint.flags
    if not {"log_dir", "checkpoint_dir"} <= flags.keys():
        return None
    return find_other(checkpoint.path.resolve().parent, Path(flags["checkpoint_dir"]), Path(flags["log_dir"]))


def write_result(folder: Path, config: RunConfig, result: RunResult) -> None:
    """Write the summary of a finished run: its configuration, and its result."""
    text = json.dumps({"format": FORMAT, "flags": config.plain()} | result.plain(), indent=2)
    write_bytes(folder / SUMMARY, text.encode())


def read_result(folder: Path) -> tuple[RunConfig, RunResult] | None:
    """Read configuration and result of the run in a log folder; None if it is not finished. UsageError as of
    `read_run_config`.
    """
    path = folder / SUMMARY
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        check_format(result)
        del result["format"]
        return read_config(result.pop("flags")), RunResult.read(result)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: damaged, or not of train.py; move the run's folder away") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
