"""CIFAR-10's official binary version: names and hashes of its files, and reading them.

images, labels = load(prepare("data"), train=True)  # uint8 [50000, 32, 32, 3], int64 [50000]
"""

from pathlib import Path

import numpy as np

from core.errors import DataError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD_BYTES = 1 + 3 * 32 * 32  # label, then the red, the green and the blue plane, each row by row

FILES = {  # SHA-256 of the official binary version, training files first; Apache MXNet publishes SHA-1 that agree
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
FOLDER = "cifar-10-batches-bin"  # below the data folder
UNPACKED = "cifar-10-batches-py"  # the folder that torchvision leaves there


def find_folder(data_dir: Path, cache_dir: Path | None = None) -> Path:
    """Return where the six files are, or else where they belong: in FOLDER below `data_dir`, or below `cache_dir` if
    they were written there because `data_dir` is read-only. FOLDER or UNPACKED itself stands for the folder above it.
    """
    if cache_dir and all((cache_dir / FOLDER / name).exists() for name in FILES):
        return cache_dir / FOLDER
    data_dir = data_dir.absolute().parent if data_dir.absolute().name in (FOLDER, UNPACKED) else data_dir
    return data_dir / FOLDER


def find_test_images(data_dir: Path) -> Path | None:
    """Return `find_folder` if the test images are there; unlike `prepare`, check no hash and download nothing."""
    folder = find_folder(data_dir)
    return folder if (folder / "test_batch.bin").exists() else None


def load(folder: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read the training or the test files in the folder that `prepare` returned.

    Returns images, uint8 [N, 32, 32, 3] in RGB, and labels, int64 [N] in 0..9; N is 50,000 or 10,000.
    Raises DataError when a file is not there; `prepare` has checked what is in it.
    """
    files = [read_records(folder / name) for name in _names(train)]
    images = np.empty((sum(len(labels) for _, labels in files), 32, 32, 3), np.uint8)
    for (source, _), target in zip(files, np.split(images, len(files)), strict=True):
        for channel in range(3):  # three times faster than all at once
            target[..., channel] = source[..., channel]
    return images, np.concatenate([labels for _, labels in files])


def load_labels(folder: Path, train: bool) -> np.ndarray:
    """Read the labels of `load` without the images; raises as `load`."""
    return np.concatenate([read_records(folder / name)[1] for name in _names(train)])


def load_some(folder: Path, train: bool, indices: np.ndarray) -> np.ndarray:
    """Read the images `indices`, int64 [M], of `load`, uint8 [M, 32, 32, 3], without the others; raises as `load`."""
    files = [read_records(folder / name)[0] for name in _names(train)]
    count = len(files[0])  # all files have as many
    return np.array([files[index // count][index % count] for index in indices])


def identity(train: bool) -> str:
    """Return what tells the images of `load` from any others, since `prepare` checks it: the hashes of their files."""
    return " ".join(FILES[name] for name in _names(train))


def _names(train: bool) -> list[str]:
    return [name for name in FILES if name.startswith("data") == train]


def read_records(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map a file of N records: read-only images, uint8 [N, 32, 32, 3], not contiguous, and labels, int64 [N].

    Raises as `load`.
    """
    if not path.exists():
        raise DataError(f"{path} is not there: call prepare_data first")
    records = np.asarray(np.memmap(path, np.uint8, mode="r")).reshape(-1, RECORD_BYTES)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(np.int64)
