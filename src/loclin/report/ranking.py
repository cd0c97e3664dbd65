"""Schedules in the order of what they leave of the worst task, each held against a reference by
paired runs (measures §12, §14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loclin.record import Row
from loclin.report.section import Table
from loclin.report.words import estimate_text, number, p_text
from loclin.stats import Estimate, holm, mean_above, mean_differs, over_runs

#: What people do without thinking of a schedule.
REFERENCE = "joint mixed"
#: What needs no more than an order of the data, the plainest first.
PLAIN = (REFERENCE, "alternating")
#: How much worse than the best a plain schedule may be and still be recommended, in score; set
#: beforehand.
MARGIN = 0.05
LEVEL = 0.05
#: Runs below which a difference that is the same in all of them is no sign of certainty: scores are
#: shares of a few examples, and tie.
TELLING = 5


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One schedule's place.

    Attributes:
        schedule, family: its name, and what kind it is.
        worst, mean: score of the worst task and mean over tasks, over runs.
        behind: worst-task score less the reference's, paired by run; None for the reference itself.
        p, p_holm: two-sided, of no difference, and adjusted over all schedules.
    """

    schedule: str
    family: str
    worst: Estimate
    mean: Estimate
    behind: Estimate | None
    p: float | None
    p_holm: float | None


def ranked(rows: Sequence[Row], *, reference: str = REFERENCE, **context: Any) -> list[Ranked]:
    """All schedules, the best first; ties in the order of the record.

    Args:
        rows: of the record, single runs among them.
        reference: what the others are held against; the first schedule where it was not run.
        context: the condition (pair, optimiser).
    """
    worst, mean = (runs_of(rows, quantity, **context) for quantity in ("worst_score", "mean_score"))
    if not worst:
        return []
    against = reference if reference in worst else next(iter(worst))
    differences = {
        name: values - worst[against] for name, values in worst.items() if name != against
    }
    tests = {
        name: 1.0 if _tied(values) else mean_differs(values) for name, values in differences.items()
    }
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    families = {
        r.context["schedule"]: r.context["family"] for r in rows if r.quantity == "worst_score"
    }
    found = [
        Ranked(
            schedule=name,
            family=families[name],
            worst=over_runs(values),
            mean=over_runs(mean[name]),
            behind=difference(differences[name]) if name in differences else None,
            p=tests.get(name),
            p_holm=adjusted.get(name),
        )
        for name, values in worst.items()
    ]
    return sorted(found, key=lambda r: -r.worst.value)


def runs_of(rows: Sequence[Row], quantity: str, **context: Any) -> dict[str, np.ndarray]:
    """By schedule, a quantity's values in the order of the runs."""
    found: dict[str, dict[int, float]] = {}
    for r in rows:
        if (
            r.quantity == quantity
            and "run" in r.context
            and all(r.context.get(k) == v for k, v in context.items())
        ):
            assert r.value is not None
            found.setdefault(r.context["schedule"], {})[r.context["run"]] = r.value
    return {
        name: np.array([by_run[run] for run in sorted(by_run)]) for name, by_run in found.items()
    }


def difference(values: np.ndarray) -> Estimate:
    """Mean of paired differences over runs; without an interval where a few runs all gave the same."""
    e = over_runs(values)
    return Estimate(value=e.value, low=-np.inf, high=np.inf, n=e.n) if _tied(values) else e


def _tied(values: np.ndarray) -> bool:
    return len(values) < TELLING and float(np.ptp(values)) < 1e-9


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to train by.

    Attributes:
        schedule: a plain one that is shown to be less than `MARGIN` worse than the best; the best
            where none is; None where not even the best is shown to teach the worst task anything.
        best: that with the highest worst-task score on the validation split.
        behind: the recommended one's worst-task score on the test split less the best one's; None
            where they are one.
        better: those shown to be better than the recommended one on the test split, and by how
            much.
        level: those whose interval against it holds 0, and by how much they may be better at most.
    """

    schedule: str | None
    best: str
    behind: Estimate | None
    better: tuple[tuple[str, Estimate], ...]
    level: tuple[tuple[str, float], ...]


def recommended(rows: Sequence[Row], **context: Any) -> Recommendation:
    """The best is chosen on the validation split; plain schedules are held against it on the test
    split, paired by run.

    A plain schedule is shown to be nearly as good by a one-sided t-test against −`MARGIN`, adjusted
    by Holm over the plain ones.
    """
    chosen, tested = (runs_of(rows, q, **context) for q in ("validated_worst_score", "worst_score"))
    best = max(chosen, key=lambda name: float(chosen[name].mean()))
    first = np.array(
        [r.value for r in rows if r.quantity == "first_worst_score" and "run" in r.context],
        dtype=float,
    )
    if len(tested[best]) > 1 and mean_above(tested[best] - first, 0.0) >= LEVEL:
        return Recommendation(schedule=None, best=best, behind=None, better=(), level=())
    against = {
        name: tested[name] - tested[best] for name in PLAIN if name in tested and name != best
    }
    tests = {
        name: 1.0 if _tied(values) else mean_above(values, -MARGIN)
        for name, values in against.items()
    }
    shown = [name for name, p in zip(tests, holm(list(tests.values())), strict=True) if p < LEVEL]
    taken = best if best == PLAIN[0] or not shown else shown[0]
    each = {
        name: difference(values - tested[taken]) for name, values in tested.items() if name != taken
    }
    return Recommendation(
        schedule=taken,
        best=best,
        behind=None if taken == best else difference(against[taken]),
        better=tuple((name, e) for name, e in each.items() if e.low > 0),
        level=tuple((name, e.high) for name, e in each.items() if e.low <= 0 <= e.high),
    )


def ranking_table(
    rows: Sequence[Row],
    caption: str,
    kinds: Sequence[str],
    *,
    tasks: Sequence[str] = (),
    **context: Any,
) -> Table:
    """The ranking as a table, with the worst-task score for every kind of pair, or the score on
    every task, beside it.

    Args:
        rows: of the record.
        caption: of the table.
        kinds: of pairs.
        tasks: in the order of their letters.
        context: the condition.
    """
    every = ranked(rows, **context)
    header = [
        "schedule",
        "kind",
        "worst task",
        "mean of tasks",
        f"worst task less {reference_of(every)}'s",
        "p (Holm)",
    ]
    header += tasks
    header += [f"worst task, {kind}" for kind in kinds] + ["gradients", "steps"]
    by_kind = [
        runs_of(rows, "score", **{**context, "role": chr(ord("A") + i)})
        for i, _ in enumerate(tasks)
    ]
    by_kind += [runs_of(rows, "worst_score", **{**context, "pair": kind}) for kind in kinds]
    counts = {q: runs_of(rows, q, **context) for q in ("evaluations", "steps")}
    cells = [
        [
            r.schedule,
            r.family,
            text(r.worst),
            text(r.mean),
            "–" if r.behind is None else text(r.behind),
            p_text(r.p_holm),
            *(number(float(values[r.schedule].mean())) for values in by_kind),
            *(
                number(float(found[r.schedule].mean())) if r.schedule in found else "–"
                for found in counts.values()
            ),
        ]
        for r in every
    ]
    return Table(caption=caption, header=header, rows=cells)


def reference_of(every: Sequence[Ranked]) -> str:
    """What the others are held against."""
    return next((r.schedule for r in every if r.behind is None), REFERENCE)


def text(estimate: Estimate) -> str:
    """An estimate as text; without an interval where there was one run."""
    finite = np.isfinite(estimate.low)
    return estimate_text(
        estimate.value, estimate.low if finite else None, estimate.high if finite else None
    )
