"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file under a temporary name in its folder, flush it to disk, and move it into place.

    A kill leaves the file as it was before; an error, such as a full disk, leaves no partial file either.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
