"""How long work says how far it is, and has what is done of it kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: Called with what is being done and the share of it that is done, from 0 to 1.
ProgressCallback = Callable[[str, float], None]
#: Called with the name of a piece of work and what does it, which gives arrays by name: those that
#: an earlier session kept, bit for bit, or new ones. A name has to mean the same piece every time.
Kept = Callable[[str, Callable[[], dict[str, T]]], dict[str, T]]


def silent(stage: str, share: float) -> None:
    """Shows nothing."""


def afresh(name: str, make: Callable[[], T], *, now: bool = False) -> T:
    """Keeps nothing."""
    return make()
