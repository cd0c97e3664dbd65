"""Ctrl-C is a SIGINT that the test sends to itself."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from loclin.run.interrupt import interruptions


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler has run when this ends


@pytest.fixture(autouse=True)
def handler_restored() -> Iterator[None]:
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_is_raised_at_once() -> None:
    went_on = []

    def press_twice() -> None:
        with interruptions():
            ctrl_c()
            went_on.append("after the first")
            ctrl_c()
            went_on.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert went_on == ["after the first"]


def test_a_noted_ctrl_c_is_lost_nowhere() -> None:
    class Finalised:
        def __del__(self) -> None:
            ctrl_c()

    with interruptions() as interruption:
        Finalised()
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
        interruption.check()  # once is enough
    with pytest.raises(KeyboardInterrupt), interruptions(), interruptions():
        Finalised()  # handed from one to the other


def test_ctrl_c_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptions() as interruption:
        ctrl_c()
        interruption.check()
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN
