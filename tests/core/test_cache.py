"""What is kept of computations on disk: found again, verified, made anew when anything that it depends on changes."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cifar10 import preprocessing
from cifar10.preprocessing import Preprocessing, method_versions, preprocess
from conftest import ROOT
from core import cache

MEDIAN = Preprocessing(denoise="median", normalize="dataset")


@pytest.fixture
def images() -> np.ndarray:
    """uint8 [10, 3, 32, 32]."""
    return np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("*.bin")
    return path


def test_what_was_computed_once_is_read(images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = preprocess(images, MEDIAN, folder=tmp_path / "kept")
    monkeypatch.setattr("cifar10.preprocessing._each", lambda *arguments: 1 / 0)
    again = preprocess(images, MEDIAN, folder=tmp_path / "kept")
    assert np.array_equal(first, again) and again.shape == images.shape
    again[:] = 0  # in memory only
    assert np.array_equal(preprocess(images, MEDIAN, folder=tmp_path / "kept"), first)
    for other, settings in ((images, replace(MEDIAN, denoise="gaussian")), (images[::-1], MEDIAN)):
        with pytest.raises(ZeroDivisionError):
            preprocess(other, settings, folder=tmp_path / "kept")


@pytest.mark.parametrize("damage", ["torn", "empty", "bit", "longer"])
def test_a_damaged_file_is_noticed_and_made_anew(damage: str, images: np.ndarray, tmp_path: Path) -> None:
    right = preprocess(images, MEDIAN, folder=tmp_path).copy()
    path = the_file(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[1000] ^= 1
    contents = {"torn": data[:-100], "empty": bytearray(), "bit": data, "longer": data + b"x"}
    path.write_bytes(contents[damage])
    assert np.array_equal(preprocess(images, MEDIAN, folder=tmp_path), right)
    assert np.array_equal(preprocess(images, MEDIAN, folder=tmp_path), right)
    assert len(path.read_bytes()) == right.size + 32


def test_another_library_version_computes_anew(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(images, MEDIAN, folder=tmp_path)
    monkeypatch.setattr("cifar10.preprocessing._versions", lambda method: ("0",))
    preprocess(images, MEDIAN, folder=tmp_path)
    assert len(list(tmp_path.glob("*.bin"))) == 2


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which packages are there, by name, with their versions."""

    def install(**packages: str) -> None:
        def version(name: str) -> str:
            try:
                return packages[name.replace("-", "_")]
            except KeyError:
                raise PackageNotFoundError(name) from None

        preprocessing._versions.cache_clear()
        monkeypatch.setattr(preprocessing, "version", version)

    yield install
    preprocessing._versions.cache_clear()


@pytest.mark.parametrize("package", ["opencv_python", "opencv_python_headless", "opencv_contrib_python_headless"])
def test_opencv_is_known_by_whichever_package_brings_it(package: str, installed: Any) -> None:
    installed(**{package: "4.99"})
    assert "cv2 4.99" in method_versions(MEDIAN)


def test_opencv_without_a_package_is_asked_itself(installed: Any) -> None:
    installed()
    assert f"cv2 {cv2.__version__}" in method_versions(MEDIAN)


def test_only_what_a_method_calls_is_part_of_what_its_result_is_known_by(
    images: np.ndarray, tmp_path: Path, installed: Any
) -> None:
    def kept(settings: Preprocessing, **packages: str) -> int:
        installed(**({"opencv_python": "1", "scikit_image": "1"} | packages))
        preprocess(images, settings, folder=tmp_path / repr(settings))
        return len(list((tmp_path / repr(settings)).glob("*.bin")))

    superpixels = Preprocessing(segment="superpixels", normalize="dataset")
    standardised = Preprocessing(normalize="image")
    assert kept(MEDIAN) == kept(MEDIAN, scikit_image="2") == 1
    assert kept(MEDIAN, opencv_python="2") == 2
    assert kept(superpixels) == kept(superpixels, opencv_python="2") == 1
    assert kept(superpixels, scikit_image="2") == 2
    assert kept(standardised) == kept(standardised, opencv_python="2", scikit_image="2") == 1


def test_the_versions_of_a_choice_of_methods_are_those_of_each(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(opencv_python="4.99", scikit_image="0.99")
    numpy = f"numpy {np.__version__}"
    plain = Preprocessing(normalize="dataset")
    assert method_versions(plain) == ("1",) and method_versions(replace(plain, normalize="image")) == ("1", numpy)
    both = replace(plain, segment="superpixels", normalize="zca")
    assert method_versions(both) == ("1", "cv2 4.99", numpy, "skimage 0.99")
    preprocessing._versions.cache_clear()
    monkeypatch.setattr(preprocessing, "_REVISION", "2")
    assert method_versions(both)[0] == "2" and method_versions(plain) == ("2",)


def test_a_folder_that_cannot_be_written_is_one_clear_error(images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(cache.DataError, match="cannot be written"):
        preprocess(images, MEDIAN, folder=tmp_path / "file")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_where_nothing_may_be_written_a_line_says_so_and_all_is_computed_in_memory(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, number: int
) -> None:
    expected = preprocess(images, MEDIAN)

    def refuse(*arguments: Any, **options: Any) -> None:  # since permissions do not bind a test that runs as root
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for _ in range(2):
        assert np.array_equal(preprocess(images, MEDIAN, folder=tmp_path / "kept"), expected)
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.undo()
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(cache, "hold_lock", refuse)
    assert np.array_equal(preprocess(images, MEDIAN, folder=tmp_path / "kept"), expected)
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_fresh_folder_without_locks_is_filled(images: np.ndarray, tmp_path: Path, no_locks: None) -> None:
    assert np.array_equal(preprocess(images, MEDIAN, folder=tmp_path), preprocess(images, MEDIAN))
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
found = cache.load_or_compute(folder, "a", ("b",), (2**20,), np.int64, compute)
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
