"""Select, validate, test: three disjoint parts of the examples, divided by group before anything is
scored (measures §11).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from loclin.errors import LoclinError
from loclin.tasks.example import Example, check_apart, dealt

PARTS = ("select", "validate", "test")
Data = Mapping[str, Mapping[str, tuple[Example, ...]]]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The examples of a search.

    Attributes:
        select: candidates are ranked by.
        validate: chooses among the first of them.
        test: asked once, about what validate chose.
    """

    select: tuple[Example, ...]
    validate: tuple[Example, ...]
    test: tuple[Example, ...]

    def hashes(self) -> dict[str, str]:
        """A digest of every part: the examples, word for word and in order."""
        return {name: examples_hash(getattr(self, name)) for name in PARTS}


def examples_hash(examples: Sequence[Example]) -> str:
    """A digest of some examples, word for word and in order."""
    return hashlib.blake2b(
        json.dumps([astuple(e) for e in examples]).encode(), digest_size=16
    ).hexdigest()


def divided(examples: Sequence[Example], sizes: Mapping[str, int], *, seed: int) -> Splits:
    """Draw select, validate and test of given sizes; no group, and no prompt, is in two of them.

    Groups are put in the order of a keyed hash, so that a group's place depends on (seed, group)
    alone, and dealt out to test, then validate, then select, until each holds its number. What a
    last group has beyond it is left out.

    Args:
        examples: what to divide.
        sizes: examples of each part.
        seed: another seed, another division.

    Raises:
        LoclinError: too few examples (the message says how many are needed), or one prompt in two
            groups that come to lie in two parts.

    >>> pool = [Example(prompt=f"{i} =", answer=" x", group=str(i // 2)) for i in range(20)]
    >>> parts = divided(pool, {"select": 6, "validate": 4, "test": 8}, seed=0)
    >>> len(parts.select), len(parts.validate), len(parts.test)
    (6, 4, 8)
    >>> {e.group for e in parts.select} & {e.group for e in parts.test}
    set()
    """
    wanted = {name: sizes[name] for name in PARTS}
    return Splits(**dealt(examples, wanted, seed=seed, purpose="search split"))


def check_disjoint(splits: Splits) -> None:
    """Whether no group and no prompt is in two parts.

    Raises:
        LoclinError: one is; the first is named.
    """
    check_apart({name: getattr(splits, name) for name in PARTS})


def learned(model: str, data: str | None) -> tuple[str, ...]:
    """Splits of the data that a built-in model was trained or chosen on: of its own data two, of
    others none.

    >>> learned("statements", None), learned("statements", "mine.jsonl")
    (('train', 'validate'), ())
    """
    return ("train", "validate") if data in (None, model) else ()


def askable(data: Data, *, task: str | None, without: Sequence[str]) -> list[Example]:
    """The examples that a search may be scored on, of all splits of the data but some.

    Args:
        data: by split, then by task.
        task: the one that is searched for; None takes all.
        without: splits that are left out, because the model, or a subspace to search in, was made
            from them.

    Raises:
        LoclinError: no such task.
    """
    tasks = list(next(iter(data.values())))
    if task is not None and task not in tasks:
        raise LoclinError(f"unknown task {task!r}: expected one of {', '.join(tasks)}")
    kept = [parts for name, parts in data.items() if name not in without]
    return [e for parts in kept for t in ([task] if task else tasks) for e in parts[t]]
