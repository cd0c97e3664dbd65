"""The rows of a record: numbers with nulls, claims with verdicts, summaries over runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from loclin.stats import Estimate, Scale

#: Context that names a run rather than a condition: summaries are over these.
OF_A_RUN = ("run", "task", "on")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number (docs/record.md).

    Attributes:
        quantity: what was measured, by its name in measures.md.
        value: the number; None where it is not defined.
        low, high: 95 % interval; None for a single run, whose spread nobody knows.
        n: units behind the value: models, or runs where there is one model.
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
        value, low, high, n: the estimate over n independent units.
        null: what it is held against.
        p, p_holm: p-value of "not so", and adjusted by Holm over both directions of all claims of
            the study.
        rule: the rule, written before the run.
        verdict: "supported", "refuted", "inconclusive", "not run", or "measurement": what cannot
            fail for any smooth loss is not decided.
        note: further numbers that the verdict rests on.
        unit: what n counts: models, or runs on one model.
        p_against, p_against_holm: the same of the other direction: below 0.05 it is refuted.
        least_effect: the smallest effect that would have been supported with 80 % power, at the
            strictest level of Holm's correction.
        halved, doubled: the verdict with thresholds and margins of half and of twice the size; ""
            where all are 0.
        agree: how many units lie on the verdict's side.
        bar: what the estimate itself is held against; None where no condition is about it.
        supports: on which side of it the claim holds: "above", "below", or "within" ±bar (on a
            log scale, within bar and 1/bar).
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
    unit: str = ""
    p_against: float | None = None
    p_against_holm: float | None = None
    least_effect: str = ""
    halved: str = ""
    doubled: str = ""
    agree: str = ""
    bar: float | None = None
    supports: str = ""

    @property
    def p_of_verdict(self) -> float | None:
        """p after Holm of the direction that the verdict takes."""
        return self.p_against_holm if self.verdict == "refuted" else self.p_holm


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
        and row.context.items() >= context.items()
    }
    return np.array([np.nan if found[run] is None else found[run] for run in sorted(found)])


def summaries(
    rows: Sequence[Row], models: int = 1, scales: Mapping[str, Scale] | None = None
) -> list[Row]:
    """One row per quantity and condition: the mean over units with its interval, and its mean null.

    Rows on several tasks of one run (`on`) are averaged first, then the runs of one model: they are
    not independent (measures §14).

    Args:
        rows: of all runs.
        models: how many models the runs share, in turn; with one, the runs are the units.
        scales: of quantities that are not plain numbers.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row.quantity, *((k, v) for k, v in row.context.items() if k not in OF_A_RUN))
        groups.setdefault(key, []).append(row)
    scales = scales or {}
    return [_summary(g, models, scales.get(g[0].quantity, "plain")) for g in groups.values()]


def _summary(group: list[Row], models: int, scale: Scale) -> Row:
    from loclin.stats import over_models  # scipy waits: `loclin --help` does not need it

    first = group[0]
    context = {k: v for k, v in first.context.items() if k not in OF_A_RUN}
    runs, values = zip(*_means(group, "value").items(), strict=True)
    nulls = list(_means(group, "null").values())
    null = None if all(np.isnan(nulls)) else float(np.nanmean(nulls))
    row = replace(first, value=None, low=None, high=None, n=0, null=null, p=None, context=context)
    if all(np.isnan(values)):
        return row
    placed = np.full(max(runs) + 1 if models > 1 else len(runs), np.nan)
    placed[list(runs) if models > 1 else slice(None)] = values
    e = over_models(placed, models, scale)
    return replace(row, value=e.value, low=e.low, high=e.high, n=e.n)


def _means(group: list[Row], column: str) -> dict[Any, float]:
    """One mean per run."""
    runs: dict[Any, list[float]] = {}
    for row in group:
        value = getattr(row, column)
        runs.setdefault(row.context.get("run"), []).append(np.nan if value is None else value)
    return {run: float(np.mean(v)) for run, v in runs.items()}
