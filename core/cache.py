"""Arrays that take long to compute, stored in files: computed once, verified at each use, mapped into memory."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from core.errors import DataError
from core.files import NO_PERMISSION, sha256, write_bytes
from core.locks import hold_lock, say_once


@dataclass(eq=False)
class LazyArray:
    """An array that is read from its file in `folder`, or computed and stored there, when `array` is first used.

    The file holds the array's bytes and their SHA-256; a file that does not is computed again. Of several processes
    that need the array at once, one computes it and the others wait. Changes of the array in memory never reach the
    file. If this process lacks the permission to write to the folder, a line says so and nothing is stored.
    """

    name: str  # in words, for the file and for people
    identity: str  # equal only for equal arrays: made of all that the values depend on, versions of libraries too
    shape: tuple[int, ...]
    compute: Callable[[], np.ndarray]
    dtype: DTypeLike = np.uint8
    folder: Path | None = None  # None stores nothing

    @cached_property
    def array(self) -> np.ndarray:
        """The array itself. Raises DataError if the folder cannot be written, other than for lack of permission."""
        if self.folder is None:
            return self.compute()
        path = self.folder / f"{self.name.replace(' ', '-')}-{self.identity[:16]}.bin"
        if (stored := self._read(path)) is not None:
            return stored
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with hold_lock(self.folder / ".lock"):  # again by this thread, if `compute` needs another LazyArray
                if (stored := self._read(path)) is not None:  # another process has computed it meanwhile
                    return stored
                if self._bytes > 1e7:  # which takes seconds
                    print(f'Computing "{self.name}"; later runs read it from {self.folder}', flush=True)
                computed = np.ascontiguousarray(self.compute())
                write_bytes(path, computed.data, bytes.fromhex(array_sha256(computed)))
            return computed
        except OSError as error:
            if error.errno in NO_PERMISSION:
                say_once(f"{self.folder} cannot be written: computing in memory; --cache_dir names another folder")
                return self.compute()
            raise DataError(f"{self.folder}, the folder of preprocessed images, cannot be written: {error}") from error

    @property
    def _bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def _read(self, path: Path) -> np.ndarray | None:
        """Map the file into memory; return None if it is not there or damaged."""
        try:
            stored = np.asarray(np.memmap(path, np.uint8, mode="c"))
        except (OSError, ValueError):  # ValueError: it is empty
            return None
        data = stored[:-32]
        if data.size != self._bytes or bytes.fromhex(array_sha256(data)) != stored[-32:].tobytes():
            return None
        return data.view(self.dtype).reshape(self.shape)


def array_sha256(array: np.ndarray) -> str:
    """Return the SHA-256 of the array's values in C order; neither shape nor dtype counts."""
    return sha256(np.ascontiguousarray(array).data)
