"""Arrays that take long to compute, kept in files: computed once, verified at each use, mapped into memory."""

import errno
import hashlib
import sys
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from core.errors import DataError
from core.files import write_bytes
from core.locks import hold_lock


class LazyArray:
    """An array that is made when it is first asked for; its `identity` is equal for equal arrays alone."""

    def __init__(self, identity: str, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        self.identity, self.shape, self._make = identity, shape, make

    @cached_property
    def array(self) -> np.ndarray:
        return self._make()


def load_or_compute(
    folder: Path | None,
    name: str,
    inputs: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    compute: Callable[[], np.ndarray],
) -> np.ndarray:
    """What `compute` returns, of this shape and dtype, read from `folder`, if there is one, if it was called with this
    name and these inputs before: all that the result depends on, versions of libraries too.

    The file is the array's bytes and their SHA-256; one that does not hold it counts as not there. Of several processes
    that ask at once, one computes and the others wait. What is done to the array in memory never reaches the file.
    Where nobody lets this process write, as in a shared folder of data, a line says that nothing is kept; DataError if
    the folder cannot be written for another reason.
    """
    if folder is None:
        return compute()
    path = folder / f"{name}-{key(name, inputs)[:16]}.bin"
    if (found := _read(path, shape, dtype)) is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder / ".lock"):  # `compute` may ask for what another step has kept
            if (found := _read(path, shape, dtype)) is None:  # else another process has made it meanwhile
                found = np.ascontiguousarray(compute())
                write_bytes(path, found.data, bytes.fromhex(digest(found)))
        return found
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _say_unkept(folder)
            return compute()
        raise DataError(f"{folder} cannot be written, and preprocessed images are kept there: {error}") from error


@cache
def _say_unkept(folder: Path) -> None:
    """Once for each folder."""
    print(f"{folder} cannot be written: computing in memory; --cache_dir keeps it elsewhere", file=sys.stderr)


def key(name: str, inputs: tuple[str, ...]) -> str:
    """The identity of what a computation `name` makes of these inputs."""
    return hashlib.sha256("\n".join((name, *inputs)).encode()).hexdigest()


def digest(array: np.ndarray) -> str:
    """SHA-256 of the array's values in C order; neither shape nor dtype counts."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _read(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray | None:
    try:
        stored = np.asarray(np.memmap(path, np.uint8, mode="c"))
    except (OSError, ValueError):  # ValueError: it is empty
        return None
    data = stored[:-32]
    if data.size != np.prod(shape) * np.dtype(dtype).itemsize or digest(data) != stored[-32:].tobytes().hex():
        return None
    return data.view(dtype).reshape(shape)
