"""Ctrl-C and SIGTERM, for a run and for a sweep."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from training.shell import command_line, door


class Stopped(Exception):
    """A signal asked the run to stop.

    Attributes:
        signal: Its number.
        folder: Of a run, with the checkpoint of its last whole epoch; None if there is none.
        advice: How it goes on.
    """

    def __init__(self, signal: int, folder: Path | None = None, advice: str = "no epoch was complete yet") -> None:
        super().__init__(signal, folder, advice)
        self.signal = signal
        self.folder = folder
        again = command_line("python", door("train.py"), "--resume", folder)
        self.advice = f"go on with: {again}" if folder else advice


class StopSignals:
    """Within this context, Ctrl-C or SIGTERM asks to stop; the same signal again ends at once.

    The other signal does not: after Ctrl-C, which reaches a sweep and its runs, the sweep sends its runs SIGTERM too.
    Handlers can be set in the main thread only; elsewhere this does nothing.

    Args:
        advice: With it the first signal raises `Stopped`, which says so; without, it is noted in `received`.

    Attributes:
        received: The number of the signal; None if there was none.
    """

    def __init__(self, advice: str | None = None) -> None:
        self.advice = advice
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        if self.advice is not None:
            raise Stopped(number, advice=self.advice)
