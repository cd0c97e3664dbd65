"""Tiny fake work, in real worker processes; Ctrl-C is a SIGINT that the test sends to itself."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.jobs import interruptions, side_by_side
from loclin.record import Part


def run_one(config: dict[str, Any], run: int, progress: Callable[[str, float], None]) -> Part:
    """The work, found by name in a worker: run 0 ends at once, later ones take what is asked."""
    progress("working", 0.5)
    if config.get("fails"):
        raise LoclinError("expected nothing, found this")
    time.sleep(config.get("seconds", 0.0) if run else 0.0)
    return Part(
        rows=[], arrays={}, notes=(f"the same of [bold] and {'long ' * 30}", f"known of run {run}")
    )


def results(seconds: float = 0.0, **settings: Any) -> Generator[tuple[int, Part], None, None]:
    return side_by_side(
        __name__,
        {"seconds": seconds, **settings},
        [0, 1],
        workers=1,
        title="fake",
        told=("known of run 1",),
    )


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler has run when this ends


@pytest.fixture(autouse=True)
def handler_restored() -> Iterator[None]:
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def ends_soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_every_result_is_given_and_every_different_note_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sorted(run for run, _ in results()) == [0, 1]
    said = capsys.readouterr().out
    assert said.count(f"the same of [bold] and {'long ' * 30}".rstrip()) == 1
    assert said.count("known of run 0") == 1
    assert "known of run 1" not in said  # the user has seen it
    assert ends_soon(lambda: not multiprocessing.active_children())


def test_a_run_that_fails_ends_all() -> None:
    with pytest.raises(LoclinError, match="expected nothing, found this"):
        list(results(fails=True))
    assert ends_soon(lambda: not multiprocessing.active_children())


def keep(
    runs: Generator[tuple[int, Part], None, None], kept: list[int], after: Callable[[int], None]
) -> None:
    """As a study keeps them, with something happening in the middle."""
    with closing(runs):
        for run, _ in runs:
            after(run)
            kept.append(run)


def test_ctrl_c_while_workers_work_stops_them() -> None:
    kept: list[int] = []
    later = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        keep(results(seconds=600), kept, lambda _: later.start())
    assert kept == [0]
    assert time.monotonic() - began < 120
    assert ends_soon(lambda: not multiprocessing.active_children())


def test_ctrl_c_before_there_are_workers_stops_the_run() -> None:
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(results(seconds=600))
    assert ends_soon(lambda: not multiprocessing.active_children())


def test_ctrl_c_while_a_result_is_kept_lets_it_be_kept_and_stops() -> None:
    kept: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        keep(results(seconds=600), kept, lambda _: ctrl_c())
    assert kept == [0]


def test_ctrl_c_while_the_last_result_is_kept_stops_what_would_follow() -> None:
    kept: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        keep(results(), kept, lambda _: ctrl_c() if kept else None)
    assert sorted(kept) == [0, 1]


def test_ctrl_c_is_not_lost_when_keeping_a_result_fails() -> None:
    def fail(_: int) -> None:
        ctrl_c()
        raise LoclinError("expected room, found none")

    with pytest.raises(KeyboardInterrupt):
        keep(results(), [], fail)


def test_another_thread_leaves_ctrl_c_alone() -> None:
    handlers = []

    def work() -> None:
        handlers.extend(signal.getsignal(signal.SIGINT) for _ in results())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler] * 2


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
