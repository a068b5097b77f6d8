"""Ctrl-C and SIGTERM, for a run and for a sweep."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal stopped a run or a sweep. Not an Exception, or a library that catches those would go on.

    Attributes:
        signal: Its number.
        advice: How the run or the sweep goes on.
    """

    def __init__(self, signal: int, advice: str) -> None:
        super().__init__(signal, advice)
        self.signal = signal
        self.advice = advice


class StopSignals:
    """A context in which the first Ctrl-C or SIGTERM raises `Stopped` at once, with the text that `advise` returns.

    Then the same signal ends the process, and the other is ignored: after Ctrl-C, which reaches a sweep and its runs,
    the sweep sends its runs SIGTERM too. Handlers can be set in the main thread only; elsewhere this does nothing.

    With `later`, signals end the process without a word until `listen` is called: Python's handlers do not run while
    the main thread waits in C++ code, as for another process of a run.
    """

    def __init__(self, advise: Callable[[], str], later: bool = False) -> None:
        self.advise, self.later = advise, later
        self._handlers: dict[int, Any] = {}  # of before

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._set(signal.SIG_DFL if self.later else self.stop)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Set the handlers, once more where somebody else has set others."""
        self._set(self.stop)

    def stop(self, number: int, frame: FrameType | None = None) -> None:
        """Raise `Stopped`, as the handler of a signal."""
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL if each == number else signal.SIG_IGN)
        raise Stopped(number, self.advise())

    def _set(self, handler: Any) -> None:
        for number in self._handlers:
            signal.signal(number, handler)
