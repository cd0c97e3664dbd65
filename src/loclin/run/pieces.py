"""Pieces of a run that has not ended, kept about twice a minute: a run that is killed goes on from
there, and its page can be drawn.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from loclin.run.record import Record
from loclin.run.rows import Part

EVERY = 30.0  # seconds of work that a kill may cost, and the piece at work
#: Bytes of one piece's arrays above which it is made again instead: points of all weights of a
#: large model would fill a disk.
MOST = 1 << 28


class Pieces:
    """Keeps what a run's pieces of work gave, in `<entry>/parts/<run>/` of its record.

    Args:
        record: the run folder.
        study: the entry.
        run: name of the run's part, which takes the place of its pieces when it is there.
    """

    def __init__(self, record: Record, study: str, run: str) -> None:
        self._record, self._study, self._run = record, study, run
        self._waiting: dict[str, Part] = {}
        self._written = time.monotonic()

    def __call__(self, name: str, make: Callable[[], Part], *, now: bool = False) -> Part:
        """What a piece of this name gave in an earlier session, or gives now. `now`: written at
        once, for the page of a command at work.
        """
        file = f"{self._run}/" + re.sub(r"[^\w.+]+", "-", name)
        held = self._waiting.get(file) or self._record.part(self._study, file)
        if held is not None:
            return held
        part = make()
        if sum(array.nbytes for array in part.arrays.values()) <= MOST:
            self._waiting[file] = part
        if now or time.monotonic() - self._written >= EVERY:
            for waiting in self._waiting.items():
                self._record.write_part(self._study, *waiting)
            self._waiting, self._written = {}, time.monotonic()
        return part

    def arrays(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The same of a piece that gives arrays alone (`progress.Kept`)."""
        return dict(self(name, partial(_part, make)).arrays)


def _part(make: Callable[[], dict[str, Any]]) -> Part:
    return Part(rows=(), arrays={name: np.asarray(value) for name, value in make().items()})
