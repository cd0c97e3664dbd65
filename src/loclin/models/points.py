"""A training run as the points it passed through, each tensor readable at all points at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

from torch import Tensor

from loclin.errors import LoclinError

_BLOCK = 1 << 23  # values of all points together that are held at a time, 32 MB in float32


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A weight adapted by LoRA: names of its factors A and B, and the scale s of its ΔW = sBA."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Points:
    """A run at t points, in order.

    Attributes:
        labels, steps: what each is called ("checkpoint-10"); optimiser steps there, where known.
        shapes: of the tensors that make up the space.
        adapted: LoRA pairs among them, by the name of the adapted weight.
        read: a tensor's rows (slices of its first axis) at all points, t×rows×..., in float32 or
            float64; a tensor without axes counts as one row.
        notes: what to know about the points, in sentences.
    """

    labels: tuple[str, ...]
    steps: tuple[int | None, ...]
    shapes: Mapping[str, tuple[int, ...]]
    adapted: Mapping[str, Adapted]
    read: Callable[[str, slice], Tensor]
    notes: tuple[str, ...] = ()


def row_blocks(shape: tuple[int, ...], points: int) -> Iterator[slice]:
    """Slices of a tensor's first axis that fit into memory at all points; one row at least.

    >>> list(row_blocks((3, 1 << 20), 4)), list(row_blocks((), 4))
    ([slice(0, 2, None), slice(2, 3, None)], [slice(0, 1, None)])
    """
    length, width = (shape[0], max(1, prod(shape[1:]))) if shape else (1, 1)
    rows = max(1, _BLOCK // (width * points))
    for start in range(0, length, rows):
        yield slice(start, min(start + rows, length))


def partner(name: str) -> str | None:
    """The other factor of a LoRA pair, None for any other tensor.

    >>> partner("attn.lora_A.weight"), partner("wte.lora_embedding_B"), partner("attn.weight")
    ('attn.lora_B.weight', 'wte.lora_embedding_A', None)
    """
    match = re.search(r"\.lora_(?:embedding_)?([AB])(?:\.weight)?$", name)
    if not match:
        return None
    here = match.start(1)
    return f"{name[:here]}{'B' if name[here] == 'A' else 'A'}{name[here + 1 :]}"


def chosen(names: Iterable[str], pattern: str) -> list[str]:
    """The names that shell patterns (separated by commas) take; factors of a pair go together.

    Raises:
        LoclinError: the pattern takes none of them.

    >>> chosen(["a.lora_A.weight", "a.lora_B.weight", "b.weight"], "*lora_A*")
    ['a.lora_A.weight', 'a.lora_B.weight']
    """
    names = list(names)
    wanted = [p.strip() for p in pattern.split(",")]
    direct = {n for n in names if any(fnmatchcase(n, w) for w in wanted)}
    kept = [n for n in names if n in direct or partner(n) in direct]
    if not kept:
        listed = ", ".join(names[:8]) or "none"
        raise LoclinError(
            f"expected a pattern that matches a tensor, found {pattern!r}: "
            f"there are {listed}{', ...' if len(names) > 8 else ''}"
        )
    return kept


def pairs(names: Iterable[str], scale: Callable[[str], float]) -> dict[str, Adapted]:
    """The LoRA pairs among some tensors, by the name of the adapted weight; `scale` gives its s."""
    present, adapted = set(names), {}
    for name in present:
        other = partner(name)
        if other in present and re.search(r"\.lora_(embedding_)?A", name):
            weight = re.sub(r"\.lora_(embedding_)?A(\.weight)?$", "", name)
            adapted[weight] = Adapted(a=name, b=str(other), scale=scale(weight))
    return dict(sorted(adapted.items()))
