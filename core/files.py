"""Files that are there whole or not at all, and hashes."""

import errno
import glob
import hashlib
import os
import platform
from pathlib import Path

import psutil

NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)  # error numbers, of a folder that nobody lets us write to


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts, one after the other, under a temporary name in the file's folder, flush them to disk, and move
    the file into place.

    The file stays as it was before in case of an error, such as a full disk, or a kill. The partial file has the
    machine's name and the process's number in its name, so that two processes, on a shared disk too, never write to the
    same one. An error takes it away, and after a kill the next call for the same file on the same machine does.
    """
    own = f"{path.name}.{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(own)}*.part"):
        number = left.name.removeprefix(own).removesuffix(".part")
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            left.unlink(missing_ok=True)
    partial = path.with_name(f"{own}{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
