"""Work done in this process, in several, or on a Ray cluster: the same results everywhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from loclin.errors import LoclinError
from loclin.run.cluster import RayPool, connected
from loclin.run.interrupt import Interruption, interruptions
from loclin.run.local import LocalPool
from loclin.run.workers import Job, Note, Reply, WorkerPool, cores, one_thread

DEATHS = 3  # workers that may die in a row, beyond one of each, with nothing done in between
LOADING = -1  # the number of no item: a worker makes itself ready
#: Called with the number of an item (or LOADING), what is being done and the share of it.
ItemProgress = Callable[[int, str, float], None]
Notes = Callable[[Sequence[str]], None]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where work is done.

    Attributes:
        workers: how many at a time; 0 takes one for every core, or every CPU or GPU of a cluster.
        ray: "local", "auto" or the address of a Ray cluster; None for this machine.
        alone: whether a single worker without Ray is this very process.
        retries: deaths of workers in a row, beyond one of each, that are taken for accidents.
    """

    workers: int = 0
    ray: str | None = None
    alone: bool = True
    retries: int = DEATHS

    def count(self, device: str) -> int:
        """Workers on this machine; an accelerator has one unless more are asked for."""
        return self.workers or (cores() if device == "cpu" else 1)

    def is_this_process(self, device: str) -> bool:
        """Whether work for a device is done here."""
        return self.alone and self.ray is None and self.count(device) == 1


def results(
    job: Job,
    items: Sequence[Any],
    place: Place | None = None,
    *,
    progress: ItemProgress = lambda item, stage, share: None,
    note: Note = lambda sentence: None,
) -> Generator[tuple[int, Any], None, None]:
    """Do every item; give each one's number and result as they come, in any order.

    On the CPU every worker uses one thread, in this process too, so that sums round alike. A worker
    that dies loses nothing: another one does its item. A Ctrl-C is raised between results, never
    while one is with the caller; close the generator, or one may come to nothing.

    Raises:
        LoclinError: raised by a worker, workers that die one after the other, Ray that is missing
            or cannot be reached.
        KeyboardInterrupt: Ctrl-C.
    """
    if not items:
        return
    place, printed = place or Place(), set[str]()

    def note_once(notes: Sequence[str]) -> None:
        for sentence in notes:
            if sentence not in printed:
                note(sentence)
            printed.add(sentence)

    with interruptions() as interruption:
        if place.is_this_process(job.device):
            yield from _in_process(job, items, progress, note_once, interruption)
            return
        with _pool(job, place, len(items), note) as (pool, count), closing(pool):
            work = _Dispatch(pool, items, count, place.retries)
            yield from work.run(progress, note_once, interruption)


@contextmanager
def _pool(job: Job, place: Place, items: int, note: Note) -> Iterator[tuple[WorkerPool, int]]:
    """Workers to be, and how many to start."""
    if place.ray is None:
        yield LocalPool(job), min(place.count(job.device), items)
        return
    with connected(place.ray, place.workers):
        actors = RayPool(job, note=note)
        yield actors, min(place.workers or actors.room(), items)


def _in_process(
    job: Job, items: Sequence[Any], progress: ItemProgress, note: Notes, interruption: Interruption
) -> Iterator[tuple[int, Any]]:
    progress(LOADING, "loading the model", 0.0)
    with one_thread(job.device):
        worker = job.build()
    for number, item in enumerate(items):
        interruption.check()
        with one_thread(job.device):
            result = worker.do(item, partial(progress, number))
        note(worker.notes)
        yield number, result
    interruption.check()


class _Dispatch:
    """Hands items to workers that are ready; a dead worker's item goes to the end of the line."""

    def __init__(self, pool: WorkerPool, items: Sequence[Any], count: int, retries: int) -> None:
        self._pool, self._items, self._most = pool, items, retries + count
        self._line, self._idle = deque(range(len(items))), deque[int]()
        self._busy = {pool.start(): LOADING for _ in range(count)}
        self._deaths = 0

    def run(
        self, progress: ItemProgress, note: Notes, interruption: Interruption
    ) -> Iterator[tuple[int, Any]]:
        done = 0
        progress(LOADING, "loading the model", 0.0)
        while done < len(self._items):
            replies, ready = self._pool.wait(0.2), []
            for worker, reply in replies:
                if reply is None or reply.error:
                    continue
                if reply.progress is not None:
                    progress(self._busy[worker], *reply.progress)
                    continue
                number = self._busy.pop(worker)
                self._idle.append(worker)
                note(reply.notes)
                if number != LOADING:
                    ready.append((number, reply.result))
            self._deaths = 0 if ready else self._deaths
            failure = self._failure(replies)
            self._hand_out()
            done += len(ready)
            yield from ready
            if failure is not None:  # after what was finished is with the caller
                raise failure
            interruption.check()

    def _failure(self, replies: Sequence[tuple[int, Reply | None]]) -> Exception | None:
        """What ends all, if anything does; other workers take the places of those that died."""
        for worker, reply in replies:
            if reply is not None and reply.error:
                text = f"a worker failed:\n{reply.error}"
                return LoclinError(reply.error) if reply.expected else RuntimeError(text)
            if reply is None and (failure := self._replace(worker)) is not None:
                return failure
        return None

    def _hand_out(self) -> None:
        while self._line and self._idle:
            worker = self._idle.popleft()
            self._busy[worker] = self._line.popleft()
            self._pool.send(worker, self._items[self._busy[worker]])

    def _replace(self, worker: int) -> LoclinError | None:
        """Another worker for one that died with an item, while loading, or with nothing to do;
        unless too many have.
        """
        if worker in self._idle:
            self._idle.remove(worker)
        else:
            number = self._busy.pop(worker)
            self._deaths += 1
            if self._deaths >= self._most:
                return LoclinError(
                    f"expected workers that live, found {self._deaths} dead one after the other "
                    f"(the last one: {self._pool.why}): run the same command again, with fewer "
                    "--workers if memory was short; what was finished is kept"
                )
            self._line.extend([] if number == LOADING else [number])
        if self._line:
            self._busy[self._pool.start()] = LOADING
        return None
