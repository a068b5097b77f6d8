"""Ctrl-C and SIGTERM within a context that they stop."""

import os
import signal
import threading

import pytest

from core.signals import SIGNALS, Stopped, StopSignals


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_raises_what_is_advised_then(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    advice = "nothing is there yet"
    with pytest.raises(Stopped) as stopped, StopSignals(lambda: advice):
        advice = "the same command goes on"
        os.kill(os.getpid(), number)
        pytest.fail("not stopped at once")
    assert (stopped.value.signal, stopped.value.advice) == (number, "the same command goes on")
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_library_that_catches_all_exceptions_does_not_go_on() -> None:
    with pytest.raises(Stopped), StopSignals(str):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Exception:
            pytest.fail("caught")


@pytest.mark.parametrize(("number", "other"), [SIGNALS, SIGNALS[::-1]])
def test_then_the_same_signal_has_its_own_action_and_the_other_none(
    number: signal.Signals, other: signal.Signals
) -> None:
    with StopSignals(str):
        with pytest.raises(Stopped):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), other)  # does nothing
        assert signal.getsignal(number) == signal.SIG_DFL


def test_signals_act_as_by_default_until_the_context_listens() -> None:
    with StopSignals(str, later=True) as stop:
        assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_DFL] * 2
        stop.listen()
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


def test_outside_the_main_thread_no_handler_is_set() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopSignals(str) as stop:
            stop.listen()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
