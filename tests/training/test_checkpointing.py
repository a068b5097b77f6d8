"""Resume, kills between two steps, signals, and files that are no checkpoints."""

import errno
import os
import pickle
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import train as main_program
from conftest import SMALL, curves, history, resume, weights, write_records
from core.cli import run_to_status
from core.errors import SettingError, UsageError
from core.signals import Stopped
from lenet_module import LeNetModule
from made_up import own_network, write_checkpoint
from models.checkpoint import load_checkpoint
from training.checkpoints import AtomicCheckpointIO, release
from training.resume import read_run_to_resume

STEPS = 18  # of an epoch of the made-up data


class Crash(Exception):
    pass


@pytest.fixture
def crash(run: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a run that crashes before training step `step`, counted from 0; returns the folder of its checkpoints."""

    def call(step: int, **flags: Any) -> Path:
        step_of = LeNetModule.training_step
        folders: list[str] = []

        def training_step(module: LeNetModule, batch: Any, batch_idx: int) -> Any:
            if module.global_step == step:
                folders.append(module.trainer.checkpoint_callback.dirpath)  # type: ignore[union-attr]
                raise Crash
            return step_of(module, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(LeNetModule, "training_step", training_step)
            with pytest.raises(Crash):
                run(**flags)
        return Path(folders[0])

    return call


def assert_equal_weights(first: Path, second: Path) -> None:
    """Assert that two runs, named by their folders of checkpoints, ended with the same weights."""
    expected, found = weights(first / "last.ckpt"), weights(second / "last.ckpt")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of three epochs that nothing interrupts, on the same data as all others."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        folders = {"data_dir": write_records(folder / "data", patch), "log_dir": folder / "logs"}
        return main_program.train(**SMALL | folders | {"checkpoint_dir": folder / "checkpoints", "epochs": 3})


@pytest.mark.parametrize(
    "flags",
    [
        {"optimizer": "sgd", "schedule": "onecycle", "cutout": 6, "plain_epochs": 2, "random_corruption": 0.3},
        {"optimizer": "muon", "schedule": "cosine", "network": "lenet5-bn"},
        {"optimizer": "adam", "schedule": "step", "teacher": "teacher.ckpt"},
    ],
    ids=["augmented", "normalized", "taught"],
)
def test_a_resumed_run_ends_as_the_uninterrupted_one_bit_for_bit(
    run: Any, crash: Any, tmp_path: Path, flags: dict[str, Any]
) -> None:
    if "teacher" in flags:
        flags = flags | {"teacher": write_checkpoint(tmp_path / "teacher.ckpt")}
    whole = run(**flags, epochs=3)
    folder = crash(STEPS + 7, **flags, epochs=3)
    resumed = resume(folder)
    assert_equal_weights(whole.checkpoint.parent, folder)
    for name in ("best_epoch", "val_acc", "test_acc", "test_loss"):
        assert getattr(resumed, name) == getattr(whole, name)
    assert sorted(path.name for path in folder.iterdir()) == [whole.checkpoint.name, "last.ckpt"]
    expected_curves, found_curves = curves(whole.log_dir), curves(resumed.log_dir)
    for name in ("train/loss", "train/acc", "val/loss", "val/acc", "train/loss_step", "train/lr"):
        assert sorted(set(found_curves[name])) == expected_curves[name]
    assert history(resumed.log_dir) == history(whole.log_dir)


def test_a_network_that_draws_random_numbers_resumes_bit_for_bit(run: Any, crash: Any, tmp_path: Path) -> None:
    flags = {"network": own_network(tmp_path / "own", "Dropping"), "width": 3, "val_size": 0}
    whole = run(**flags)
    assert resume(crash(STEPS + 7, **flags), network=flags["network"]).test_loss == whole.test_loss
    assert run(**flags | {"seed": 1}).test_loss != whole.test_loss


def test_a_moved_run_resumes_where_it_is_now(whole: Any, crash: Any, tmp_path: Path) -> None:
    folder = crash(2 * STEPS + 1, epochs=3)
    there = tmp_path / "else where" / "é" / folder.parent.name / folder.name
    there.parent.mkdir(parents=True)
    shutil.move(folder, there)
    resumed = resume(there)
    assert resumed.checkpoint == there / whole.checkpoint.name and resumed.test_acc == whole.test_acc
    assert sorted(path.name for path in there.iterdir()) == [whole.checkpoint.name, "last.ckpt"]


def test_a_run_of_relative_folders_resumes_from_elsewhere_and_after_a_move_of_the_project(
    run: Any, crash: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "project").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "a" / "project")
    flags: dict[str, Any] = {"data_dir": "../data", "log_dir": "logs", "checkpoint_dir": "../x", "cache_dir": "kept"}
    flags |= {"normalize": "zca", "teacher": write_checkpoint(Path("teacher.ckpt"))}
    shutil.move(data_dir, tmp_path / "a" / "data")
    whole = run(**flags)
    crash(STEPS + 1, **flags)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for project in (tmp_path / "a", tmp_path / "b"):
        if not project.exists():
            shutil.move(tmp_path / "a", project)
        folder = project / "x" / whole.log_dir.parent.name / "version_1"
        resumed = resume(folder)
        assert resumed.test_loss == whole.test_loss and resumed.checkpoint == folder / whole.checkpoint.name
        assert resumed.log_dir == project / "project" / whole.log_dir.parent / "version_1"
        (resumed.log_dir / "summary.json").unlink()
    assert not list(Path().iterdir())
    for name, path in {"teacher": "project/teacher.ckpt", "data_dir": "data", "log_dir": "project/logs"}.items():
        (project / path).rename(project / "moved")
        with pytest.raises(SettingError, match=f"^{name} .*: not there"):
            read_run_to_resume(folder, {})
        changed, _ = read_run_to_resume(folder, {name: project / "moved"})
        assert getattr(changed, name) == project / "moved"
        (project / "moved").rename(project / path)


def test_a_finished_run_resumed_from_elsewhere_trains_nothing_and_says_where_it_is(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = whole.checkpoint.parent
    before = (folder / "last.ckpt").stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", os.path.relpath(folder)])
    main_program.main()
    printed = capsys.readouterr().out
    assert str(whole.log_dir) in printed and f"test accuracy  {whole.test_acc:.2%}" in printed
    assert not list(tmp_path.iterdir()) and (folder / "last.ckpt").stat().st_mtime_ns == before


def test_flags_that_would_make_another_run_are_refused(whole: Any, run: Any) -> None:
    changes = {"epochs": 5, "lr": 0.02, "batch_size": 10, "optimizer": "adam", "val_size": 0, "precision": "auto"}
    for name, value in changes.items():
        with pytest.raises(UsageError, match=f"{name} .* must stay"):
            read_run_to_resume(whole.checkpoint.parent, {name: value})
    short = run(epochs=1, schedule="constant", lr=0.01, plain_epochs=1)
    with pytest.raises(UsageError, match=r"epochs 4: the run to resume has 1, which must stay"):
        read_run_to_resume(short.checkpoint.parent, {"epochs": 4})


def test_a_checkpoint_outside_its_runs_folder_and_released_weights_are_not_resumed(whole: Any, tmp_path: Path) -> None:
    lone, released = tmp_path / "lone.ckpt", tmp_path / "version_0" / "last.ckpt"
    shutil.copy(whole.checkpoint.parent / "last.ckpt", lone)
    with pytest.raises(UsageError, match="must be in its run's folder"):
        resume(lone)
    release(load_checkpoint(lone), released, 0.5)
    with pytest.raises(UsageError, match=r"last\.ckpt: released weights, without the state of the optimizer"):
        resume(released.parent)


def test_a_full_disk_before_the_first_checkpoint_says_that_there_is_none(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fail)
    assert run_to_status(run) == 1
    assert capsys.readouterr().err.endswith(": No space left on device; no epoch was complete yet\n")


def test_a_log_folder_that_is_removed_while_the_run_trains_costs_no_epoch(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    step_of = LeNetModule.training_step

    def training_step(module: LeNetModule, batch: Any, batch_idx: int) -> Any:
        if module.global_step == STEPS + 3:
            shutil.rmtree(tmp_path / "logs")
        return step_of(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LeNetModule, "training_step", training_step)
        assert run_to_status(run) == 2
    message = capsys.readouterr().err
    assert "was removed while the run trained: make it again, then go on with: python " in message
    assert message.count("\n") == 1
    logs = Path(message.partition(" was removed")[0].split()[-1])
    logs.mkdir(parents=True)
    resumed = resume(tmp_path / "checkpoints" / logs.parent.name / logs.name)
    assert len(history(logs)) == 2 and resumed.trend is None  # of its first epoch there is no curve of each class


def test_a_run_beside_another_in_the_same_process_is_refused(run: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(run, epochs=1, seed=seed) for seed in (0, 1)]
        errors = [each.exception() for each in done]
    assert sorted(map(type, errors), key=str) == [type(None), UsageError]
    assert "another run goes on in this process" in str(next(filter(None, errors)))


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("error")
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.ckpt", tmp_path / "proof"
    torch.save({"state_dict": Touch(proof)}, path)
    with pytest.raises(UsageError, match="refused"):
        load_checkpoint(path)
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Touch(proof)))
    with pytest.raises(UsageError, match=r"raw\.ckpt"):
        load_checkpoint(tmp_path / "raw.ckpt")
    assert not proof.exists()


def test_files_that_are_no_checkpoint_get_one_line_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_bytes(b"hello\n" * 1000)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name in ("text", "other", "list", "missing"):
        with pytest.raises(UsageError, match=rf"{name}\.ckpt: ") as raised:
            load_checkpoint(tmp_path / f"{name}.ckpt")
        assert "\n" not in str(raised.value)


def test_a_signal_stops_within_the_step_and_the_run_goes_on_from_its_last_epoch(
    whole: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = LeNetModule.training_step

    def training_step(module: LeNetModule, batch: Any, batch_idx: int) -> Any:
        if module.global_step == STEPS + 3:
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("not stopped at once")
        return step_of(module, batch, batch_idx)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(LeNetModule, "training_step", training_step)
        with pytest.raises(Stopped) as stopped:
            run(epochs=3)
    folder = tmp_path / "checkpoints" / whole.log_dir.parent.name / "version_0"
    assert signal.getsignal(signal.SIGINT) == before
    assert stopped.value.signal == signal.SIGINT and stopped.value.advice.endswith(f"--resume {folder}")
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 0
    assert resume(folder).test_loss == whole.test_loss
    assert_equal_weights(whole.checkpoint.parent, folder)


@pytest.mark.parametrize(("file", "moment"), [("best", "move"), ("last", "flush"), ("last", "move")])
def test_a_signal_while_a_checkpoint_is_written_leaves_a_whole_one(
    whole: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, moment: str
) -> None:
    with monkeypatch.context() as patch:
        stop_while_writing(patch, file, moment)
        with pytest.raises(Stopped):
            run(epochs=3)
    folder = tmp_path / "checkpoints" / whole.log_dir.parent.name / "version_0"
    assert {path.suffix for path in folder.iterdir()} == {".ckpt"}
    for path in folder.glob("*.ckpt"):
        load_checkpoint(path)
    resumed = resume(folder)
    assert resumed.test_loss == whole.test_loss and history(resumed.log_dir) == history(whole.log_dir)
    assert_equal_weights(whole.checkpoint.parent, folder)


def stop_while_writing(patch: pytest.MonkeyPatch, file: str, moment: str) -> None:
    """Send SIGTERM before or after a step of the second time that a checkpoint of this name is written."""
    module, name = {"flush": (os, "fsync"), "move": (os, "replace")}[moment]
    act, save, count = getattr(module, name), AtomicCheckpointIO.save_checkpoint, 0

    def save_checkpoint(self: AtomicCheckpointIO, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        nonlocal count
        count += Path(path).name.startswith(file)
        if count == 2 and Path(path).name.startswith(file):
            patch.setattr(module, name, stopped)
        save(self, checkpoint, path, storage_options)

    def stopped(*arguments: Any) -> Any:
        act(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_checkpoint)
