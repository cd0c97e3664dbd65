"""A single process on its pipe: what it says, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loclin.run.local import LocalPool
from loclin.run.workers import Reply
from tests.run.planted import Planted, result_of


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[LocalPool]:
    made = LocalPool(Planted(folder=tmp_path))
    yield made
    made.close()


def replies(pool: LocalPool, count: int) -> list[tuple[int, Reply | None]]:
    every: list[tuple[int, Reply | None]] = []
    end = time.monotonic() + 60
    while len(every) < count and time.monotonic() < end:
        every += pool.wait(0.2)
    return every


def test_it_says_that_it_is_ready_then_how_far_it_is_then_the_result(pool: LocalPool) -> None:
    worker = pool.start()
    ((number, ready),) = replies(pool, 1)
    assert number == worker
    assert ready is not None
    assert (ready.result, ready.error) == (None, "")
    pool.send(worker, 5)
    working, done = (reply for _, reply in replies(pool, 2))
    assert working is not None
    assert working.progress == ("working", 0.0)
    assert done is not None
    assert done.result == result_of(5)


def test_one_that_dies_takes_no_other_along(pool: LocalPool, tmp_path: Path) -> None:
    first, second = pool.start(), pool.start()
    assert {worker for worker, _ in replies(pool, 2)} == {first, second}
    pid = pool._running[first][0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert replies(pool, 1) == [(first, None)]
    assert pool.why == "killed, out of memory?"
    pool.send(second, 6)
    assert any(r is not None and r.result == result_of(6) for _, r in replies(pool, 2))


def test_workers_of_a_parent_that_is_killed_end_themselves(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from loclin.run.local import LocalPool\n"
        "from tests.run.planted import Planted\n"
        "pool = LocalPool(Planted(folder=Path(sys.argv[1]), seconds=600))\n"
        "worker = pool.start()\n"
        "while not pool.wait(0.2): pass\n"
        "pool.send(worker, 1)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    path = os.pathsep.join([str(root / "src"), str(root)])
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"ready\n"
    (pid,) = map(int, os.listdir(tmp_path))
    parent.send_signal(signal.SIGKILL)
    parent.wait(20)
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
