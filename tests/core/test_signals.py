"""Ctrl-C and SIGTERM within a context that asks to stop."""

import os
import signal
import threading

import pytest

from core.signals import Stopped, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_same_one_again_has_its_own_action(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before


def test_after_ctrl_c_a_sigterm_is_still_only_noted() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM


def test_with_an_advice_the_first_signal_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped, StopSignals(advice="the same command goes on"):
        os.kill(os.getpid(), signal.SIGINT)
    assert (stopped.value.signal, stopped.value.advice) == (signal.SIGINT, "the same command goes on")
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_no_handler_is_set() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
