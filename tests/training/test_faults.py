"""Real processes that are killed, stopped, starved of disk and started together."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import curves, history, resume, weights
from core.errors import UsageError

FLAGS = "--optimizer adam --batch_size 20 --val_size 100 --width 1 --threads 1 --tag fault"
NAME = "adam-lr0.004-bs20-seed0-fault"
EPOCHS = 120  # more than twenty times what a run trains between two kills


class Folder:
    """The log and checkpoint folders of the runs of one test."""

    def __init__(self, path: Path, command: list[str]) -> None:
        self.logs, self.checkpoints, self.command = path / "logs", path / "checkpoints", command

    def start(self, *flags: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        line = [*self.command, "--log_dir", str(self.logs), *flags]
        pipe = subprocess.PIPE
        # A session of its own, so that a signal to its group reaches all its processes and nobody else.
        return subprocess.Popen(
            line, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment, cwd=cwd, start_new_session=True
        )

    def new(self, epochs: int, cwd: Path | None = None, **environment: Any) -> subprocess.Popen[str]:
        flags = [*FLAGS.split(), "--epochs", str(epochs), "--checkpoint_dir", str(self.checkpoints)]
        return self.start(*flags, cwd=cwd, **environment)

    def resume(self, version: int = 0, **environment: Any) -> subprocess.Popen[str]:
        return self.start("--resume", str(self.run(version)), **environment)

    def run(self, version: int = 0) -> Path:
        return self.checkpoints / NAME / f"version_{version}"

    def summary(self, version: int = 0) -> dict[str, float]:
        return json.loads((self.logs / NAME / f"version_{version}" / "summary.json").read_text())


@pytest.fixture
def folder(tmp_path: Path, command: list[str]) -> Folder:
    return Folder(tmp_path, command)


@pytest.fixture
def whole(tmp_path: Path, command: list[str]) -> Folder:
    """The run of EPOCHS that nothing interrupts."""
    folder = Folder(tmp_path / "whole", command)
    assert finish(folder.new(EPOCHS)) == 0
    return folder


def finish(process: subprocess.Popen[str]) -> int:
    process.stdout_text, process.stderr_text = process.communicate(timeout=300)  # type: ignore[attr-defined]
    return process.returncode


def wait_for_epoch(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any(line.startswith("epoch") for line in process.stdout)


def assert_same(first: Folder, second: Folder, version: int = 0) -> None:
    for pattern in ("last.ckpt", "best-*.ckpt"):
        (one,), (other,) = first.run().glob(pattern), second.run(version).glob(pattern)
        assert one.name == other.name
        expected, found = weights(one), weights(other)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("best_epoch", "val_acc", "test_acc", "test_loss"):
        assert first.summary()[name] == second.summary(version)[name]
    logs = (first.logs / NAME / "version_0", second.logs / NAME / f"version_{version}")
    expected_curves, found_curves = map(curves, logs)
    for tag in ("train/loss", "train/acc", "val/loss", "val/acc", "train/lr", "train/loss_step"):
        assert sorted(set(found_curves[tag])) == expected_curves[tag]
    assert history(logs[1]) == history(logs[0])


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(whole: Folder, folder: Folder) -> None:
    moments = random.Random(0)
    version, kills = 0, 0
    while kills < 20:
        started = (folder.run(version) / "last.ckpt").exists()
        process = folder.resume(version) if started else folder.new(EPOCHS)
        if not started:
            version = 0 if kills == 0 else version + 1
        wait_until_training(folder, version, process)
        time.sleep(moments.uniform(0, 0.8))
        assert process.poll() is None, "the run was over before it could be killed"
        process.kill()
        process.communicate()
        kills += 1
    assert finish(folder.resume(version)) == 0
    assert_same(whole, folder, version)


def wait_until_training(folder: Folder, version: int, process: subprocess.Popen[str]) -> None:
    """Until this process has opened its event file, which it does right before it trains."""
    events = folder.logs / NAME / f"version_{version}"
    before = len(list(events.glob("events*"))) if events.exists() else 0
    while process.poll() is None and len(list(events.glob("events*"))) <= before:
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_signal_ends_the_run_with_its_status_and_the_command_to_go_on(folder: Folder) -> None:
    process = folder.new(200)
    wait_for_epoch(process)
    process.send_signal(signal.SIGINT)
    assert finish(process) == 130
    message = process.stderr_text  # type: ignore[attr-defined]
    assert f"go on with: python train.py --resume {folder.run()}" in message
    assert message.count("\n") == 1
    assert sorted(path.suffix for path in folder.run().iterdir()) == [".ckpt", ".ckpt"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_run_is_of_one_process_at_a_time_and_a_full_disk_leaves_its_last_checkpoint(folder: Folder) -> None:
    process = folder.new(200)
    wait_for_epoch(process)
    with pytest.raises(UsageError, match="another process is at this run"):
        resume(folder.run())
    assert process.poll() is None
    process.kill()
    process.communicate()
    before = (folder.run() / "last.ckpt").read_bytes()
    second = folder.resume(FILE_SIZE_LIMIT="100000")
    assert finish(second) == 1
    message = second.stderr_text  # type: ignore[attr-defined]
    assert f"File too large; go on with: python train.py --resume {folder.run()}" in message
    assert message.count("\n") == 1
    assert (folder.run() / "last.ckpt").read_bytes() == before
    assert not list(folder.run().glob("*.part"))


def test_two_runs_started_together_have_folders_of_their_own_whatever_home_and_rank_the_environment_has(
    tmp_path: Path, command: list[str]
) -> None:
    folder = Folder(tmp_path, [*command, "--pictures", "false"])
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "home")  # that nobody can make
    ranks: dict[str, Any] = dict.fromkeys(["RANK", "LOCAL_RANK", "NODE_RANK", "JSM_NAMESPACE_RANK"], "1")
    place: dict[str, Any] = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [folder.new(1, HOME=nowhere, USERPROFILE=nowhere), folder.new(1, **SLURM, **ranks, **place)]
    assert [finish(process) for process in processes] == [0, 0]
    assert sorted(path.name for path in folder.run().parent.iterdir()) == ["version_0", "version_1"]
    assert folder.summary(0)["test_acc"] == folder.summary(1)["test_acc"]


def nodes(start: Callable[..., subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """The processes of a run on two machines, both of which are this one."""
    network = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [start(NODE_RANK=str(rank), **network) for rank in (0, 1)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_signal_ends_a_run_that_waits_for_another_machine(tmp_path: Path, command: list[str]) -> None:
    folder, port = Folder(tmp_path, [*command, "--num_nodes", "2"]), free_port()
    process = folder.new(1, NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    while process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    time.sleep(0.5)  # so that it waits
    process.send_signal(signal.SIGTERM)
    assert finish(process) == -signal.SIGTERM  # which is 143 for a shell
    message = process.stderr_text  # type: ignore[attr-defined]
    assert message == f"waiting for the other machines at 127.0.0.1:{port}\n"
    assert not list(folder.run().glob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_two_machines_stopped_and_resumed_end_as_two_that_were_not(tmp_path: Path, command: list[str]) -> None:
    command = [*command, "--num_nodes", "2"]
    whole, folder = Folder(tmp_path / "whole", command), Folder(tmp_path, command)
    pair = nodes(lambda **network: whole.new(8, **network))
    statuses = [finish(node) for node in pair]
    assert statuses == [0, 0], [node.stderr_text for node in pair]  # type: ignore[attr-defined]
    for start, stopped in (
        (lambda **network: folder.new(8, **network), [1]),
        (folder.resume, [0]),
        (folder.resume, [0, 1]),
    ):
        pair = nodes(start)
        wait_for_epoch(pair[0])
        for rank in stopped:
            pair[rank].send_signal(signal.SIGTERM)
        statuses = [finish(node) for node in pair]
        assert all(status == 143 if rank in stopped else status == 1 for rank, status in enumerate(statuses)), statuses
        for node in pair:
            assert f"go on with: python train.py --resume {folder.run()}" in node.stderr_text  # type: ignore[attr-defined]
    assert [finish(node) for node in nodes(folder.resume)] == [0, 0]
    assert_same(whole, folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_two_processes_killed_and_resumed_end_as_two_that_were_not(tmp_path: Path, command: list[str]) -> None:
    command = [*command, "--devices", "2"]
    whole, folder = Folder(tmp_path / "whole", command), Folder(tmp_path, command)
    assert finish(whole.new(8)) == 0
    process = folder.new(8)
    wait_for_epoch(process)
    wait_for_epoch(process)
    process.kill()
    process.communicate()
    assert nothing_is_left(process)
    assert finish(folder.resume()) == 0
    assert_same(whole, folder)


def nothing_is_left(process: subprocess.Popen[str]) -> bool:
    """Whether all processes of a run have ended, those that it has started too; waits a little for them."""
    for _ in range(50):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_a_signal_to_the_first_of_two_processes_ends_both(tmp_path: Path, command: list[str]) -> None:
    folder = Folder(tmp_path, [*command, "--devices", "2"])
    process = folder.new(200)
    wait_for_epoch(process)
    process.send_signal(signal.SIGTERM)
    assert finish(process) == 143 and nothing_is_left(process)
    message = process.stderr_text  # type: ignore[attr-defined]
    assert f"go on with: python train.py --resume {folder.run()}" in message and message.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_a_port_that_is_taken_is_one_line_and_leaves_no_process(tmp_path: Path, command: list[str]) -> None:
    folder = Folder(tmp_path, [*command, "--devices", "2"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = folder.new(1, MASTER_PORT=str(server.getsockname()[1]))
        assert finish(process) == 2 and nothing_is_left(process)
    message = process.stderr_text  # type: ignore[attr-defined]
    assert "the processes of the run do not meet" in message and message.count("\n") == 1


SLURM: dict[str, Any] = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "9", "SLURM_NTASKS": "8", "SLURM_PROCID": "1"}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_slurms_signal_before_the_end_of_a_job_writes_nothing_and_loses_no_whole_epoch(
    folder: Folder, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    environment = SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    process = folder.new(200, tmp_path / "here", **environment)
    wait_for_epoch(process)
    process.send_signal(signal.SIGUSR1)
    assert finish(process) == -signal.SIGUSR1
    assert list((tmp_path / "here").iterdir()) == []
    assert weights(folder.run() / "last.ckpt")
