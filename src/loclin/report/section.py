"""One section of a report, and what the sections of all studies say alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loclin.report.figures import Drawing, select
from loclin.report.words import estimate_text, number
from loclin.run.rows import Row


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers to look up.

    Attributes:
        caption: what they are.
        header: names of the columns.
        rows: of text.
        brief: the columns that the terminal shows; all of them by default.
        chosen: first cell of the row that is marked in the terminal.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    brief: Sequence[int] = ()
    chosen: str | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A question, the figures that answer it, tables, and what one sees in them.

    Attributes:
        title, question: what it is about.
        figures: drawn from the rows.
        sees: sentences made from the numbers.
        tables: numbers to look up.
        brief: whether the terminal prints its title, tables and sentences too.
        follows: what follows for whoever asked, from what the record recommends: it stands at the
            top of the page and of the study.
    """

    title: str
    question: str
    figures: Sequence[Drawing]
    sees: Sequence[str]
    tables: Sequence[Table] = ()
    brief: bool = False
    follows: Sequence[str] = ()


#: Errors that stand for rows that are not there yet.
Missing = tuple[type[Exception], ...]


def made(
    parts: Iterable[Callable[[], Section | Iterable[Section]]], skip: Missing = ()
) -> list[Section]:
    """The sections, in order, but those that end in an error of `skip`."""
    found: list[Section] = []
    for part in parts:
        try:
            section = part()
            found += [section] if isinstance(section, Section) else section
        except skip:
            continue
    return found


def first(rows: Sequence[Row], quantity: str, **context: Any) -> Row | None:
    """The one summary row of a quantity under a condition, where it is defined."""
    return next(iter(select(rows, quantity, **context)), None)


def number_of(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    """The same as a number without its interval."""
    row = first(rows, quantity, **context)
    return number(row.value) if row else "not defined"


def null_of(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    """What it would be if nothing were there."""
    row = first(rows, quantity, **context)
    return number(row.null if row else None)


def text_of(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    """A quantity's estimate over runs under a condition, as text."""
    row = first(rows, quantity, **context)
    return estimate_text(row.value, row.low, row.high) if row else "not defined"
