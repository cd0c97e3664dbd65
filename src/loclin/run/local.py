"""Workers as processes of this machine, each on its own pipe: one that is killed takes no other
along.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from loclin.run.interrupt import held_back
from loclin.run.workers import Job, RemoteWorker, Reply

#: Workers start from a process that has imported the libraries once, where that is safe; elsewhere
#: each imports them itself.
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
OFTEN = 0.2  # seconds between two messages of progress


class LocalPool:
    """Local processes (`workers.WorkerPool`), each of which builds the job.

    Attributes:
        why: how the last process that died ended.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._started, self.why = job, 0, ""
        self._context: Any = multiprocessing.get_context(_METHOD)
        if _METHOD == "forkserver":
            self._context.set_forkserver_preload(["peft", "loclin.models"])
        self._running: dict[int, tuple[BaseProcess, Connection]] = {}

    def start(self) -> int:
        """One more process."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._job), daemon=True)
        with held_back():
            process.start()
        theirs.close()  # with the worker's end closed here, the worker's death closes the pipe
        self._started += 1
        self._running[self._started] = process, ours
        return self._started

    def send(self, worker: int, item: object) -> None:
        """Have a process do an item."""
        with suppress(OSError):  # it has died: `wait` will find that out
            self._running[worker][1].send(item)

    def wait(self, seconds: float) -> list[tuple[int, Reply | None]]:
        """Replies that have come, None from a process that died."""
        by_pipe: dict[Any, int] = {pipe: worker for worker, (_, pipe) in self._running.items()}
        replies: list[tuple[int, Reply | None]] = []
        ready: list[Any] = wait(list(by_pipe), seconds)
        for pipe in ready:
            worker = by_pipe[pipe]
            try:
                replies.append((worker, pipe.recv()))
            except (EOFError, OSError):  # closed, or in the middle of a message
                replies.append((worker, None))
                code = self._end(worker)
                self.why = "killed, out of memory?" if code == -9 else f"exit code {code}"
        return replies

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


def _work(pipe: Connection, job: Job) -> None:
    """A worker's whole life. Ctrl-C is the parent's to handle; it ends when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be held back
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker, last = RemoteWorker(job), 0.0

    def progress(stage: str, share: float) -> None:
        nonlocal last
        if share in (0.0, 1.0) or time.monotonic() - last > OFTEN:
            last = time.monotonic()
            pipe.send(Reply(progress=(stage, share)))

    with suppress(EOFError, OSError):  # the parent has closed its end
        pipe.send(worker.build())
        while True:
            pipe.send(worker.do(pipe.recv(), progress))


def _end_with_parent() -> None:
    """A parent that is killed outright cannot stop its workers: they stop themselves."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
