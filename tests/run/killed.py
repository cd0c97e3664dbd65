"""A run that is killed at random moments (SIGKILL) until it ends. Each attempt is a process of its
own, which keeps every piece of its work at once.
"""

import multiprocessing
import os
import random
import signal
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from loclin.run import pieces as module
from loclin.run.pieces import Pieces
from loclin.run.record import Record
from loclin.run.rows import Part
from loclin.run.runner import Session

ENTRY, RUN = "study", "run-000"


def attempt(folder: Path, measure: str, settings: Any, threads: int) -> None:
    torch.set_num_threads(threads)  # as many as in the process that it is held against
    module.EVERY = 0.0
    record = Record(folder)
    pieces = Pieces(record, ENTRY, RUN)
    session = Session(pieces=pieces, kept=pieces.arrays, record=record)
    record.write_part(ENTRY, RUN, import_module(measure).measure(settings, 0, session))


def kept(folder: Path) -> set[Path]:
    return set((folder / ENTRY / "parts" / RUN).glob("*.json"))


def measured_through_kills(
    folder: Path, measure: str, settings: Any, *, kills: int = 5, seed: int = 0
) -> tuple[Part, list[int]]:
    """What the run gives in the end, and how many pieces were kept at every kill."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["peft", "loclin.models"])
    rng, counts = random.Random(seed), list[int]()
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    while True:
        before = kept(folder)
        process = context.Process(
            target=attempt, args=(folder, measure, settings, torch.get_num_threads())
        )
        process.start()
        while process.is_alive() and not (len(counts) < kills and kept(folder) - before):
            time.sleep(0.005)
        # the first at once: a small run may end within a tenth of a second
        process.join(rng.uniform(0.0, 0.2) if counts else 0.0)
        if process.is_alive() and not (folder / ENTRY / "parts" / f"{RUN}.json").exists():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            counts.append(len(kept(folder)))
            continue
        process.join()
        assert process.exitcode == 0
        part = Record(folder).part(ENTRY, RUN)
        assert part is not None
        return part, counts


def assert_same(one: Part, other: Part) -> None:
    """The same rows, and the same arrays bit for bit."""
    assert list(one.rows) == list(other.rows)
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.tobytes() == other.arrays[name].tobytes()
