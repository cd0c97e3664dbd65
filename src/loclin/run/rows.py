"""The rows of a record: numbers with nulls, claims with verdicts, summaries over runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from loclin.stats import Estimate

#: Context that names a run rather than a condition: summaries are over these.
OF_A_RUN = ("run", "task", "on")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number (docs/record.md).

    Attributes:
        quantity: what was measured, by its name in measures.md.
        value: the number; None where it is not defined.
        low, high: 95 % interval; None for a single run, whose spread nobody knows.
        n: independent runs behind the value.
        null: what the value would be if nothing were there, where a null belongs to it.
        p: p-value against that null.
        unit: "" for pure numbers and shares.
        context: everything that tells this number from the others: run, optimiser, k, basis, ...
    """

    quantity: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 1
    null: float | None = None
    p: float | None = None
    unit: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)


def finite(value: float | None) -> float | None:
    """The number, or None for NaN, infinity and nothing: what is not defined has no value."""
    return float(value) if value is not None and math.isfinite(value) else None


def estimated(
    quantity: str,
    estimate: Estimate | None,
    context: Mapping[str, Any],
    *,
    null: float | None = None,
    p: float | None = None,
) -> Row:
    """The row of an estimate; without an interval, or a value, where it has none."""
    row = Row(quantity=quantity, value=None, n=0, null=null, p=p, context=context)
    if estimate is None:
        return row
    value, low, high = map(finite, (estimate.value, estimate.low, estimate.high))
    if low is None or high is None:
        low = high = None
    return replace(row, value=value, low=low, high=high, n=estimate.n)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper, the rule that decides it, and the verdict (measures §14).

    Attributes:
        id: as in the list of claims.
        statement: what is claimed.
        setting: where it was tested (model, optimiser).
        paper: the paper's value.
        measured: what `value`, `low` and `high` are.
        value, low, high, n: the estimate over n independent runs.
        null: what it is held against.
        p, p_holm: p-value, and adjusted by Holm over all claims of the study.
        rule: the rule, written before the run.
        verdict: "supported", "refuted", "inconclusive" or "not run".
        note: further numbers that the verdict rests on.
    """

    id: str
    statement: str
    setting: str
    paper: str
    measured: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    null: str
    p: float | None
    p_holm: float | None
    rule: str
    verdict: str
    note: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """What one independent run contributes.

    Attributes:
        rows: its numbers.
        arrays: by key, which ends in the run's number.
        seconds: how long it took.
        notes: what was loaded, dropped and kept where, in sentences.
    """

    rows: Sequence[Row]
    arrays: Mapping[str, np.ndarray]
    seconds: float = 0.0
    notes: Sequence[str] = ()


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
    """One row per quantity and condition: the mean over runs with its interval, and its mean null.

    Rows on several tasks of one run (`on`) are averaged first: they are not independent.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.quantity, *((k, v) for k, v in row.context.items() if k not in OF_A_RUN))
        groups.setdefault(key, []).append(row)
    return [_summary(group) for group in groups.values()]


def _summary(group: list[Row]) -> Row:
    from loclin.stats import over_runs  # scipy waits: `loclin --help` does not need it

    first = group[0]
    context = {k: v for k, v in first.context.items() if k not in OF_A_RUN}
    values, nulls = _means(group, "value"), _means(group, "null")
    null = None if all(np.isnan(nulls)) else float(np.nanmean(nulls))
    row = replace(first, value=None, low=None, high=None, n=0, null=null, p=None, context=context)
    if all(np.isnan(values)):
        return row
    e = over_runs(values)
    return replace(row, value=e.value, low=e.low, high=e.high, n=e.n)


def _means(group: list[Row], column: str) -> list[float]:
    """One mean per run."""
    runs: dict[Any, list[float]] = {}
    for row in group:
        value = getattr(row, column)
        runs.setdefault(row.context.get("run"), []).append(np.nan if value is None else value)
    return [float(np.mean(v)) for v in runs.values()]
