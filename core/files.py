"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts, one after the other, under a temporary name in the file's folder, flush them to disk, and move
    the file into place.

    A kill leaves the file as it was before; an error, such as a full disk, leaves no partial file either.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
