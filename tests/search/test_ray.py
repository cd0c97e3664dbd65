"""A real Ray with two workers, started once; a worker is killed in the middle."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.search import executors
from loclin.search import ray as module
from loclin.search.candidate import candidates
from loclin.search.executors import scores
from loclin.search.ledger import Ledger, line
from loclin.search.ray import Actors, connected
from loclin.search.setup import Setup
from tests.search.planted import Planted, collect, expected_lines, groups, lines

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected("local", 2):
        yield


def test_a_ray_of_its_own_ends_with_the_search(tmp_path: Path) -> None:
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    found = [line(o).strip() for outcomes in scores(
        Planted(folder=tmp_path), groups(6), workers=2, ray="local", tell=lambda _: None
    ) for o in outcomes]  # fmt: skip
    assert not ray.is_initialized()
    assert os.environ.get("RAY_USAGE_STATS_ENABLED") == before
    assert len(found) == len(set(found))
    assert set(found) == expected_lines(groups(6))
    assert {p.read_text() for p in tmp_path.iterdir()} == {"1"}  # one thread each
    assert str(os.getpid()) not in os.listdir(tmp_path)


def test_a_worker_that_is_killed_loses_nothing(
    cluster: None, trained: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger of a real model, in process and on Ray with a worker killed in the middle: the
    same lines.
    """
    started: list[int] = []
    start = Actors.start
    monkeypatch.setattr(Actors, "start", lambda self: (started.append(1), start(self))[1])
    examples = tuple(e for task in trained.tasks for e in trained.examples["recovery"][task][:8])
    setup = Setup(model="sequences-small", examples=examples)
    made = candidates(60, [0.02], seed=0)
    some = [made[start : start + 2] for start in range(0, 60, 2)]
    settings = {**setup.fingerprint(), "n": 60, "sigma": [0.02], "seed": 0}
    for name, where in (("here", None), ("ray", "local")):
        with Ledger.open(tmp_path / name, settings) as ledger:
            with closing(scores(setup, some, workers=2 if where else 1, ray=where)) as given:
                for place, outcomes in enumerate(given):
                    ledger.append(outcomes)
                    if where and place == 3:
                        kill_one_worker()
            assert ledger.finished(60)
    assert len(started) == 3
    assert ray.is_initialized()  # it was there before
    assert lines(tmp_path / "here") == lines(tmp_path / "ray")


def kill_one_worker() -> None:
    """SIGKILL for a process of Ray's that serves as one of ours."""
    import psutil

    ours = [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if "ray::Station" in " ".join(p.info["cmdline"] or ())
    ]
    mine = {p.pid for p in psutil.Process().children(recursive=True)}
    pid = min(set(ours) & mine)
    os.kill(pid, signal.SIGKILL)


def test_what_kills_every_worker_ends_it_after_all_else_is_scored(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "DEATHS", 1)
    found: list[str] = []
    given = scores(
        Planted(folder=tmp_path, deadly=4), groups(4), workers=1, ray="local", tell=lambda _: None
    )
    with pytest.raises(
        LoclinError, match=r"found 2 dead one after the other \(the last one: .*actor"
    ):
        collect(given, found)
    assert set(found) == expected_lines([g for g in groups(4) if g[0].index != 3])


def test_an_error_in_a_worker_is_one_line(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(LoclinError, match=r"^expected a score, found none: try again$"):
        list(
            scores(
                Planted(folder=tmp_path, fails=4),
                groups(4),
                workers=1,
                ray="local",
                tell=lambda _: None,
            )
        )


def test_a_cluster_without_room_is_said_then_an_error(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    monkeypatch.setattr(module, "PLACED_WITHIN", 1.5)
    told: list[str] = []
    with pytest.raises(
        LoclinError, match="expected Ray to place a worker on 1 GPU within 2 seconds, found no room"
    ):
        list(
            scores(
                Planted(folder=tmp_path, device="cuda"), groups(4), ray="local", tell=told.append
            )
        )
    assert told == [
        "waiting for Ray to place a worker on 1 GPU: 2 CPU and 0 GPU in the cluster, or others "
        "hold them"
    ]


def test_the_exception_behind_a_death_is_told() -> None:
    text = "The actor died because of an error, \x1b[36mray::A()\x1b[39m\n  File ...\n\nModuleNotFoundError: No module named 'loclin'"
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
        list(scores(Planted(folder=tmp_path), groups(2), ray="local"))


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
        list(scores(Planted(folder=tmp_path), groups(2), ray=address))


def test_where_nothing_listens_there_is_no_cluster(not_started: None, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # no one else takes it, and no one listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            LoclinError, match=f"^expected a Ray cluster for --ray {address}, found none .*refused"
        ):
            list(scores(Planted(folder=tmp_path), groups(2), ray=address))
    with pytest.raises(
        LoclinError, match=r"^expected a Ray cluster for --ray 127\.0\.0\.1:99999, found none"
    ):
        list(scores(Planted(folder=tmp_path), groups(2), ray="127.0.0.1:99999"))


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
            list(scores(Planted(folder=tmp_path), groups(2), ray=address))
        assert time.monotonic() - began < 30
