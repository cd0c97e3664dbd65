"""Outcomes that are a function of the candidates alone, without any model."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loclin.search.candidate import Candidate, candidates
from loclin.search.ledger import line
from loclin.search.scoring import Outcome

EXAMPLES = 11  # no multiple of eight


def outcome(candidate: Candidate) -> Outcome:
    digest = hashlib.blake2b(repr(candidate).encode(), digest_size=16).digest()
    loss = math.inf if candidate.index % 7 == 5 else int.from_bytes(digest[:6], "little") / 2**45
    right = np.unpackbits(np.frombuffer(digest, dtype=np.uint8), count=EXAMPLES).astype(bool)
    return Outcome(candidate=candidate, loss=loss, right=right)


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
