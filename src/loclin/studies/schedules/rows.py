"""What a comparison shows, as rows: scores of every schedule, learning curves, cosines, the line
between two specialists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.errors import LoclinError
from loclin.run.rows import Part, Row, finite
from loclin.run.runner import Session
from loclin.schedules.comparison import Choice, Point, ScheduleComparison, Scores, Trained
from loclin.schedules.merging import barrier, merge_by
from loclin.schedules.names import MERGED, REFERENCE, family
from loclin.schedules.plans import train_by
from loclin.studies.schedules import names as n

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))  # places on the line between two specialists
Context = Mapping[str, Any]


def comparison_rows(
    comparison: ScheduleComparison, context: Context, session: Session, *, validated: bool = False
) -> tuple[list[Row], list[str]]:
    """The rows of every schedule, and what their gradients cost, in a sentence.

    Args:
        context: of all rows.
        session: keeps what every schedule gave.
        validated: whether every schedule is scored on validation examples too, for whoever chooses
            by them.
    """
    start = comparison.evaluate_at(comparison.start, comparison.curve_sets)
    known = comparison.evaluate_at(comparison.start, comparison.test_sets)[:, 1]
    rows = [*_by_role(n.FIRST, known, context), _row(n.FIRST_WORST, known.min(), context)]
    schedules, seconds = comparison.options.named, dict[str, float]()
    stage = f"{' and '.join(comparison.tasks)} by {len(schedules)} schedules"
    for done, name in enumerate(schedules):
        session.progress(stage, done / len(schedules))
        here = {**context, "schedule": name, "family": family(name)}
        make = partial(_schedule, comparison, name, start, here, validated)
        part = session.pieces(" ".join(map(str, [*context.values(), name])), make)
        rows += part.rows
        if "seconds" in part.arrays:
            seconds[name] = part.arrays["seconds"].item()
    return [*rows, *_line_rows(comparison, context)], _cost(seconds)


def _schedule(
    comparison: ScheduleComparison, name: str, start: Scores, here: Context, validated: bool
) -> Part:
    """The rows of one schedule, and the seconds of a gradient where it trains."""
    seconds = dict[str, np.ndarray]()
    if name in MERGED:
        end, choice = merge_by(comparison, name)
        taken, more = comparison.share * len(comparison.tasks), list[Row]()
    else:
        trained = _trained(comparison, name)
        end, taken, logs = trained.end, trained.evaluations, trained.phases
        choice = trained.choice
        each = sum(p.seconds for p in logs) / sum(p.evaluations for p in logs)
        seconds["seconds"] = np.array(each)
        more = [_row(n.STEPS, sum(len(p.losses) for p in logs), here)]
        more += _curve_rows(comparison, trained, start, here)
    rows = [*_end_rows(comparison, end, here, validated), _row(n.EVALUATIONS, taken, here)]
    return Part(rows=[*rows, *more, *_strength_rows(choice, here)], arrays=seconds)


def over_pairs(rows: Sequence[Row]) -> Iterator[Row]:
    """Every row that all pairs have, averaged over them: a run is one unit, its pairs are not
    independent.

    What tells the tasks of a pair apart (their letters) means nothing over pairs and is left out.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if "role" not in row.context:
            shared = ((k, v) for k, v in row.context.items() if k not in ("pair", "task"))
            groups.setdefault((row.quantity, *shared), []).append(row)
    for group in groups.values():
        value, null = _mean([r.value for r in group]), _mean([r.null for r in group])
        context = {**group[0].context, "pair": n.EVERY_PAIR, "task": n.EVERY_PAIR}
        yield Row(quantity=group[0].quantity, value=value, null=null, context=context)


def arrays_of(rows: Sequence[Row], run: int) -> dict[str, np.ndarray]:
    """Scores of every pair and role, by quantity, optimiser and schedule; of every strength too."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.quantity in (n.FIRST, n.SCORE, n.STRENGTH_SCORE):
            where = [row.context[k] for k in ("optimiser", "schedule") if k in row.context]
            found.setdefault("/".join([row.quantity, *where, str(run)]), []).append(row)
    arrays = {}
    for key, group in found.items():
        sizes = (
            len({r.context.get(column) for r in group}) for column in ("pair", "strength", "role")
        )
        values = [math.nan if r.value is None else r.value for r in group]
        arrays[key] = np.reshape(np.array(values), tuple(sizes))
    return arrays


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _cost(seconds: Mapping[str, float]) -> list[str]:
    """What a gradient costs under every schedule; no part of the results, which do not change."""
    if REFERENCE not in seconds:
        return []
    plain = seconds[REFERENCE]
    each = ", ".join(f"{name} {s / plain:.2f}" for name, s in seconds.items())
    what = f"time for one gradient, with its share of the step, over that of {REFERENCE}"
    return [f"{what} ({1e3 * plain:.1f} ms here): {each}"]


def _trained(comparison: ScheduleComparison, name: str) -> Trained:
    try:
        return train_by(comparison, name)
    except LoclinError as error:
        raise LoclinError(f"schedule {name}: {error}") from error


def _end_rows(
    comparison: ScheduleComparison, end: Point, here: Context, validated: bool
) -> Iterator[Row]:
    """Where a schedule leaves the tasks."""
    scores = comparison.evaluate_at(end, comparison.test_sets)[:, 1]
    yield from _by_role(n.SCORE, scores, here)
    yield _row(n.WORST, scores.min(), here)
    yield _row(n.MEAN, scores.mean(), here)
    if validated:
        checked = comparison.evaluate_at(end, comparison.validation_sets)[:, 1]
        yield _row(n.VALIDATED_WORST, checked.min(), here)


def _strength_rows(choice: Choice | None, here: Context) -> Iterator[Row]:
    """How the strength was chosen, where there is one."""
    if choice is not None:
        yield _row(n.STRENGTH, choice.strength, here)
        for strength, scores in zip(choice.strengths, choice.scores, strict=True):
            there = {**here, "strength": strength}
            yield from _by_role(n.STRENGTH_SCORE, scores, there)
            yield _row(n.STRENGTH_WORST, scores.min(), there)


def _curve_rows(
    comparison: ScheduleComparison, trained: Trained, start: Scores, here: Context
) -> Iterator[Row]:
    """Scores along the training, and the mean cosine of the gradients since the place before."""
    cosines = np.concatenate([log.cosines for log in trained.phases])
    before, tasks = 0, len(comparison.tasks)  # gradients behind a cosine
    for mark, scores in ((0, start), *trained.curve):
        there = {**here, "evaluations": mark}
        yield from _by_role(n.CURVE_LOSS, scores[:, 0], there)
        yield from _by_role(n.CURVE_SCORE, scores[:, 1], there)
        yield _row(n.CURVE_WORST, scores[:, 1].min(), there)
        part = cosines[before // tasks : mark // tasks]
        if mark and len(part) and not np.isnan(part).any():
            yield _row(n.GRADIENT_COSINE, float(part.mean()), there)
        before = mark


def _line_rows(comparison: ScheduleComparison, context: Context) -> Iterator[Row]:
    """The straight line between the specialists of the first and of the last task: (1−α) θ_A + α
    θ_B.
    """
    tasks, sets = comparison.tasks, comparison.curve_sets
    first, last = comparison.specialist(tasks[0]).end, comparison.specialist(tasks[-1]).end
    points = ((1 - a) * first + a * last for a in ALPHAS)
    scores = np.array([comparison.evaluate_at(point, sets) for point in points])
    losses = scores[:, :, 0].mean(1)
    for alpha, loss, each in zip(ALPHAS, losses, scores[:, :, 1], strict=True):
        there = {**context, "alpha": alpha}
        yield _row(n.LINE_LOSS, loss, there)
        yield from _by_role(n.LINE_SCORE, each, there)
        yield _row(n.LINE_WORST, each.min(), there)
    yield _row(n.BARRIER, barrier(losses, ALPHAS), context)


def _by_role(quantity: str, values: Float[np.ndarray, " K"], here: Context) -> Iterator[Row]:
    for place, value in enumerate(values):
        yield _row(quantity, value, {**here, "role": n.role(place)})


def _row(quantity: str, value: float | int, context: Context) -> Row:
    return Row(quantity=quantity, value=finite(float(value)), context=context)
