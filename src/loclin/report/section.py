"""One section of a report, and what the sections of all studies say alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loclin.record import Row
from loclin.report.figures import Drawing, select
from loclin.report.words import estimate_text

OPTIMISERS = {"sgd": "SGD", "adamw": "AdamW"}
POINTS = {"pretrained": "θ₀", "damaged": "θ_D"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers to look up: what they are, the names of the columns, and rows of text."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A question, the figures that answer it, tables, and what one sees in them, in sentences made
    from the numbers.
    """

    title: str
    question: str
    figures: Sequence[Drawing]
    sees: Sequence[str]
    tables: Sequence[Table] = ()


def text_of(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    """A quantity's estimate over runs under a condition, as text."""
    found = select(rows, quantity, **context)
    return estimate_text(found[0].value, found[0].low, found[0].high) if found else "not defined"


def deciding_space(rows: Sequence[Row]) -> str:
    """The space that decides: the weights (with LoRA ΔW) where captures were measured there, else
    the trained coordinates.
    """
    found = {r.context.get("space") for r in rows}
    return "weights" if "weights" in found else "factors"


def two_spaces(rows: Sequence[Row]) -> bool:
    """Whether captures were measured in ΔW and in the factors."""
    return {"weights", "factors"} <= {r.context.get("space") for r in rows}
