"""One section of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loclin.report.figures import Drawing


@dataclass(frozen=True, kw_only=True)
class Section:
    """A question, the figures that answer it, and what one sees in them, in sentences made from the numbers."""

    title: str
    question: str
    figures: Sequence[Drawing]
    sees: Sequence[str]
