"""One question to a language model, and splits that never share a group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loclin.errors import LoclinError


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and the answer that continues it.

    Attributes:
        prompt: the text the model reads.
        answer: the text that must follow, with its own leading space (" yes" and "yes" are different tokens).
        options: the answers to choose from, the gold one among them; empty for free answers.
        group: what must not be shared between splits (a passage, an input sequence); the prompt where left empty.
    """

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    group: str = ""


def _rank(group: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()


def split(examples: Sequence[Example], shares: Mapping[str, float], *, seed: int) -> dict[str, tuple[Example, ...]]:
    """Cut examples into disjoint splits; examples of one group always land in the same split.

    Groups are ordered by a keyed hash, so a group's place depends on (seed, group) alone, not on the order of `examples`.

    Args:
        examples: what to divide.
        shares: name of each split and its share of the groups; the shares sum to 1.
        seed: another seed, another division.

    Raises:
        LoclinError: the shares do not sum to 1, or a split would be empty.

    >>> pool = [Example(prompt=f"{i} =", answer=" x", group=str(i // 2)) for i in range(20)]
    >>> parts = split(pool, {"train": 0.8, "test": 0.2}, seed=0)
    >>> {name: len(part) for name, part in parts.items()}
    {'train': 16, 'test': 4}
    >>> {e.group for e in parts["train"]} & {e.group for e in parts["test"]}
    set()
    """
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise LoclinError(f"split shares must sum to 1, found {dict(shares)}: change them")
    groups = sorted({e.group or e.prompt for e in examples}, key=lambda g: _rank(g, seed))
    home: dict[str, str] = {}
    reached = 0.0
    for name, share in shares.items():
        first, reached = round(reached * len(groups)), reached + share
        home |= dict.fromkeys(groups[first : round(reached * len(groups))], name)
    parts = {name: tuple(e for e in examples if home[e.group or e.prompt] == name) for name in shares}
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise LoclinError(
            f"expected at least one group for every split, found {len(groups)} groups, none for {empty[0]!r}: "
            "give more examples or larger shares"
        )
    return parts
