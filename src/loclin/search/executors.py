"""Groups of candidates scored in this process, in several, or on a Ray cluster: the same outcomes,
whoever scores them.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from loclin.errors import LoclinError
from loclin.jobs import Interruption, cores, interruptions
from loclin.search.candidate import Candidate
from loclin.search.scoring import Outcome

Group = Sequence[Candidate]
Progress = Callable[[str, float], None]
Tell = Callable[[str], None]
# of workers in a row, beyond one of each, with nothing scored in between, after which it is no
# accident
DEATHS = 3


@runtime_checkable
class Scorer(Protocol):
    """What a worker makes once and keeps: a model, and what it is asked."""

    @property
    def notes(self) -> Sequence[str]:
        """What it has to say so far, in sentences."""

    def score(self, group: Group) -> list[Outcome]:
        """The outcome of every candidate, which depends on the group alone."""


@runtime_checkable
class Search(Protocol):
    """What travels to a worker, once: `setup.Setup`."""

    @property
    def device(self) -> str:
        """Where candidates are scored: "cpu", "cuda", ..."""

    def build(self) -> Scorer:
        """Load and prepare, in whatever process."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reply:
    """What a worker sends back.

    Attributes:
        outcomes: of a group; None where it has only just made its scorer.
        notes: sentences that it has not sent before.
        error: why it could not do it; "" where it could.
        expected: whether the error is for users to read.
    """

    outcomes: list[Outcome] | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    expected: bool = True


class Station:
    """A worker's end in another process: whatever happens to it, it replies."""

    def __init__(self, search: Search) -> None:
        self._search, self._said = search, 0
        self._scorer: Scorer | None = None

    def here(self) -> None:
        """Answer: there is a place for this worker."""

    def build(self) -> Reply:
        """Make the scorer; on the CPU with one thread from here on."""
        if self._search.device == "cpu":
            torch.set_num_threads(1)
        return self._reply(self._build)

    def score(self, group: Group) -> Reply:
        """Score a group."""
        assert self._scorer is not None
        scorer = self._scorer
        return self._reply(lambda: scorer.score(group))

    def _build(self) -> None:
        self._scorer = self._search.build()

    def _reply(self, act: Callable[[], list[Outcome] | None]) -> Reply:
        try:
            outcomes = act()
        except LoclinError as error:
            return Reply(error=str(error))
        # whatever it is the parent has to hear of it: silence would be taken for a death, and tried
        # again
        except Exception:
            return Reply(error=traceback.format_exc(), expected=False)
        notes = tuple(self._scorer.notes) if self._scorer else ()
        fresh, self._said = notes[self._said :], len(notes)
        return Reply(outcomes=outcomes, notes=fresh)


@runtime_checkable
class Crew(Protocol):
    """Workers in other processes, here or elsewhere, each known by a number."""

    why: str
    """What is known of the last worker's death."""

    def start(self) -> int:
        """One more worker; its first reply says that it is ready."""

    def send(self, worker: int, group: Group) -> None:
        """Have a worker that is ready score a group."""

    def wait(self, seconds: float) -> list[tuple[int, Reply | None]]:
        """Replies that have come, after so many seconds at most; None from a worker that died."""

    def close(self) -> None:
        """End all workers."""


def scores(
    search: Search,
    groups: Sequence[Group],
    *,
    workers: int = 0,
    ray: str | None = None,
    progress: Progress = lambda text, share: None,
    tell: Tell = print,
) -> Generator[list[Outcome], None, None]:
    """Score every group; give each group's outcomes as they come.

    Groups end in any order, and their outcomes do not depend on who scores them, nor on how many
    do: on the CPU every worker uses one thread, in this process too. A worker that dies loses
    nothing: its group is scored again by another. A Ctrl-C is raised between groups, never while
    one is with the caller; close what is given, or one may come to nothing.

    Args:
        search: what to score with, such as a `Setup`.
        groups: candidates that are scored together.
        workers: how many. 1 scores in this process (one Ray worker with `ray`); 0 takes one for
            every core (every CPU or GPU of a Ray cluster), and this process alone on an
            accelerator.
        ray: "local", "auto" or the address of a Ray cluster.
        progress: called with what is being done and the share of groups done.
        tell: called with every different thing that a worker has to say.

    Raises:
        LoclinError: raised by a worker, workers that die one after the other, Ray that is missing
            or cannot be reached.
        KeyboardInterrupt: Ctrl-C.
    """
    if not groups:
        return
    said: set[str] = set()

    def tell_once(notes: Sequence[str]) -> None:
        for note in notes:
            if note not in said:
                tell(note)
            said.add(note)

    with interruptions() as interruption:
        if ray is None and (workers or _usual(search)) == 1:
            yield from _in_process(search, groups, progress, tell_once, interruption)
            return
        with _crew(search, ray, workers, len(groups), tell) as (crew, count), closing(crew):
            yield from _dispatched(crew, groups, count, progress, tell_once, interruption)


def _usual(search: Search) -> int:
    return cores() if search.device == "cpu" else 1


@contextmanager
def _crew(
    search: Search, ray: str | None, workers: int, groups: int, tell: Tell
) -> Iterator[tuple[Crew, int]]:
    """Workers to be, and how many to start."""
    if ray is None:
        from loclin.search.processes import Processes

        yield Processes(search), min(workers or _usual(search), groups)
        return
    from loclin.search.ray import Actors, connected

    with connected(ray, workers):
        actors = Actors(search, tell=tell)
        yield actors, min(workers or actors.room(), groups)


def _in_process(
    search: Search,
    groups: Sequence[Group],
    progress: Progress,
    tell: Callable[[Sequence[str]], None],
    interruption: Interruption,
) -> Iterator[list[Outcome]]:
    progress("loading the model", 0.0)
    with one_thread(search.device):
        scorer = search.build()
    for done, group in enumerate(groups, start=1):
        interruption.check()
        with one_thread(search.device):
            outcomes = scorer.score(group)
        tell(scorer.notes)
        yield outcomes
        progress("scoring candidates", done / len(groups))
    interruption.check()


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """One torch thread inside where the CPU computes, so that sums round alike whatever the cores;
    as many as before afterwards.
    """
    if device != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _dispatched(
    crew: Crew,
    groups: Sequence[Group],
    count: int,
    progress: Progress,
    tell: Callable[[Sequence[str]], None],
    interruption: Interruption,
) -> Iterator[list[Outcome]]:
    """Hand groups to workers that are ready; a dead worker's group goes to the end of the line, and
    a new worker takes its place.
    """
    line, idle = deque(groups), deque[int]()
    busy: dict[int, Group | None] = {crew.start(): None for _ in range(count)}
    done = deaths = 0
    progress("loading the model", 0.0)
    while done < len(groups):
        scored = []
        for worker, reply in crew.wait(0.2):
            if worker in idle:  # it died with nothing to do
                idle.remove(worker)
                busy |= {crew.start(): None} if line else {}
                continue
            group = busy.pop(worker)
            if reply is None:
                deaths += 1
                if deaths >= DEATHS + count:
                    raise _deaths(deaths, crew.why)
                line.extend([group] if group is not None else [])
                busy[crew.start()] = None
                continue
            _check(reply)
            idle.append(worker)
            tell(reply.notes)
            scored += [] if reply.outcomes is None else [reply.outcomes]
        while line and idle:
            worker = idle.popleft()
            busy[worker] = line.popleft()
            crew.send(worker, busy[worker] or ())
        for outcomes in scored:
            done, deaths = done + 1, 0
            yield outcomes
            progress("scoring candidates", done / len(groups))
        interruption.check()


def _check(reply: Reply) -> None:
    if reply.error and reply.expected:
        raise LoclinError(reply.error)
    if reply.error:
        raise RuntimeError(f"a worker failed:\n{reply.error}")


def _deaths(count: int, why: str) -> LoclinError:
    return LoclinError(
        f"expected workers to score candidates, found {count} dead one after the other (the last "
        f"one: {why}): run the same "
        "command again, with fewer --workers if memory was short; the candidates scored so far are "
        "kept"
    )
