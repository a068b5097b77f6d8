"""Files that are there whole or not at all."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from core.files import write_bytes


def test_a_failed_write_leaves_the_file_before_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_bytes(tmp_path / "a.ckpt", b"before, ", b"in parts")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a.ckpt", b"after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.ckpt": b"before, in parts"}


def test_what_a_killed_process_left_is_taken_away_and_what_may_be_in_use_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = platform.node()
    in_use = [f"[a].csv.{here}-{os.getppid()}.part", f"[a].csv.another-{here}-{gone.pid}.part", "[a].csv.own.part"]
    for name in (f"[a].csv.{here}-{gone.pid}.part", *in_use):
        (tmp_path / name).touch()
    write_bytes(tmp_path / "[a].csv", b"1,2")
    assert {path.name for path in tmp_path.iterdir()} == {"[a].csv", *in_use}
