"""Independent runs side by side: one process and one thread each, so that the record does not
depend on their number.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from loclin.errors import LoclinError
from loclin.record import Part

#: Workers start from a process that has imported the libraries once, where that is safe; elsewhere
#: each imports them itself.
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
_messages: Any = None  # the worker's end of the progress queue


class Interruption:
    """A Ctrl-C: noted when it comes, raised where `check` is called."""

    noted = False

    def check(self) -> None:
        """Stop here if a Ctrl-C came.

        Raises:
            KeyboardInterrupt: it did.
        """
        if self.noted:
            self.noted = False
            raise KeyboardInterrupt


@contextmanager
def interruptions() -> Iterator[Interruption]:
    """Note a first Ctrl-C meanwhile, for `check` to raise; one that was not checked for comes at
    the end, a second one at once.

    Raised wherever it arrives, it would cut a write in two, or be lost in a finaliser or a
    callback, whose exceptions go nowhere.
    """
    interruption, before = Interruption(), signal.getsignal(signal.SIGINT)
    # Only the main thread may set handlers. Where Ctrl-C is ignored, as in what a script starts in
    # the background, it stays so.
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield interruption
        return

    def note(*_: Any) -> None:
        interruption.noted = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
        if interruption.noted:
            signal.raise_signal(signal.SIGINT)


def side_by_side(
    module: str,
    config: Any,
    runs: Sequence[int],
    *,
    workers: int,
    title: str,
    finished: int = 0,
    told: Iterable[str] = (),
) -> Generator[tuple[int, Part], None, None]:
    """Call `module.run_one(config, run, progress)` for every run in worker processes; give each
    result as it ends.

    A Ctrl-C is raised between results, never while one is with the caller; close what is given, or
    one may come to nothing.

    Args:
        module: where `run_one` is; named rather than passed, so that the parent need not import it.
        config: passed on.
        runs: run numbers.
        workers: processes at a time; 0 takes one per core.
        title: of the progress bar.
        finished: runs done in an earlier session, counted in the bar.
        told: notes that the user has seen; each other one is printed once, after the first result
            that has it.

    Raises:
        LoclinError: raised by a run, or a worker that died. Workers are stopped; results given
            before stay given.
        KeyboardInterrupt: Ctrl-C; likewise.
    """
    if not runs:
        return
    with interruptions() as interruption:
        count = min(workers or cores(), len(runs))
        yield from _results(module, config, runs, count, title, finished, set(told), interruption)


def _results(
    module: str,
    config: Any,
    runs: Sequence[int],
    count: int,
    title: str,
    finished: int,
    told: set[str],
    interruption: Interruption,
) -> Iterator[tuple[int, Part]]:
    context = worker_context()
    messages = context.Queue()
    executor = ProcessPoolExecutor(
        count, mp_context=context, initializer=_start_worker, initargs=(messages,)
    )
    try:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
        ) as bars:
            every = len(runs) + finished
            whole = bars.add_task(
                title, total=every, completed=finished, stage=_so_far(finished, every, count)
            )
            lines = {
                run: bars.add_task(f"  run {run}", total=1.0, stage="", visible=False, start=False)
                for run in runs
            }
            shown: dict[int, str] = {}
            with held_back():
                waiting: dict[Future[Part], int] = {
                    executor.submit(_call, module, config, run): run for run in runs
                }
            while waiting:
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not messages.empty():
                    run, stage, share = messages.get()
                    if shown.get(run) != stage:
                        bars.reset(lines[run], total=1.0)  # the clock is that of the stage
                        if not bars.console.is_terminal:  # in a file bars are drawn only at the end
                            print(f"run {run}: {stage}", flush=True)
                    shown[run] = stage
                    bars.update(lines[run], visible=True, completed=share, stage=stage)
                for future in done:
                    run = waiting.pop(future)
                    part = _result(future, run)
                    yield run, part
                    _tell(bars.console, part.notes, told)
                    bars.update(lines[run], visible=False)
                    bars.update(whole, advance=1, stage=_so_far(every - len(waiting), every, count))
                interruption.check()
    finally:
        with held_back():
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()


def _so_far(ended: int, every: int, count: int) -> str:
    return f"{ended} of {every} runs, {count} at a time"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_context() -> Any:
    """How worker processes are started; start them inside `held_back`, and call `begin_worker`
    first thing in each.
    """
    context = multiprocessing.get_context(_METHOD)
    if _METHOD == "forkserver":
        context.set_forkserver_preload(["peft", "loclin.models"])
    return context


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C waits meanwhile, and never reaches processes started meanwhile: it is the parent's to
    handle.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell(console: Console, notes: Sequence[str], told: set[str]) -> None:
    """Above the bars, and whole: a plain print gets between them."""
    for note in dict.fromkeys(notes):
        if note not in told:
            console.print(Text(note), soft_wrap=True)
    told.update(notes)


def _result(future: Future[Part], run: int) -> Part:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise LoclinError(
            f"expected run {run} to end, found its process killed (out of memory?): "
            "run the same command again with fewer --workers; finished runs are kept"
        ) from error


def begin_worker() -> None:
    """What every worker process begins with: Ctrl-C is the parent's to handle, one thread, an end
    when the parent ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be held back
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _start_worker(messages: Any) -> None:
    global _messages
    begin_worker()
    _messages = messages


def _end_with_parent() -> None:
    """A parent that is killed outright cannot stop its workers: they stop themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(module: str, config: Any, run: int) -> Part:
    last = 0.0

    def progress(stage: str, share: float) -> None:
        nonlocal last
        if share in (0.0, 1.0) or time.monotonic() - last > 0.2:
            last = time.monotonic()
            _messages.put((run, stage, share))

    part: Part = import_module(module).run_one(config, run, progress)
    return part
