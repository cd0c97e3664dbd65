"""Planted candidates, in real worker processes; one real model. Ctrl-C is a SIGINT that the test
sends to itself.
"""

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
from loclin.search import executors
from loclin.search.executors import Group, Reply, scores
from loclin.search.ledger import line
from loclin.search.processes import Processes
from loclin.search.scoring import Outcome
from tests.search.planted import Planted, collect, expected_lines, groups, outcome

GROUPS = groups(8)


def found_lines(given: Iterator[list[Outcome]]) -> list[str]:
    return [line(o).rstrip("\n") for outcomes in given for o in outcomes]


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


@pytest.mark.parametrize("workers", [1, 2])
def test_every_group_is_scored_once_whoever_scores_it(tmp_path: Path, workers: int) -> None:
    told: list[str] = []
    shares: list[float] = []
    given = scores(
        Planted(folder=tmp_path),
        GROUPS,
        workers=workers,
        progress=lambda text, share: shares.append(share),
        tell=told.append,
    )
    found = found_lines(given)
    assert len(found) == len(set(found))
    assert set(found) == expected_lines(GROUPS)
    assert shares == [i / 8 for i in range(9)]
    assert sorted(told) == sorted(
        ["the same of all", *(f"scored {3 * i}" for i in range(8))]
    )  # each once
    here = str(os.getpid()) in os.listdir(tmp_path)
    assert (
        1 <= len(os.listdir(tmp_path)) <= workers
    )  # one may have done it all before the other was ready
    assert here == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_worker_on_the_cpu_has_one_thread(tmp_path: Path, workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(scores(Planted(folder=tmp_path), GROUPS, workers=workers, tell=lambda _: None))
        assert torch.get_num_threads() == 3
        assert {p.read_text() for p in tmp_path.iterdir()} == {"1"}
        list(
            scores(Planted(folder=tmp_path, device="cuda"), GROUPS, workers=1, tell=lambda _: None)
        )
        assert (
            tmp_path / str(os.getpid())
        ).read_text() == "3"  # an accelerator computes: threads are the noise's
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the processes that are started."""
    numbers: list[int] = []
    start = Processes.start

    def counted(self: Processes) -> int:
        numbers.append(start(self))
        return numbers[-1]

    monkeypatch.setattr(Processes, "start", counted)
    return numbers


def test_by_default_an_accelerator_has_one_worker_and_the_cpu_one_for_each_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[int]
) -> None:
    monkeypatch.setattr(executors, "cores", lambda: 2)
    list(scores(Planted(folder=tmp_path, device="cuda"), GROUPS, tell=lambda _: None))
    assert not started
    assert os.listdir(tmp_path) == [str(os.getpid())]
    list(scores(Planted(folder=tmp_path), GROUPS, tell=lambda _: None))
    assert started == [1, 2]


def test_no_more_workers_start_than_there_are_groups(tmp_path: Path, started: list[int]) -> None:
    assert (
        len(
            found_lines(
                scores(Planted(folder=tmp_path), GROUPS[:2], workers=5, tell=lambda _: None)
            )
        )
        == 6
    )
    assert started == [1, 2]
    assert list(scores(Planted(folder=tmp_path), [], workers=5)) == []


def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path, started: list[int]) -> None:
    made = groups(40)
    found: list[str] = []
    killed: list[int] = []
    with closing(
        scores(Planted(folder=tmp_path, seconds=0.05), made, workers=2, tell=lambda _: None)
    ) as given:
        for place, outcomes in enumerate(given):
            found += [line(o).rstrip("\n") for o in outcomes]
            if place in (3, 15):
                alive = {str(process.pid) for process in multiprocessing.active_children()}
                killed.append(int(sorted(alive & set(os.listdir(tmp_path)))[0]))
                os.kill(killed[-1], signal.SIGKILL)
    assert len(set(killed)) == 2
    assert started == [1, 2, 3, 4]
    assert len(found) == len(set(found)) == 120
    assert set(found) == expected_lines(made)


def test_what_kills_every_worker_ends_it_after_all_else_is_scored(tmp_path: Path) -> None:
    found: list[str] = []
    given = scores(Planted(folder=tmp_path, deadly=4), GROUPS, workers=2, tell=lambda _: None)
    with pytest.raises(
        LoclinError,
        match=r"found 5 dead one after the other \(the last one: killed.*fewer --workers",
    ):
        collect(given, found)
    assert set(found) == expected_lines([g for g in GROUPS if g is not GROUPS[1]])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("planted", "error", "text"),
    [
        ({"fails": 7}, LoclinError, "^expected a score, found none: try again$"),
        ({"builds": False}, LoclinError, "^expected a model, found none: give one$"),
        ({"breaks": 7}, (ZeroDivisionError, RuntimeError), "in a worker"),
    ],
)
def test_an_error_in_a_worker_ends_all(
    tmp_path: Path, workers: int, planted: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        list(
            scores(
                Planted(folder=tmp_path, **planted), GROUPS, workers=workers, tell=lambda _: None
            )
        )


def interrupted(
    given: Generator[list[Outcome], None, None], kept: list[int], after: Callable[[int], None]
) -> None:
    """As a search keeps them, with something happening in the middle."""
    with closing(given):
        for place, outcomes in enumerate(given):
            after(place)
            kept += [o.candidate.index for o in outcomes]


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_outcomes_are_kept_lets_them_be_kept_and_stops(
    tmp_path: Path, workers: int
) -> None:
    kept: list[int] = []
    given = scores(
        Planted(folder=tmp_path, seconds=0.05), groups(100), workers=workers, tell=lambda _: None
    )
    with pytest.raises(KeyboardInterrupt):
        interrupted(given, kept, lambda place: ctrl_c() if place == 2 else None)
    assert 9 <= len(kept) < 300
    assert len(kept) == len(set(kept))


def test_ctrl_c_while_workers_work_stops_them(tmp_path: Path) -> None:
    began = time.monotonic()
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        interrupted(
            scores(Planted(folder=tmp_path, seconds=600), GROUPS, workers=2), [], lambda _: None
        )
    assert time.monotonic() - began < 60


class FakeCrew:
    """Workers that die at random, in one process."""

    def __init__(self, draw: random.Random, deaths: float) -> None:
        self.draw, self.deaths, self.why = draw, deaths, "a throw of dice"
        self.work: dict[int, Group | None] = {}
        self.resting: set[int] = set()
        self.started = 0

    def start(self) -> int:
        self.started += 1
        self.work[self.started] = None
        return self.started

    def send(self, worker: int, group: Group) -> None:
        assert worker not in self.work  # it has replied
        if worker in self.resting:  # or it has died since: `wait` will say so
            self.resting.remove(worker)
            self.work[worker] = group

    def wait(self, seconds: float) -> list[tuple[int, Reply | None]]:
        found: list[tuple[int, Reply | None]] = []
        for worker in self.draw.sample(sorted(self.work), self.draw.randint(0, len(self.work))):
            group = self.work.pop(worker)
            if self.draw.random() < self.deaths:
                found.append((worker, None))
            else:
                found.append(
                    (worker, Reply(outcomes=None if group is None else [outcome(c) for c in group]))
                )
                self.resting.add(worker)
        busy = {worker for worker, _ in found}
        for worker in sorted(self.resting - busy):
            if self.draw.random() < self.deaths:  # with nothing to do
                self.resting.remove(worker)
                found.append((worker, None))
        return found

    def close(self) -> None:
        self.work, self.resting = {}, set()


@pytest.mark.parametrize("seed", range(30))
def test_whichever_workers_die_every_group_is_scored_once(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(executors, "DEATHS", 1000)
    crew = FakeCrew(random.Random(seed), deaths=0.3)
    made = groups(25)
    given = executors._dispatched(
        crew, made, 4, lambda *_: None, lambda _: None, executors.Interruption()
    )
    found = found_lines(given)
    assert len(found) == len(set(found))
    assert set(found) == expected_lines(made)
    assert crew.started > 4


def test_workers_that_never_come_alive_end_it() -> None:
    crew = FakeCrew(random.Random(0), deaths=1.0)
    with pytest.raises(LoclinError, match=r"found 7 dead one after the other .*a throw of dice"):
        list(
            executors._dispatched(
                crew, GROUPS, 4, lambda *_: None, lambda _: None, executors.Interruption()
            )
        )
