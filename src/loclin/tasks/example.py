"""One question to a language model, and splits that never share a group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from loclin.errors import LoclinError
from loclin.seeds import derived

LEAST = 4  # examples in a part, below which fewer are not suggested


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and the answer that continues it.

    Attributes:
        answer: with its own leading space (" yes" and "yes" are different tokens).
        options: to choose from, the right one among them; empty for free answers.
        group: what no two splits share (a passage, an input sequence); "" means the prompt.
        also: other free answers that are right too; what is trained on is `answer`.
        phrasing: which of several the prompt was made by; "" where there is one.

    >>> Example(prompt="is rome in italy ?", answer=" yes", options=(" yes", " no")).options
    (' yes', ' no')
    """

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    group: str = ""
    also: tuple[str, ...] = ()
    phrasing: str = ""


def _rank(group: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()


def split(
    examples: Sequence[Example], shares: Mapping[str, float], *, seed: int
) -> dict[str, tuple[Example, ...]]:
    """Cut examples into disjoint splits; examples of one group always land in the same split.

    Groups are ordered by a keyed hash: a group's place depends on (seed, group) alone.

    Args:
        examples: what to divide.
        shares: of the groups in each split; they sum to 1.
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
    parts = {
        name: tuple(e for e in examples if home[e.group or e.prompt] == name) for name in shares
    }
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise LoclinError(
            f"expected at least one group for every split, found {len(groups)} groups, none for "
            f"{empty[0]!r}: give more examples or larger shares"
        )
    return parts


def dealt(
    examples: Sequence[Example],
    sizes: Mapping[str, int],
    *,
    seed: int,
    purpose: str = "parts",
    spread: bool = False,
) -> dict[str, tuple[Example, ...]]:
    """Draw parts of given sizes; no group, and no prompt, is in two of them.

    Groups stand in the order of a hash keyed by (seed, purpose). They are dealt out to the last
    part first, until it holds its number, so that another size of the first part changes none of
    the others. What a last group has beyond that number is left out.

    Args:
        examples: what to divide.
        sizes: examples of each part.
        seed, purpose: of the draw.
        spread: whether a group gives as few examples as suffice, drawn among its own, so that parts
            have as many groups as they can: what is estimated varies over groups.

    Returns:
        By part, in the order of `sizes`.

    Raises:
        LoclinError: too few examples (the message says how many are needed), or one prompt in two
            groups that come to lie in two parts.

    >>> pool = [Example(prompt=f"{i} =", answer=" x", group=str(i // 2)) for i in range(20)]
    >>> parts = dealt(pool, {"labels": 6, "test": 9}, seed=0)
    >>> {name: len(part) for name, part in parts.items()}
    {'labels': 6, 'test': 9}
    >>> {e.group for e in parts["labels"]} & {e.group for e in parts["test"]}
    set()
    """
    groups: dict[str, list[Example]] = {}
    for e in examples:
        groups.setdefault(e.group or e.prompt, []).append(e)
    order = [groups[g] for g in sorted(groups, key=lambda group: derived(seed, purpose, group))]
    if spread:
        drawn = [sorted(g, key=lambda e: derived(seed, purpose, repr(e))) for g in order]
        caps = range(1, max(map(len, drawn), default=0))
        few = ([g[:most] for g in drawn] for most in caps)
        order = next((fewer for fewer in few if _dealt(fewer, sizes)), order)
    in_order = _dealt(order, sizes)
    if in_order is None:
        raise _too_few(order, sizes)
    check_apart(in_order)
    return in_order


def _dealt(
    order: Sequence[Sequence[Example]], sizes: Mapping[str, int]
) -> dict[str, tuple[Example, ...]] | None:
    """Whole groups to the last part first; None where they do not suffice."""
    left, parts = iter(order), dict[str, tuple[Example, ...]]()
    for name, size in reversed(list(sizes.items())):
        held: list[Example] = []
        while len(held) < size:
            group = next(left, None)
            if group is None:
                return None
            held += group
        parts[name] = tuple(held[:size])
    return {name: parts[name] for name in sizes}


def check_apart(parts: Mapping[str, Sequence[Example]]) -> None:
    """`LoclinError` for a group or a prompt in two parts; the first is named."""
    home: dict[tuple[str, str], str] = {}
    for name, part in parts.items():
        for e in part:
            for kind, text in (("group", e.group or e.prompt), ("prompt", e.prompt)):
                other = home.setdefault((kind, text), name)
                if other != name:
                    raise LoclinError(
                        f"expected splits that share no {kind}, found {text[:60]!r} in {other} and "
                        f"{name}: give examples that repeat each other one group"
                    )


def _too_few(order: Sequence[Sequence[Example]], sizes: Mapping[str, int]) -> LoclinError:
    """With the largest share of all sizes that these groups suffice for, if it leaves any sense."""
    needed, there = sum(sizes.values()), sum(map(len, order))
    tried = ({n: int(0.9**k * size) for n, size in sizes.items()} for k in range(1, 50))
    sensible = takewhile(lambda fewer: min(fewer.values()) >= LEAST, tried)
    fewer = next((fewer for fewer in sensible if _dealt(order, fewer)), None)
    options = " ".join(f"--{n} {size}" for n, size in (fewer or {}).items())
    *names, last = sizes
    listed = f"{', '.join(names)} and {last}" if names else last
    return LoclinError(
        f"expected {needed} examples for {listed}, found {there} in {len(order)} groups: give more "
        "data" + (f", or fewer of each, such as {options}" if options else "")
    )
