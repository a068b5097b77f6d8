"""What is stored of computations: found again, verified, computed again when it is damaged."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from core import cache
from core.cache import LazyArray, array_sha256

VALUES = np.arange(6000, dtype=np.int32).reshape(3, 2000)


def stored(folder: Path | None, identity: str = "a" * 64, compute: Any = VALUES.copy) -> np.ndarray:
    return LazyArray("some values", identity, VALUES.shape, compute, np.int32, folder).array


def fail() -> np.ndarray:
    raise ZeroDivisionError


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("*.bin")
    return path


def test_what_was_computed_once_is_read(tmp_path: Path) -> None:
    assert np.array_equal(stored(tmp_path / "new"), VALUES)
    assert the_file(tmp_path / "new").name == f"some-values-{'a' * 16}.bin"
    again = stored(tmp_path / "new", compute=fail)
    assert np.array_equal(again, VALUES) and again.dtype == VALUES.dtype
    again[:] = 0  # in memory only
    assert np.array_equal(stored(tmp_path / "new", compute=fail), VALUES)
    for folder, identity in ((tmp_path / "new", "b" * 64), (None, "a" * 64)):
        with pytest.raises(ZeroDivisionError):
            stored(folder, identity, fail)


@pytest.mark.parametrize("damage", ["torn", "empty", "bit", "longer"])
def test_a_damaged_file_is_noticed_and_computed_again(damage: str, tmp_path: Path) -> None:
    stored(tmp_path)
    path = the_file(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[1000] ^= 1
    contents = {"torn": data[:-100], "empty": bytearray(), "bit": data, "longer": data + b"x"}
    path.write_bytes(contents[damage])
    assert np.array_equal(stored(tmp_path), VALUES)
    assert np.array_equal(stored(tmp_path, compute=fail), VALUES)
    assert len(path.read_bytes()) == VALUES.nbytes + 32


def test_an_array_is_known_by_its_values_in_c_order() -> None:
    assert array_sha256(VALUES.T) == array_sha256(np.ascontiguousarray(VALUES.T)) != array_sha256(VALUES)


def test_a_large_computation_is_named_once_with_its_folder(tmp_path: Path, capsys: Any) -> None:
    for _ in range(2):
        zeros = LazyArray("some values", "a" * 64, (2**24,), lambda: np.zeros(2**24, np.uint8), folder=tmp_path)
        assert not zeros.array.any()
    assert capsys.readouterr().out == f'Computing "some values"; later runs read it from {tmp_path}\n'


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(cache.DataError, match="cannot be written"):
        stored(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_where_nothing_may_be_written_a_line_says_so_and_all_is_computed_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, number: int
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:  # since permissions do not bind a test that runs as root
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for _ in range(2):
        assert np.array_equal(stored(tmp_path / "new"), VALUES)
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.undo()
    (tmp_path / "new").mkdir()
    monkeypatch.setattr(cache, "hold_lock", refuse)
    assert np.array_equal(stored(tmp_path / "new"), VALUES)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_fresh_folder_without_locks_is_filled(tmp_path: Path, no_locks: None) -> None:
    assert np.array_equal(stored(tmp_path), VALUES)
    assert the_file(tmp_path).stat().st_size


SLOW_COMPUTATION = """
import os, sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, {root!r})
from core import cache
folder = Path(sys.argv[1])
def compute():
    with open(folder / "computed", "a") as file:
        file.write("x")
    time.sleep(1)
    return np.arange(2**20)
if "die" in sys.argv:
    os.fsync = lambda number: os._exit(9)  # killed with the bytes written, but not yet the file in place
found = cache.LazyArray("a", "b", (2**20,), compute, np.int64, folder).array
assert np.array_equal(found, np.arange(2**20))
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SLOW_COMPUTATION.format(root=str(ROOT)), str(folder), *arguments])


def test_two_processes_at_once_compute_once(tmp_path: Path) -> None:
    both = [start(tmp_path), start(tmp_path)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "computed").read_text() == "x"


def test_a_kill_during_the_write_leaves_nothing_that_is_taken_for_the_result(tmp_path: Path) -> None:
    assert start(tmp_path, "die").wait(60) == 9
    assert not list(tmp_path.glob("*.bin"))
    assert start(tmp_path).wait(60) == 0
    assert the_file(tmp_path).stat().st_size == 2**23 + 32 and not list(tmp_path.glob("*.part"))
