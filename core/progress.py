"""A line on the screen about what takes long."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

SLOW_SECONDS = 2.0


@contextmanager
def print_if_slow(line: str) -> Iterator[None]:
    """Print the line on standard output as soon as this context has taken SLOW_SECONDS."""
    timer = threading.Timer(SLOW_SECONDS, print, [line], {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
