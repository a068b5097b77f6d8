"""Ctrl-C and SIGTERM, for a run and for a sweep."""

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

import psutil

from core.shell import command_line, script

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal, by its number, asked a run or a sweep to stop; `advice` says how it goes on.

    `folder` is that of a run, with the checkpoint of its last whole epoch; None if there is none.
    """

    def __init__(self, signal: int, folder: Path | None = None, advice: str = "no epoch was complete yet") -> None:
        super().__init__(signal, folder, advice)
        self.signal = signal
        self.folder = folder
        again = command_line("python", script("train.py"), "--resume", folder)
        self.advice = f"go on with: {again}" if folder else advice


class StopSignals:
    """Within this context, Ctrl-C or SIGTERM asks to stop; the same signal again ends at once.

    The other signal does not: after Ctrl-C, which reaches a sweep and its runs, the sweep sends its runs SIGTERM too.
    Handlers can be set in the main thread only; elsewhere this does nothing.

    Python's handlers do not run while the main thread waits in C code, as for another process, for half an hour if
    that one never comes. So a thread, too, is told of each signal.

    With `advice` the first signal raises `Stopped`, which says so; without, it is noted in `received`.
    """

    def __init__(self, advice: str | None = None) -> None:
        self.advice = advice
        self.received: int | None = None  # the number of the signal
        self.waiting = False  # whether the first signal ends at once, too
        self._handlers: dict[int, Any] = {}  # of before

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
            self.listen()
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._handlers:
            signal.set_wakeup_fd(self._descriptor)
            self._writer.close()  # which ends the thread

    def listen(self) -> None:
        """Set the handlers, once more where somebody else set others."""
        for number in self._handlers:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        if self.advice is not None:
            raise Stopped(number, advice=self.advice)

    def _watch(self, reader: socket.socket) -> None:
        """In the thread: end the process, and those that it started, where the main thread may not be able to."""
        before = None
        with reader:
            while numbers := reader.recv(1):
                if numbers[0] in SIGNALS and (self.waiting or numbers[0] == before):
                    for child in psutil.Process().children():
                        with suppress(psutil.NoSuchProcess):
                            child.terminate()
                    print(f"{Path(sys.argv[0]).name}: stopped", file=sys.stderr, flush=True)
                    os._exit(128 + numbers[0])
                before = numbers[0]
