"""Rows of independent runs as a table: look numbers up by their context, and summarise them over
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.record import Row
from loclin.stats import over_runs

#: Context that names a run rather than a condition; summaries are over everything that differs in
#: these alone.
OF_A_RUN = ("run", "task", "on")


def by_run(
    rows: Sequence[Row], quantity: str, column: str = "value", **context: Any
) -> Float[np.ndarray, " S"]:
    """The chosen rows' values, in the order of the runs; NaN where a value is not defined."""
    found = {
        row.context["run"]: getattr(row, column)
        for row in rows
        if row.quantity == quantity
        and "run" in row.context
        and all(row.context.get(k) == v for k, v in context.items())
    }
    return np.array([np.nan if found[run] is None else found[run] for run in sorted(found)])


def summaries(rows: Sequence[Row]) -> list[Row]:
    """One row per quantity and condition: the mean over runs with its interval, nulls averaged
    alongside.

    Rows on several tasks of one run (`on`) are averaged within the run first: they are not
    independent.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.quantity, *((k, v) for k, v in row.context.items() if k not in OF_A_RUN))
        groups.setdefault(key, []).append(row)
    return [_summary(group) for group in groups.values()]


def _summary(group: list[Row]) -> Row:
    first = group[0]
    context = {k: v for k, v in first.context.items() if k not in OF_A_RUN}
    values, nulls = _means(group, "value"), _means(group, "null")
    null = None if all(np.isnan(nulls)) else float(np.nanmean(nulls))
    if all(np.isnan(values)):
        return Row(
            quantity=first.quantity, value=None, n=0, null=null, unit=first.unit, context=context
        )
    e = over_runs(values)
    return Row(
        quantity=first.quantity,
        value=e.value,
        low=e.low,
        high=e.high,
        n=e.n,
        null=null,
        unit=first.unit,
        context=context,
    )


def _means(group: list[Row], column: str) -> list[float]:
    """One mean per run."""
    runs: dict[Any, list[float]] = {}
    for row in group:
        value = getattr(row, column)
        runs.setdefault(row.context.get("run"), []).append(np.nan if value is None else value)
    return [float(np.mean(v)) for v in runs.values()]
