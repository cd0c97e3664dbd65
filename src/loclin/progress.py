"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: Called with what is being done and the share of it that is done, from 0 to 1.
ProgressCallback = Callable[[str, float], None]


def silent(stage: str, share: float) -> None:
    """Shows nothing."""
