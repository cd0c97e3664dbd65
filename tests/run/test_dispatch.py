"""Planted work in real worker processes. Ctrl-C is a SIGINT that the test sends to itself."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from loclin.errors import LoclinError
from loclin.run import dispatch as module
from loclin.run.dispatch import LOADING, Place, results
from loclin.run.interrupt import Interruption
from loclin.run.local import LocalPool
from loclin.run.workers import Reply
from tests.run.planted import Planted, result_of

ITEMS = [0, 10, 20, 30, 40, 50, 60, 70]


def collected(stream: Iterator[tuple[int, str]]) -> dict[int, str]:
    """Results by the number of their item; none twice."""
    every = list(stream)
    assert len(dict(every)) == len(every)
    return dict(every)


def expected(items: list[int]) -> dict[int, str]:
    return {number: result_of(item) for number, item in enumerate(items)}


def ends_soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert ends_soon(lambda: not multiprocessing.active_children())


@pytest.mark.parametrize(
    "place", [Place(workers=1), Place(workers=2), Place(workers=1, alone=False)]
)
def test_every_item_is_done_once_whoever_does_it(tmp_path: Path, place: Place) -> None:
    notes: list[str] = []
    stages: list[tuple[int, str]] = []
    stream = results(
        Planted(folder=tmp_path),
        ITEMS,
        place,
        progress=lambda item, stage, share: stages.append((item, stage)),
        note=notes.append,
    )
    assert collected(stream) == expected(ITEMS)
    assert stages[0] == (LOADING, "loading the model")
    assert sorted(stages[1:]) == [(i, "working") for i in range(8)]
    assert sorted(notes) == sorted(["the same of all", *(f"did {i}" for i in ITEMS)])  # each once
    there = os.listdir(tmp_path)
    assert 1 <= len(there) <= place.workers  # one may have done all before the other was ready
    assert (str(os.getpid()) in there) == place.is_this_process("cpu")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_worker_on_the_cpu_has_one_thread(tmp_path: Path, workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(results(Planted(folder=tmp_path), ITEMS, Place(workers=workers)))
        assert torch.get_num_threads() == 3
        assert {p.read_text() for p in tmp_path.iterdir()} == {"1"}
        list(results(Planted(folder=tmp_path, device="cuda"), ITEMS, Place(workers=1)))
        # an accelerator computes: threads are the noise's
        assert (tmp_path / str(os.getpid())).read_text() == "3"
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the processes that are started."""
    numbers: list[int] = []
    start = LocalPool.start

    def counted(self: LocalPool) -> int:
        numbers.append(start(self))
        return numbers[-1]

    monkeypatch.setattr(LocalPool, "start", counted)
    return numbers


def test_by_default_an_accelerator_has_one_worker_and_the_cpu_one_for_each_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[int]
) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    list(results(Planted(folder=tmp_path, device="cuda"), ITEMS))
    assert not started
    assert os.listdir(tmp_path) == [str(os.getpid())]
    list(results(Planted(folder=tmp_path), ITEMS))
    assert started == [1, 2]


def test_no_more_workers_start_than_there_are_items(tmp_path: Path, started: list[int]) -> None:
    assert collected(results(Planted(folder=tmp_path), ITEMS[:2], Place(workers=5))) == expected(
        ITEMS[:2]
    )
    assert started == [1, 2]
    assert list(results(Planted(folder=tmp_path), [], Place(workers=5))) == []


def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path, started: list[int]) -> None:
    items, done, killed = list(range(40)), dict[int, str](), list[int]()
    with closing(
        results(Planted(folder=tmp_path, seconds=0.05), items, Place(workers=2))
    ) as stream:
        for place, (number, result) in enumerate(stream):
            assert number not in done
            done[number] = result
            if place in (3, 15):
                alive = {str(process.pid) for process in multiprocessing.active_children()}
                killed.append(int(sorted(alive & set(os.listdir(tmp_path)))[0]))
                os.kill(killed[-1], signal.SIGKILL)
    assert len(set(killed)) == 2
    assert started == [1, 2, 3, 4]
    assert done == expected(items)


def collect(stream: Iterator[tuple[int, str]], into: dict[int, str]) -> None:
    """Results as they come; those that came before an error are there after it."""
    for number, result in stream:
        into[number] = result


def test_what_kills_every_worker_ends_it_after_all_else_is_done(tmp_path: Path) -> None:
    done: dict[int, str] = {}
    text = r"found 5 dead one after the other \(the last one: killed.*fewer --workers"
    with pytest.raises(LoclinError, match=text):
        collect(results(Planted(folder=tmp_path, deadly=10), ITEMS, Place(workers=2)), done)
    assert done == {n: r for n, r in expected(ITEMS).items() if n != 1}


def test_without_retries_one_death_of_each_is_enough(tmp_path: Path) -> None:
    place = Place(workers=1, alone=False, retries=0)
    with pytest.raises(LoclinError, match="found 1 dead one after the other"):
        list(results(Planted(folder=tmp_path, deadly=0), ITEMS, place))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("planted", "error", "text"),
    [
        ({"fails": 20}, LoclinError, "^expected a score, found none: try again$"),
        ({"builds": False}, LoclinError, "^expected a model, found none: give one$"),
        ({"breaks": 20}, (ZeroDivisionError, RuntimeError), "in a worker"),
    ],
)
def test_an_error_in_a_worker_ends_all(
    tmp_path: Path, workers: int, planted: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        list(results(Planted(folder=tmp_path, **planted), ITEMS, Place(workers=workers)))


def keep(
    stream: Generator[tuple[int, str], None, None], kept: list[int], after: Callable[[int], None]
) -> None:
    """As a search or a study keeps them, with something happening in the middle."""
    with closing(stream):
        for place, (number, _) in enumerate(stream):
            after(place)
            kept.append(number)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler has run when this ends


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_results_are_kept_lets_them_be_kept_and_stops(
    tmp_path: Path, workers: int
) -> None:
    kept: list[int] = []
    stream = results(
        Planted(folder=tmp_path, seconds=0.05), list(range(100)), Place(workers=workers)
    )
    with pytest.raises(KeyboardInterrupt):
        keep(stream, kept, lambda place: ctrl_c() if place == 2 else None)
    assert 3 <= len(kept) < 100
    assert len(kept) == len(set(kept))


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_the_last_result_is_kept_stops_what_would_follow(
    tmp_path: Path, workers: int
) -> None:
    kept: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        keep(
            results(Planted(folder=tmp_path), ITEMS, Place(workers=workers)),
            kept,
            lambda place: ctrl_c() if place == 7 else None,
        )
    assert sorted(kept) == list(range(8))


def test_ctrl_c_is_not_lost_when_keeping_a_result_fails(tmp_path: Path) -> None:
    def fail(_: int) -> None:
        ctrl_c()
        raise LoclinError("expected room, found none")

    with pytest.raises(KeyboardInterrupt):
        keep(results(Planted(folder=tmp_path), ITEMS, Place(workers=1)), [], fail)


@pytest.mark.parametrize("seconds", [0.05, 1.0])
def test_ctrl_c_while_workers_start_or_work_stops_them(tmp_path: Path, seconds: float) -> None:
    began = time.monotonic()
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        keep(
            results(Planted(folder=tmp_path, seconds=600), ITEMS, Place(workers=2)),
            [],
            lambda _: None,
        )
    assert time.monotonic() - began < 60


def test_another_thread_leaves_ctrl_c_alone(tmp_path: Path) -> None:
    handlers = []

    def work() -> None:
        for _ in results(Planted(folder=tmp_path), ITEMS, Place(workers=1)):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler] * 8


class FakePool:
    """Workers that die at random, in one process."""

    def __init__(self, draw: random.Random, deaths: float) -> None:
        self.draw, self.deaths, self.why = draw, deaths, "a throw of dice"
        self.work: dict[int, int | None] = {}
        self.resting: set[int] = set()
        self.started = 0

    def start(self) -> int:
        self.started += 1
        self.work[self.started] = None
        return self.started

    def send(self, worker: int, item: int) -> None:
        assert worker not in self.work  # it has replied
        if worker in self.resting:  # or it has died since: `wait` will say so
            self.resting.remove(worker)
            self.work[worker] = item

    def wait(self, seconds: float) -> list[tuple[int, Reply | None]]:
        replies: list[tuple[int, Reply | None]] = []
        for worker in self.draw.sample(sorted(self.work), self.draw.randint(0, len(self.work))):
            item = self.work.pop(worker)
            if self.draw.random() < self.deaths:
                replies.append((worker, None))
            else:
                replies.append((worker, Reply(result=None if item is None else result_of(item))))
                self.resting.add(worker)
        busy = {worker for worker, _ in replies}
        for worker in sorted(self.resting - busy):
            if self.draw.random() < self.deaths:  # with nothing to do
                self.resting.remove(worker)
                replies.append((worker, None))
        return replies

    def close(self) -> None:
        self.work, self.resting = {}, set()


def dispatched(pool: FakePool, items: list[int], *, retries: int) -> Iterator[tuple[int, str]]:
    work = module._Dispatch(pool, items, 4, retries)
    return work.run(lambda *_: None, lambda _: None, Interruption())


@pytest.mark.parametrize("seed", range(30))
def test_whichever_workers_die_every_item_is_done_once(seed: int) -> None:
    pool = FakePool(random.Random(seed), deaths=0.3)
    assert collected(dispatched(pool, list(range(25)), retries=1000)) == expected(list(range(25)))
    assert pool.started > 4


def test_workers_that_never_come_alive_end_it() -> None:
    pool = FakePool(random.Random(0), deaths=1.0)
    with pytest.raises(LoclinError, match=r"found 7 dead one after the other .*a throw of dice"):
        list(dispatched(pool, ITEMS, retries=3))


class TogetherPool(FakePool):
    """Two workers: one brings a result when the other brings an error, or dies."""

    def __init__(self, failure: Reply | None) -> None:
        super().__init__(random.Random(0), 0.0)
        self.failure = failure

    def wait(self, seconds: float) -> list[tuple[int, Reply | None]]:
        replies = [
            (w, Reply(result=None if i is None else result_of(i))) for w, i in self.work.items()
        ]
        failing = [w for w, i in self.work.items() if i == 10]
        self.resting |= set(self.work)
        self.work = {}
        return [(w, self.failure if w in failing else r) for w, r in replies]


@pytest.mark.parametrize(
    ("failure", "text"), [(None, "found 1 dead"), (Reply(error="expected x, found y"), "found y")]
)
def test_what_is_finished_when_another_fails_is_given_first(
    failure: Reply | None, text: str
) -> None:
    done: dict[int, str] = {}
    work = module._Dispatch(TogetherPool(failure), [0, 10], 2, -1)
    with pytest.raises(LoclinError, match=text):
        collect(work.run(lambda *_: None, lambda _: None, Interruption()), done)
    assert done == {0: result_of(0)}
