"""The protocol of workers: what travels to one, what it does, what it sends back. Local processes
and Ray stand behind it, for runs of a study and candidates of a search alike.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from loclin.errors import LoclinError, disk_error
from loclin.progress import ProgressCallback, silent

Note = Callable[[str], None]


@runtime_checkable
class Worker(Protocol):
    """What a process makes once and keeps, a model for example."""

    @property
    def notes(self) -> Sequence[str]:
        """What it has to say so far, in sentences."""

    def do(self, item: Any, progress: ProgressCallback) -> Any:
        """The result of one item, which depends on the item alone."""


@runtime_checkable
class Job(Protocol):
    """What travels to every worker, once."""

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda", ..."""

    def build(self) -> Worker:
        """Load and prepare, in whatever process."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reply:
    """What a worker sends back.

    Attributes:
        result: of an item; None where it has only made itself ready.
        progress: set while the item is still worked at.
        notes: sentences that it has not sent before.
        error: why it could not do it; "" where it could.
        expected: whether the error is for users to read.
    """

    result: Any = None
    progress: tuple[str, float] | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    expected: bool = True


class RemoteWorker:
    """A worker's end in another process: whatever happens to it, it replies."""

    def __init__(self, job: Job) -> None:
        self._job, self._sent = job, 0
        self._worker: Worker | None = None

    def here(self) -> None:
        """Answer: there is a place for this worker."""

    def build(self) -> Reply:
        """Make the worker; on the CPU with one thread from here on."""
        if self._job.device == "cpu":
            import torch

            torch.set_num_threads(1)

        def build() -> None:
            self._worker = self._job.build()

        return self._reply(build)

    def do(self, item: Any, progress: ProgressCallback = silent) -> Reply:
        """Do one item."""
        assert self._worker is not None
        worker = self._worker
        return self._reply(lambda: worker.do(item, progress))

    def _reply(self, act: Callable[[], Any]) -> Reply:
        try:
            result = act()
        except LoclinError as error:
            return Reply(error=str(error))
        except OSError as error:
            return Reply(error=str(disk_error(error)))
        except Exception:  # silence would be taken for a death, and tried again
            return Reply(error=traceback.format_exc(), expected=False)
        notes = tuple(self._worker.notes) if self._worker else ()
        fresh, self._sent = notes[self._sent :], len(notes)
        return Reply(result=result, notes=fresh)


@runtime_checkable
class WorkerPool(Protocol):
    """Workers in other processes, here or elsewhere, each known by a number."""

    why: str
    """What is known of the last worker's death."""

    def start(self) -> int:
        """One more worker; its first reply says that it is ready."""

    def send(self, worker: int, item: Any) -> None:
        """Have a worker that is ready do an item."""

    def wait(self, seconds: float) -> list[tuple[int, Reply | None]]:
        """Replies that came within so many seconds; None from a worker that died."""

    def close(self) -> None:
        """End all workers."""


def cores() -> int:
    """Cores that this process may use."""
    every = os.cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """One torch thread inside where the CPU computes, as many as before afterwards."""
    if device != "cpu":
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
