"""Locks between processes. The system releases them when their process ends, however it ends."""

import errno
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import UsageError

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # NFS without lockd, Lustre, FUSE


@contextmanager
def hold_lock(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Hold a lock on the file `path`, which is made if need be, within this context.

    While another process or thread holds it, wait, and say so on standard error; or raise UsageError with the text
    `refusal`. A thread may take a lock again that it holds. On a file system without locks, say so and go on without:
    a file that stands for a lock would outlive a process that was killed, and then block the others for ever.

    Raises:
        OSError: The file cannot be made.
    """
    lock = FileLock(path, is_singleton=True, fallback_to_soft=False)
    with ExitStack() as held:
        try:
            try:
                held.enter_context(lock.acquire(timeout=0))
            except Timeout as error:
                if refusal:
                    raise UsageError(refusal) from error
                say_once(f"waiting for another process, which holds the lock {path}")
                held.enter_context(lock.acquire())
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say_once(
                f"{path.parent}: its file system has no locks; let no other process write to this folder meanwhile"
            )
        yield


@cache
def say_once(line: str) -> None:
    """Print a line on standard error, once in this process."""
    print(line, file=sys.stderr, flush=True)
