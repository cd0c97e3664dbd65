"""Workers as processes of this machine, each on its own pipe, so that one that is killed takes no
other along.
"""

from __future__ import annotations

from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from loclin.jobs import begin_worker, held_back, worker_context
from loclin.search.executors import Group, Reply, Search, Station


class Processes:
    """A crew of local processes (`executors.Crew`).

    Args:
        search: what each of them builds.

    Attributes:
        why: how the last process that died ended.
    """

    def __init__(self, search: Search) -> None:
        self._search, self._context, self._started = search, worker_context(), 0
        self.why = ""
        self._running: dict[int, tuple[BaseProcess, Connection]] = {}

    def start(self) -> int:
        """One more process."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._search), daemon=True)
        with held_back():
            process.start()
        theirs.close()  # with the worker's end closed here, the worker's death closes the pipe
        self._started += 1
        self._running[self._started] = process, ours
        return self._started

    def send(self, worker: int, group: Group) -> None:
        """Have a process score a group."""
        with suppress(OSError):  # it has died: `wait` will find that out
            self._running[worker][1].send(group)

    def wait(self, seconds: float) -> list[tuple[int, Reply | None]]:
        """Replies that have come, None from a process that died."""
        by_pipe = {pipe: worker for worker, (_, pipe) in self._running.items()}
        found = [
            (by_pipe[pipe], _received(pipe))
            for pipe in wait(list(by_pipe), seconds)
            if isinstance(pipe, Connection)
        ]
        for worker, reply in found:
            if reply is None:
                code = self._end(worker)
                self.why = "killed, out of memory?" if code == -9 else f"exit code {code}"
        return found

    def close(self) -> None:
        """End all processes."""
        with held_back():
            for process, _ in self._running.values():
                process.terminate()
            for worker in list(self._running):
                self._end(worker)

    def _end(self, worker: int) -> int | None:
        process, pipe = self._running.pop(worker)
        pipe.close()
        process.join(5)
        code = process.exitcode
        process.kill()
        return code


def _received(pipe: Connection) -> Reply | None:
    try:
        reply: Reply = pipe.recv()
    except (EOFError, OSError):  # closed, or in the middle of a message
        return None
    return reply


def _work(pipe: Connection, search: Search) -> None:
    """A worker's whole life."""
    begin_worker()
    station = Station(search)
    try:
        pipe.send(station.build())
        while True:
            pipe.send(station.score(pipe.recv()))
    except (EOFError, OSError):  # the parent has closed its end
        return
