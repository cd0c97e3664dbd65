"""A real Ray with two workers, started once; a worker is killed in the middle."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.options import LoadOptions
from loclin.run import cluster as module
from loclin.run.cluster import RayPool, connected
from loclin.run.dispatch import Place, results
from loclin.run.rows import Part, Row
from loclin.run.runner import Session, StudyJob
from loclin.search.random_search import random_search
from loclin.search.spec import SearchSpec
from tests.run.planted import Planted, result_of

LOCAL = Place(workers=2, ray="local")
ITEMS = [0, 10, 20, 30, 40, 50]
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected("local", 2):
        yield


def test_a_ray_of_its_own_ends_with_the_work(tmp_path: Path) -> None:
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    done = list(results(Planted(folder=tmp_path), ITEMS, LOCAL))
    assert not ray.is_initialized()
    assert os.environ.get("RAY_USAGE_STATS_ENABLED") == before
    assert sorted(done) == [(number, result_of(item)) for number, item in enumerate(ITEMS)]
    assert {p.read_text() for p in tmp_path.iterdir()} == {"1"}  # one thread each
    assert str(os.getpid()) not in os.listdir(tmp_path)


def test_a_search_on_ray_with_a_worker_killed_has_the_ledger_of_one_process(
    cluster: None, trained: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start = RayPool.start
    monkeypatch.setattr(RayPool, "start", lambda self: (started.append(1), start(self))[1])
    examples = tuple(e for task in trained.tasks for e in trained.examples["recovery"][task][:8])
    spec = SearchSpec(options=LoadOptions(model="sequences-small"), examples=examples)
    scorer, shares = spec.build(), list[float]()

    def progress(stage: str, share: float) -> None:
        shares.append(share)
        if stage == "scoring candidates" and len(shares) == 4:
            kill_one_worker()

    wanted: dict[str, Any] = {"n": 60, "sigmas": [0.02], "seed": 0, "group": 2}
    for name, place in (("here", Place(workers=1)), ("ray", LOCAL)):
        more = {"progress": progress} if name == "ray" else {}
        random_search(scorer, **wanted, spec=spec, place=place, ledger=tmp_path / name, **more)
    assert len(started) == 3
    assert ray.is_initialized()  # it was there before
    here, on_ray = (sorted((tmp_path / n).read_text().splitlines()) for n in ("here", "ray"))
    assert here == on_ray
    assert len(here) == 61


def kill_one_worker() -> None:
    """SIGKILL for a process of Ray's that serves as one of ours."""
    import psutil

    ours = [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if "ray::RemoteWorker" in " ".join(p.info["cmdline"] or ())
    ]
    mine = {p.pid for p in psutil.Process().children(recursive=True)}
    pid = min(set(ours) & mine)
    os.kill(pid, signal.SIGKILL)


def test_what_kills_every_worker_ends_it_after_all_else_is_done(
    cluster: None, tmp_path: Path
) -> None:
    done: list[int] = []
    place = Place(workers=1, ray="local", retries=1)

    def collect() -> None:
        for number, _ in results(Planted(folder=tmp_path, deadly=10), ITEMS, place):
            done.append(number)

    text = r"found 2 dead one after the other \(the last one: .*actor"
    with pytest.raises(LoclinError, match=text):
        collect()
    assert sorted(done) == [0, 2, 3, 4, 5]


def test_an_error_in_a_worker_is_one_line(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(LoclinError, match=r"^expected a score, found none: try again$"):
        list(results(Planted(folder=tmp_path, fails=10), ITEMS, Place(workers=1, ray="local")))


def measure(settings: int, run: int, session: Session) -> Part:
    """A study of this module, found by name in a worker."""
    session.progress("measuring", 0.5)
    return Part(rows=[Row(quantity="square", value=float(run**settings))], arrays={})


def test_runs_of_a_study_go_to_ray(cluster: None) -> None:
    job = StudyJob(measure=__name__, settings=2, device="cpu")
    place = Place(workers=2, ray="local", alone=False, retries=0)
    with closing(results(job, [3, 4, 5], place)) as parts:
        values = {number: part.rows[0].value for number, part in parts}
    assert values == {0: 9.0, 1: 16.0, 2: 25.0}


def test_a_cluster_without_room_is_said_then_an_error(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    monkeypatch.setattr(module, "PLACED_WITHIN", 1.5)
    notes: list[str] = []
    text = "expected Ray to place a worker on 1 GPU within 2 seconds, found no room"
    job = Planted(folder=tmp_path, device="cuda")
    with pytest.raises(LoclinError, match=text):
        list(results(job, ITEMS, Place(ray="local"), note=notes.append))
    assert notes == [
        "waiting for Ray to place a worker on 1 GPU: 2 CPU and 0 GPU in the cluster, or others "
        "hold them"
    ]


def test_the_exception_behind_a_death_is_named() -> None:
    text = (
        "The actor died because of an error, \x1b[36mray::A()\x1b[39m\n  File ...\n\n"
        "ModuleNotFoundError: No module named 'loclin'"
    )
    assert module._short(text) == (
        "The actor died because of an error, ray::A() ... ModuleNotFoundError: No module named "
        "'loclin'"
    )
    assert module._short("one line") == "one line"


def test_a_cluster_that_answers_is_reached(cluster: None) -> None:
    module._check_reachable(ray.get_runtime_context().gcs_address)


def test_ray_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        LoclinError, match=r"^expected Ray for --ray, .* run pip install 'loclin\[ray\]'$"
    ):
        list(results(Planted(folder=tmp_path), ITEMS, Place(ray="local")))


@pytest.fixture
def not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that has no Ray yet."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize(
    "address", ["ray://here:10001", "here", "here:", "http://here:80", "", "local "]
)
def test_an_address_that_is_none_is_named(not_started: None, tmp_path: Path, address: str) -> None:
    with pytest.raises(
        LoclinError, match=f"^expected local, auto or HOST:PORT, found --ray {address}: "
    ):
        list(results(Planted(folder=tmp_path), ITEMS, Place(ray=address)))


def test_where_nothing_listens_there_is_no_cluster(not_started: None, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # no one else takes it, and no one listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            LoclinError, match=f"^expected a Ray cluster for --ray {address}, found none .*refused"
        ):
            list(results(Planted(folder=tmp_path), ITEMS, Place(ray=address)))
    with pytest.raises(
        LoclinError, match=r"^expected a Ray cluster for --ray 127\.0\.0\.1:99999, found none"
    ):
        list(results(Planted(folder=tmp_path), ITEMS, Place(ray="127.0.0.1:99999")))


def test_where_something_else_listens_it_is_given_up(
    not_started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_WITHIN", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(
            LoclinError, match=f"--ray {address}, found none .no answer within 3 seconds"
        ):
            list(results(Planted(folder=tmp_path), ITEMS, Place(ray=address)))
        assert time.monotonic() - began < 30
