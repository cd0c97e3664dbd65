"""A worker's end in another process, without the process: whatever happens, it replies."""

from pathlib import Path

import pytest
import torch

from loclin.errors import LoclinError
from loclin.run.cluster import RayPool
from loclin.run.local import LocalPool
from loclin.run.runner import StudyJob, StudyWorker
from loclin.run.workers import Job, RemoteWorker, Worker, WorkerPool, cores, one_thread
from loclin.search.scorer import Scorer
from loclin.search.spec import SearchSpec
from tests.run.planted import Planted, result_of


def test_it_sends_its_result_and_every_note_once(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    worker = RemoteWorker(Planted(folder=tmp_path))
    try:
        ready = worker.build()
    finally:
        torch.set_num_threads(before)
    assert (ready.result, ready.error, ready.notes) == (None, "", ())
    first, second = worker.do(3), worker.do(4)
    assert (first.result, second.result) == (result_of(3), result_of(4))
    assert first.notes == ("did 3", "the same of all")
    assert second.notes == ("did 4", "the same of all")


def test_it_sends_what_went_wrong(tmp_path: Path) -> None:
    worker = RemoteWorker(Planted(folder=tmp_path, device="cuda", fails=1, breaks=2))
    worker.build()
    for_users, for_us = worker.do(1), worker.do(2)
    assert (for_users.error, for_users.expected) == (
        "expected a score, found none: try again",
        True,
    )
    assert "ZeroDivisionError: in a worker" in for_us.error
    assert not for_us.expected
    assert worker.do(3).result == result_of(3)  # it goes on
    refused = RemoteWorker(Planted(folder=tmp_path, device="cuda", builds=False)).build()
    assert refused.error == "expected a model, found none: give one"


def failing_with_one_thread() -> None:
    with one_thread("cpu"):
        assert torch.get_num_threads() == 1
        raise LoclinError("expected this")


def test_one_thread_is_given_back_whatever_happens() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(LoclinError, match="expected this"):
            failing_with_one_thread()
        assert torch.get_num_threads() == 2
        with one_thread("cuda"):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert cores() >= 1


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        (LocalPool, WorkerPool),
        (RayPool, WorkerPool),
        (StudyJob, Job),
        (StudyWorker, Worker),
        (SearchSpec, Job),
        (Scorer, Job),
        (Scorer, Worker),
    ],
)
def test_everything_that_works_keeps_the_protocol(kind: type, protocol: type) -> None:
    """Methods alone: attributes are there only when it is made."""
    methods = {n for n in vars(protocol) if not n.startswith("_") and callable(vars(protocol)[n])}
    assert methods
    assert methods <= set(dir(kind))
