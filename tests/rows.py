"""Rows looked up by what they say they are."""

from collections.abc import Sequence
from typing import Any

from loclin.run.rows import Row

#: The words of a claim that is about nothing.
WORDS = dict.fromkeys(
    ("id", "statement", "setting", "paper", "measured", "null", "rule"), "straight"
)


def values(rows: Sequence[Row], quantity: str, column: str = "value", **context: Any) -> list[Any]:
    """A column of every row of a quantity whose context holds this, in order."""
    return [
        getattr(row, column)
        for row in rows
        if row.quantity == quantity and {**row.context, **context} == row.context
    ]


def value(rows: Sequence[Row], quantity: str, **context: Any) -> float:
    """The value of the only such row."""
    (found,) = values(rows, quantity, **context)
    assert found is not None
    return float(found)
