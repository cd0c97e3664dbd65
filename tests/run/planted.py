"""Work without any model, for worker processes, which import it by name. An item is a number; its
result is a function of it alone.
"""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from loclin.errors import LoclinError
from loclin.progress import ProgressCallback


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What travels to workers. Each leaves a file named by its process id in `folder`; `deadly`
    kills whoever does that item.
    """

    folder: Path
    seconds: float = 0.0
    device: str = "cpu"
    deadly: int = -1
    fails: int = -1
    breaks: int = -1
    builds: bool = True

    def build(self) -> "PlantedWorker":
        if not self.builds:
            raise LoclinError("expected a model, found none: give one")
        (self.folder / str(os.getpid())).write_text(str(torch.get_num_threads()))
        return PlantedWorker(planted=self)


@dataclass(frozen=True, kw_only=True)
class PlantedWorker:
    planted: Planted
    notes: list[str] = field(default_factory=list)

    def do(self, item: int, progress: ProgressCallback) -> str:
        progress("working", 0.0)
        self.notes.extend([f"did {item}", "the same of all"])
        time.sleep(self.planted.seconds)
        if self.planted.deadly == item:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.planted.fails == item:
            raise LoclinError("expected a score, found none: try again")
        if self.planted.breaks == item:
            raise ZeroDivisionError("in a worker")
        return result_of(item)


def result_of(item: int) -> str:
    return f"result {item * item}"
