"""Which examples a search may be scored on, and how they are told from others. Select, validate and
test are three disjoint parts of them (`tasks.example.dealt`, measures §11).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple

from loclin.errors import LoclinError
from loclin.tasks.example import Example

#: Ranks candidates; chooses among the first of them; is asked once, about what validate chose.
PARTS = ("select", "validate", "test")
#: Examples by split, then by task.
Data = Mapping[str, Mapping[str, tuple[Example, ...]]]


def examples_hash(examples: Sequence[Example]) -> str:
    """A digest of some examples, word for word and in order."""
    text = json.dumps([astuple(e)[: 5 if e.also else 4] for e in examples])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def learned(model: str, data: Sequence[str]) -> tuple[str, ...]:
    """Splits of the data that a built-in model was trained or chosen on: of its own data two, of
    others none.

    >>> learned("statements", ()), learned("statements", ("mine.jsonl",))
    (('train', 'validate'), ())
    """
    return ("train", "validate") if tuple(data) in ((), (model,)) else ()


def askable(data: Data, *, task: str | None, without: Sequence[str]) -> list[Example]:
    """The examples that a search may be scored on, of one task or (None) all.

    Args:
        data: of a problem.
        task: its name.
        without: splits that the model, or a subspace to search in, was made from.

    Raises:
        LoclinError: no such task.
    """
    tasks = list(next(iter(data.values())))
    if task is not None and task not in tasks:
        raise LoclinError(f"unknown task {task!r}: expected one of {', '.join(tasks)}")
    kept = [parts for name, parts in data.items() if name not in without]
    return [e for parts in kept for t in ([task] if task else tasks) for e in parts[t]]
