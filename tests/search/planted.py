"""A search whose outcomes are a function of the candidates alone, without any model; for worker
processes, which import it by name.
"""

import hashlib
import math
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from loclin.errors import LoclinError
from loclin.search.candidate import Candidate, candidates
from loclin.search.ledger import line
from loclin.search.scoring import Outcome

EXAMPLES = 11  # no multiple of eight


def outcome(candidate: Candidate) -> Outcome:
    digest = hashlib.blake2b(repr(candidate).encode(), digest_size=16).digest()
    loss = math.inf if candidate.index % 7 == 5 else int.from_bytes(digest[:6], "little") / 2**45
    right = np.unpackbits(np.frombuffer(digest, dtype=np.uint8), count=EXAMPLES).astype(bool)
    return Outcome(candidate=candidate, loss=loss, right=right)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What travels to workers. Each leaves a file named by its process id in `folder`; `deadly`
    kills whoever scores that index.
    """

    folder: Path
    seconds: float = 0.0
    device: str = "cpu"
    deadly: int = -1
    fails: int = -1
    breaks: int = -1
    builds: bool = True

    def build(self) -> "PlantedScorer":
        if not self.builds:
            raise LoclinError("expected a model, found none: give one")
        (self.folder / str(os.getpid())).write_text(str(torch.get_num_threads()))
        return PlantedScorer(planted=self)


@dataclass(frozen=True, kw_only=True)
class PlantedScorer:
    planted: Planted
    notes: list[str] = field(default_factory=list)

    def score(self, group: Sequence[Candidate]) -> list[Outcome]:
        indices = {c.index for c in group}
        self.notes.append(f"scored {min(indices)}")
        self.notes.append("the same of all")
        time.sleep(self.planted.seconds)
        if self.planted.deadly in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.planted.fails in indices:
            raise LoclinError("expected a score, found none: try again")
        if self.planted.breaks in indices:
            raise ZeroDivisionError("in a worker")
        return [outcome(c) for c in group]


def groups(count: int, *, size: int = 3) -> list[list[Candidate]]:
    made = candidates(count * size, [0.1], seed=0)
    return [made[start : start + size] for start in range(0, len(made), size)]


def lines(path: Path) -> set[str]:
    """What two ledgers are compared by."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert len(set(text.splitlines())) == len(text.splitlines())
    return set(text.splitlines())


def expected_lines(made: Sequence[Sequence[Candidate]]) -> set[str]:
    return {line(outcome(c)).rstrip("\n") for group in made for c in group}


def collect(given: Iterable[Sequence[Outcome]], into: list[str]) -> None:
    """Lines of outcomes as they come; those that came before an error are there after it."""
    for outcomes in given:
        into.extend(line(o).rstrip("\n") for o in outcomes)
