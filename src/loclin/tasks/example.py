"""One question to a language model, and splits that never share a group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loclin.errors import LoclinError
from loclin.seeds import derived


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and the answer that continues it.

    Attributes:
        answer: with its own leading space (" yes" and "yes" are different tokens).
        options: to choose from, the right one among them; empty for free answers.
        group: what no two splits share (a passage, an input sequence); "" means the prompt.
        also: other free answers that are right too; what is trained on is `answer`.
    """

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    group: str = ""
    also: tuple[str, ...] = ()


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
    examples: Sequence[Example], sizes: Mapping[str, int], *, seed: int, purpose: str = "parts"
) -> dict[str, tuple[Example, ...]]:
    """Draw parts of given sizes; no group, and no prompt, is in two of them.

    Groups stand in the order of a hash keyed by (seed, purpose). They are dealt out to the last
    part first, until it holds its number, so that another size of the first part changes none of
    the others. What a last group has beyond that number is left out.

    Args:
        examples: what to divide.
        sizes: examples of each part.
        seed, purpose: of the draw.

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
    order = iter(sorted(groups, key=lambda group: derived(seed, purpose, group)))
    parts: dict[str, tuple[Example, ...]] = {}
    for name, size in reversed(list(sizes.items())):
        held: list[Example] = []
        while len(held) < size:
            group = next(order, None)
            if group is None:
                raise _too_few(len(examples), len(groups), sizes)
            held += groups[group]
        parts[name] = tuple(held[:size])
    in_order = {name: parts[name] for name in sizes}
    check_apart(in_order)
    return in_order


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


def _too_few(there: int, groups: int, sizes: Mapping[str, int]) -> LoclinError:
    needed, share = sum(sizes.values()), min(1.0, there / sum(sizes.values()))
    *names, last = sizes
    fewer = " ".join(f"--{n} {max(1, int(0.9 * share * size))}" for n, size in sizes.items())
    listed = f"{', '.join(names)} and {last}" if names else last
    return LoclinError(
        f"expected {needed} examples for {listed}, found {there} in {groups} groups: give more "
        f"data, or fewer of each, such as {fewer}"
    )
