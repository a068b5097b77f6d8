"""Locks between processes and threads, and file systems that have none."""

import errno
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from core.errors import UsageError
from core.locks import hold_lock

HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from core.locks import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock for a minute, and wait until it does."""
    line = [sys.executable, "-c", HOLDER.format(root=str(ROOT)), str(path)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_lock_ends_with_its_process_also_after_a_kill(tmp_path: Path, capsys: Any) -> None:
    process = start_holder(tmp_path / "lock")
    with pytest.raises(UsageError, match=r"^busy$"), hold_lock(tmp_path / "lock", "busy"):
        pass
    waiting = threading.Timer(0.5, process.kill)
    waiting.start()
    with hold_lock(tmp_path / "lock"):
        assert process.wait() != 0
    waiting.join()
    assert f"waiting for another process, which holds the lock {tmp_path / 'lock'}" in capsys.readouterr().err


def test_a_thread_may_take_its_lock_again_and_another_thread_may_not(tmp_path: Path) -> None:
    refused = []

    def take() -> None:
        try:
            with hold_lock(tmp_path / "lock", "busy"):
                pass
        except UsageError as error:
            refused.append(str(error))

    with hold_lock(tmp_path / "lock"), hold_lock(tmp_path / "lock", "busy"):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert refused == ["busy"]


@pytest.mark.parametrize("no_locks", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], indirect=True)
def test_without_locks_a_line_says_so_once_and_nobody_is_refused(no_locks: None, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "lock").write_text("of a process on another machine, which was killed")
    for refusal in ("busy", None):
        with hold_lock(tmp_path / "lock", refusal), hold_lock(tmp_path / "lock", refusal):
            pass
    message = capsys.readouterr().err
    assert message.startswith(f"{tmp_path}: its file system has no locks") and message.count("\n") == 1


def test_a_folder_that_is_not_there_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error, hold_lock(tmp_path / "file" / "lock"):
        pass
    assert str(tmp_path / "file") in str(error.value)
