"""What several test files need: a small made-up data set in the official format, and the `slow` marker."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# One thread each, for tests run side by side; before PyTorch is imported, and for the programs that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train as main_program
from cifar10 import records
from core.cores import cores
from training.files import RunResult

# A busy machine may be slow.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

ROOT = Path(__file__).parent.parent
RECORDS = 200  # in each of the six files


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes or the real data")


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
    # First the tests that start programs, which take longest: so no core waits for another at the end.
    items.sort(key=lambda item: not {"command", "program", "address"} & set(getattr(item, "fixturenames", ())))


def pytest_xdist_auto_num_workers() -> int:
    """How many tests run at a time: each may take a GB of memory, so no more than 8."""
    return min(8, cores())


@pytest.fixture(autouse=True)
def start_alike() -> None:
    """Each test starts with the same random numbers and threads, whichever ran before it."""
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose flock fails, as on NFS without lockd; a parameter is the number of the error."""
    fcntl = pytest.importorskip("fcntl")
    number = getattr(request, "param", errno.ENOLCK)

    def fail(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)


def made_up_records(seed: int) -> np.ndarray:
    """uint8 [RECORDS, 3073]: noise around a colour and a brighter half that tell the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(RECORDS) % 10
    images = rng.integers(0, 60, (RECORDS, 3, 32, 32))
    images += (labels % 3 * 30)[:, None, None, None] * np.array([1, 2, 3])[None, :, None, None] // 2
    images[:, :, :16] += (labels // 3 * 15)[:, None, None, None]
    return np.concatenate([labels[:, None], images.reshape(RECORDS, -1)], axis=1).astype(np.uint8)


def write_records(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write 1,000 training and 200 test images into a data folder, and let their hashes hold."""
    (folder / records.FOLDER).mkdir(parents=True)
    for seed, name in enumerate(records.FILES):
        content = made_up_records(seed).tobytes()
        (folder / records.FOLDER / name).write_bytes(content)
        patch.setitem(records.FILES, name, hashlib.sha256(content).hexdigest())
    return folder


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_records(tmp_path / "data", monkeypatch)


SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 50, "val_size": 100, "width": 1, "pictures": False}


@pytest.fixture
def run(data_dir: Path, tmp_path: Path) -> Any:
    """Calls `train` for two short epochs on the made-up data."""

    def call(**flags: Any) -> RunResult:
        folders = {"data_dir": data_dir, "log_dir": tmp_path / "logs", "checkpoint_dir": tmp_path / "checkpoints"}
        return main_program.train(**(SMALL | folders | flags))

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of four epochs with pictures, which tests only look at: its `result`, and what it has `printed`."""
    folder, printed = tmp_path_factory.mktemp("finished"), io.StringIO()
    flags = {"epochs": 4, "pictures": True, "optimizer": "adam", "lr": 3e-4, "denoise": "median", "threads": 1}
    flags |= {"normalize": "zca-half", "log_dir": folder / "logs", "checkpoint_dir": folder / "checkpoints"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        data_dir = write_records(folder / "data", patch)
        result = main_program.train(**SMALL | flags | {"data_dir": data_dir})
    return SimpleNamespace(result=result, log_dir=result.log_dir, printed=printed.getvalue(), data_dir=data_dir)


def resume(path: Path, **changes: Any) -> Any:
    """Goes on with the run whose checkpoints are in a folder."""
    from training.resume import read_run_to_resume
    from training.run import train

    config, checkpoint = read_run_to_resume(path, changes)
    return train(config, resume=checkpoint)


def evaluated(path: Path, data_dir: Path | None = None, network: str | None = None, **changes: Any) -> dict[str, float]:
    """The figures that evaluate.py finds of a checkpoint, by the names that they have in a run."""
    from models.checkpoint import load_checkpoint
    from training.evaluation import SPLITS, evaluate

    on = changes.get("on", "test")
    names = {"accuracy": "acc", "expected calibration error": "ece"}
    found = evaluate(load_checkpoint(path, network), data_dir, **changes).figures
    prefix = f"{on}/" if on in SPLITS else ""
    return {prefix + names.get(name, name): value for name, value in found.items()}


SCRIPT = """
import json, os, sys
sys.path.insert(0, {root!r})
import {main_program}
from cifar10 import records
records.FILES.update(json.loads({hashes!r}))
if limit := os.environ.get("FILE_SIZE_LIMIT"):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
if __name__ == "__main__":
    sys.exit({main_program}.run_program({main_program}.main))
"""


@pytest.fixture
def program(data_dir: Path, tmp_path: Path) -> Any:
    """The start of a command line: a main_program, by its name, in a process of its own, on the made-up data."""

    def start(main_program: str) -> list[str]:
        script = tmp_path / f"{main_program}.py"
        script.write_text(SCRIPT.format(main_program=main_program, root=str(ROOT), hashes=json.dumps(records.FILES)))
        return [sys.executable, str(script)]

    return start


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    if not (path := shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")):
        pytest.skip("needs Chromium")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as started,
    ):
        yield started


@pytest.fixture
def command(program: Any, data_dir: Path) -> list[str]:
    return [*program("train"), "--data_dir", str(data_dir)]


def weights(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def history(log_dir: str | Path) -> list[dict[str, str]]:
    """The rows of a run's history.csv, without what was measured."""
    with (Path(log_dir) / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row.keys() - {"seconds", "images_per_second"}} for row in rows]


def curves(log_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Points (x, value) of every scalar that TensorBoard shows for a run."""
    events = EventAccumulator(str(log_dir)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
