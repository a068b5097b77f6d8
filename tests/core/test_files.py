"""Files that are there whole or not at all."""

import os
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


def test_what_a_killed_process_left_is_taken_away_and_a_living_ones_partial_file_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (gone.pid, os.getppid(), "own"):
        (tmp_path / f"[a].csv.{name}.part").touch()
    write_bytes(tmp_path / "[a].csv", b"1,2")
    left = [f"[a].csv.{os.getppid()}.part", "[a].csv.own.part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["[a].csv", *left]
