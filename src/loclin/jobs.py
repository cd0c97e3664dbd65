"""Independent runs side by side: one process and one thread each, so that the record does not depend on their number."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from loclin.errors import LoclinError
from loclin.record import Part

_messages: Any = None  # the worker's end of the progress queue


def side_by_side(
    module: str, config: Any, runs: Sequence[int], *, workers: int, title: str
) -> Iterator[tuple[int, Part]]:
    """Call `module.run_one(config, run, progress)` for every run in worker processes; give each result as it ends.

    Args:
        module: where `run_one` is; named rather than passed, so that the parent need not import it.
        config: passed on.
        runs: run numbers.
        workers: processes at a time; 0 takes one per core.
        title: of the progress bar.

    Raises:
        LoclinError: raised by a run, or a worker that died. Workers are stopped; results given before stay given.
    """
    if not runs:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(workers or cores, len(runs))
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(messages,))
    try:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
        ) as bars:
            whole = bars.add_task(title, total=len(runs), stage=f"0 of {len(runs)} runs, {count} at a time")
            lines = {run: bars.add_task(f"  run {run}", total=1.0, stage="", visible=False) for run in runs}
            waiting: dict[Future[Part], int] = {executor.submit(_call, module, config, run): run for run in runs}
            while waiting:
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not messages.empty():
                    run, stage, share = messages.get()
                    bars.update(lines[run], visible=True, completed=share, stage=stage)
                for future in done:
                    run = waiting.pop(future)
                    yield run, _result(future, run)
                    bars.update(lines[run], visible=False)
                    bars.update(
                        whole, advance=1, stage=f"{len(runs) - len(waiting)} of {len(runs)} runs, {count} at a time"
                    )
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


def _result(future: Future[Part], run: int) -> Part:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise LoclinError(
            f"expected run {run} to end, found its process killed (out of memory?): "
            "run the same command again with fewer --workers; finished runs are kept"
        ) from error


def _start_worker(messages: Any) -> None:
    global _messages
    import torch

    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


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
