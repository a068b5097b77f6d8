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
from conftest import curves, evaluated, history, resume, weights
from core.cli import run_to_status
from core.errors import SettingError, UsageError
from core.signals import Stopped
from lenet_module import LeNetModule
from made_up import own_network, write_checkpoint
from models.checkpoint import load_checkpoint
from training.checkpoints import AtomicCheckpointIO, release

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


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [("onecycle", "sgd"), ("cosine", "adam"), ("step", "sgd"), ("constant", "adam"), ("onecycle", "muon")],
)
def test_a_resumed_run_ends_as_the_uninterrupted_one_bit_for_bit(
    run: Any, crash: Any, schedule: str, optimizer: str
) -> None:
    flags = {"epochs": 4, "schedule": schedule, "optimizer": optimizer, "cutout": 6, "plain_epochs": 2}
    flags["random_corruption"] = 0.3
    whole = run(**flags)
    folder = crash(2 * STEPS + 7, **flags)
    resumed = resume(folder)
    assert_equal_weights(whole.checkpoint.parent, folder)
    for name in ("best_epoch", "val_acc", "test_acc", "test_loss"):
        assert getattr(resumed, name) == getattr(whole, name)
    assert resumed.checkpoint.name == whole.checkpoint.name
    assert sorted(path.name for path in folder.iterdir()) == [whole.checkpoint.name, "last.ckpt"]
    expected_curves, found_curves = curves(whole.log_dir), curves(resumed.log_dir)
    for name in ("train/loss", "train/acc", "val/loss", "val/acc", "train/loss_step", "train/lr"):
        assert sorted(set(found_curves[name])) == expected_curves[name]
    assert history(resumed.log_dir) == history(whole.log_dir)


def test_a_network_that_draws_random_numbers_resumes_bit_for_bit(run: Any, crash: Any, tmp_path: Path) -> None:
    flags = {"network": own_network(tmp_path / "own", "Dropping"), "width": 3, "epochs": 3, "val_size": 0}
    whole = run(**flags)
    folder = crash(2 * STEPS + 7, **flags)
    assert resume(folder, network=flags["network"]).test_loss == whole.test_loss
    assert run(**flags | {"seed": 1}).test_loss != whole.test_loss


def test_a_run_killed_between_its_history_and_its_checkpoint_has_each_epoch_once(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(epochs=3)
    save, saved = AtomicCheckpointIO.save_checkpoint, []

    def killed(*arguments: Any, **options: Any) -> None:
        saved.append(history(whole.log_dir.parent / "version_1"))
        if len(saved[-1]) == 2:
            raise Crash
        save(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", killed)
        run(epochs=3)
    resumed = resume(whole.checkpoint.parent.parent / "version_1")
    assert history(resumed.log_dir) == history(whole.log_dir) and saved[-1] == history(whole.log_dir)[:2]
    logged = curves(whole.log_dir)
    for row, (epoch, loss) in zip(history(whole.log_dir), logged["val/loss"], strict=True):
        assert int(row["epoch"]) == epoch and float(row["val_loss"]) == pytest.approx(loss, rel=1e-5)
        assert row.keys() == {"epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr"}


def test_a_teacher_and_its_pupil_resume_bit_for_bit(run: Any, crash: Any) -> None:
    teacher: dict[str, Any] = {"network": "resnet", "width": 3, "tag": "teacher"}
    pupil = {"teacher": run(**teacher).checkpoint.parent}
    for flags in (teacher, pupil):
        whole = run(**flags)
        folder = crash(STEPS + 7, **flags)
        assert resume(folder).test_loss == whole.test_loss
        assert_equal_weights(whole.checkpoint.parent, folder)


def test_a_moved_run_resumes_where_it_is_now(run: Any, crash: Any, tmp_path: Path) -> None:
    whole = run(epochs=3)
    folder = crash(2 * STEPS + 1, epochs=3)
    there = tmp_path / "else where" / "é" / folder.parent.name / folder.name
    there.parent.mkdir(parents=True)
    shutil.move(folder, there)
    resumed = resume(there)
    assert resumed.checkpoint == there / whole.checkpoint.name
    assert resumed.test_acc == whole.test_acc
    assert sorted(path.name for path in there.iterdir()) == [whole.checkpoint.name, "last.ckpt"]


@pytest.fixture
def home(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which the data are."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


RELATIVE = {"data_dir": "data", "log_dir": "logs", "checkpoint_dir": "checkpoints"}


def elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another working directory, an empty one."""
    folder = home / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_run_resumed_from_elsewhere_goes_on_in_its_own_folders(
    run: Any, crash: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = {"teacher": run(**RELATIVE, tag="teacher").checkpoint}
    whole = run(**RELATIVE, **teacher)
    folder = crash(STEPS + 1, **RELATIVE, **teacher).absolute()
    there = elsewhere(home, monkeypatch)
    for _ in range(2):  # what the first wrote is resumed, too
        resumed = resume(folder)
        assert resumed.test_loss == whole.test_loss
        assert resumed.log_dir == home / "logs" / folder.parent.name / folder.name
        assert resumed.checkpoint == folder / whole.checkpoint.name
    assert not list(there.iterdir())


def test_a_run_whose_checkpoints_are_in_another_project_resumes_from_elsewhere_and_after_a_move(
    run: Any, crash: Any, home: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "a" / "project").mkdir(parents=True)
    monkeypatch.chdir(home / "a" / "project")
    flags = {"data_dir": "../../data", "log_dir": "logs", "checkpoint_dir": "../x", "cache_dir": "kept"}
    flags |= {"normalize": "zca"}
    whole = run(**flags)
    crash(STEPS + 1, **flags)
    elsewhere(home, monkeypatch)
    (home / "moved").mkdir()
    for moved in (home / "a", home / "moved" / "a"):
        if moved != home / "a":
            shutil.move(home / "a", moved)
            shutil.move(home / "data", home / "moved" / "data")
        folder = moved / "x" / whole.log_dir.parent.name / "version_1"
        resumed = resume(folder)
        assert resumed.test_loss == whole.test_loss
        assert resumed.log_dir == moved / "project" / whole.log_dir.parent / "version_1"
        assert resumed.checkpoint.parent == folder
        (resumed.log_dir / "summary.json").unlink()
    assert not list(Path().iterdir())


def test_an_early_run_that_has_not_stored_its_folders_resumes_where_it_was_started(
    run: Any, crash: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(**RELATIVE)
    folder = crash(STEPS + 1, **RELATIVE).absolute()
    for path in folder.glob("*.ckpt"):
        entries = torch.load(path, weights_only=True)
        del entries["folders"]
        torch.save(entries, path)
    with monkeypatch.context() as patch:
        elsewhere(home, patch)
        with pytest.raises(SettingError, match=r"^log_dir logs/.*: not there"):
            resume(folder)
    assert resume(folder).test_loss == whole.test_loss


def test_a_finished_run_resumed_from_elsewhere_trains_nothing_and_says_where_it_is(
    run: Any, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    result = run(**RELATIVE)
    folder = result.checkpoint.parent.absolute()
    before = (folder / "last.ckpt").stat().st_mtime_ns
    there = elsewhere(home, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", os.path.relpath(folder)])
    capsys.readouterr()
    main_program.main()
    printed = capsys.readouterr().out
    assert str(home / "logs" / folder.parent.name) in printed and f"test accuracy  {result.test_acc:.2%}" in printed
    assert not list(there.iterdir()) and (folder / "last.ckpt").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["data_dir", "log_dir", "teacher"])
def test_what_a_run_to_resume_lacks_is_named_by_its_flag_and_may_be_elsewhere(
    run: Any, crash: Any, home: Path, name: str
) -> None:
    flags = RELATIVE | {"teacher": run(**RELATIVE, tag="teacher").checkpoint}
    folder = crash(STEPS + 1, **flags).absolute()
    Path(flags[name]).rename(home / "moved")
    with pytest.raises(SettingError, match=f"^{name} .*: not there"):
        resume(folder)
    assert not Path(flags[name]).exists()
    resume(folder, **{name: home / "moved"})


def test_a_run_with_plain_epochs_at_its_end_cannot_be_made_longer(run: Any) -> None:
    short = run(epochs=2, schedule="constant", lr=0.01, plain_epochs=1)
    with pytest.raises(UsageError, match=r"epochs 4: the run to resume has 2, which must stay"):
        resume(short.checkpoint.parent, epochs=4)


def test_a_flag_that_would_make_another_run_is_refused(crash: Any) -> None:
    folder, changes = crash(STEPS + 1), {"epochs": 5, "lr": 0.02, "batch_size": 10, "optimizer": "adam", "val_size": 0}
    for name, value in changes.items():
        with pytest.raises(UsageError, match=f"{name} .* must stay"):
            resume(folder, **{name: value})


def test_a_checkpoint_outside_its_runs_folder_and_released_weights_are_not_resumed(run: Any, tmp_path: Path) -> None:
    path, lone = run(normalize="dataset").checkpoint.parent / "last.ckpt", tmp_path / "lone.ckpt"
    shutil.copy(path, lone)
    with pytest.raises(UsageError, match="must be in its run's folder"):
        resume(lone)
    path.unlink()
    release(load_checkpoint(lone), path, 0.5)
    with pytest.raises(UsageError, match=r"last\.ckpt: released weights, without the state of the optimizer"):
        resume(path.parent)


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
    whole = run(epochs=3)
    folder, logs = (tmp_path / name / whole.log_dir.parent.name / "version_1" for name in ("checkpoints", "logs"))
    step_of = LeNetModule.training_step

    def training_step(module: LeNetModule, batch: Any, batch_idx: int) -> Any:
        if module.global_step == STEPS + 3:
            shutil.rmtree(logs)
        return step_of(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LeNetModule, "training_step", training_step)
        assert run_to_status(lambda: run(epochs=3)) == 2
    message = capsys.readouterr().err
    assert f"{logs} was removed while the run trained: make it again, then go on with: python " in message
    assert message.count("\n") == 1
    logs.mkdir()
    assert resume(folder).test_loss == whole.test_loss
    assert history(logs) == history(whole.log_dir)


def test_a_run_beside_another_in_the_same_process_is_refused(run: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(run, epochs=1, seed=seed) for seed in (0, 1)]
        errors = [each.exception() for each in done]
    assert sorted(map(type, errors), key=str) == [type(None), UsageError]
    assert "another run goes on in this process" in str(next(filter(None, errors)))
    assert run(epochs=1).epochs == 1


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


@pytest.mark.parametrize("flags", [{"width": 2}, {"depth": 9}], ids=["another network", "an unknown setting"])
def test_a_checkpoint_that_contradicts_its_flags_is_refused(
    tmp_path: Path, data_dir: Path, flags: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"odd\.ckpt: "):
        evaluated(write_checkpoint(tmp_path / "odd.ckpt", **flags), data_dir)


def test_a_signal_stops_within_the_step_and_the_run_goes_on_from_its_last_epoch(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(epochs=3)
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
    folder = whole.checkpoint.parent.parent / "version_1"
    assert signal.getsignal(signal.SIGINT) == before
    assert stopped.value.signal == signal.SIGINT and stopped.value.advice.endswith(f"--resume {folder}")
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 0
    assert resume(folder).test_acc == whole.test_acc
    assert_equal_weights(whole.checkpoint.parent, folder)


@pytest.mark.parametrize(("file", "moment"), [("best", "move"), ("last", "write"), ("last", "flush"), ("last", "move")])
def test_a_signal_while_a_checkpoint_is_written_leaves_a_whole_one(
    run: Any, monkeypatch: pytest.MonkeyPatch, file: str, moment: str
) -> None:
    whole = run(epochs=3)
    with monkeypatch.context() as patch:
        stop_while_writing(patch, file, moment)
        with pytest.raises(Stopped):
            run(epochs=3)
    folder = whole.checkpoint.parent.parent / "version_1"
    assert {path.suffix for path in folder.iterdir()} == {".ckpt"}
    for path in folder.glob("*.ckpt"):
        load_checkpoint(path)
    assert resume(folder).test_loss == whole.test_loss
    assert_equal_weights(whole.checkpoint.parent, folder)


def stop_while_writing(patch: pytest.MonkeyPatch, file: str, moment: str) -> None:
    """Send SIGTERM before or after a step of the second time that a checkpoint of this name is written."""
    module, name = {"write": (torch, "save"), "flush": (os, "fsync"), "move": (os, "replace")}[moment]
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
