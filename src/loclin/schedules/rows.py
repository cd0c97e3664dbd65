"""What a contest found, as rows: scores of every schedule and merged specialist, learning curves,
cosines, the line between two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.errors import LoclinError
from loclin.record import Row, finite
from loclin.schedules.contest import Contest, Point, Trained
from loclin.schedules.courses import by_schedule
from loclin.schedules.merging import arithmetic, barrier, soup, ties
from loclin.schedules.terms import MERGED, REFERENCE, family

Told = Callable[[str, float], None]
Asked = Float[np.ndarray, "K 2"]
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))  # places on the line between two specialists


def role(place: int) -> str:
    """The letter of a task by its place in the order.

    >>> role(0), role(27)
    ('A', 'B2')
    """
    turn, letter = divmod(place, 26)
    return chr(ord("A") + letter) + (str(turn + 1) if turn else "")


def contest_rows(contest: Contest, told: Told) -> tuple[list[Row], dict[str, float]]:
    """The rows of every schedule, and seconds that each took for one gradient, those of MERGED left
    out.

    Args:
        contest: what is compared.
        told: called before each schedule with what is done and the share that is.
    """
    names, seconds = contest.terms.named, {}
    start = contest.at(contest.start, contest.quick)
    known = contest.at(contest.start, contest.whole)[:, 1]
    rows = [
        *_by_role(contest, "first_score", known, {}),
        _row(contest, "first_worst_score", known.min(), {}),
    ]
    for done, name in enumerate(names):
        told(f"{' and '.join(contest.tasks)} by {len(names)} schedules", done / len(names))
        here = {"schedule": name, "family": family(name)}
        if name in MERGED:
            point, scale = _merged(contest, name)
            rows += _end_rows(
                contest,
                point,
                here,
                contest.terms.evaluations // len(contest.tasks) * len(contest.tasks),
            )
            rows.append(_row(contest, "merge_scale", scale, here))
        else:
            trained = _trained(contest, name)
            seconds[name] = sum(c.seconds for c in trained.courses) / sum(
                c.evaluations for c in trained.courses
            )
            rows += _end_rows(contest, trained.end, here, trained.evaluations)
            rows.append(
                _row(contest, "steps", sum(course.steps for course in trained.courses), here)
            )
            rows += _curve_rows(contest, trained, start, here)
    return [*rows, *_line_rows(contest)], seconds


def cost_note(seconds: Mapping[str, float]) -> Iterator[str]:
    """What a gradient costs under every schedule, as measured in this session; no part of the
    results, which do not change.
    """
    if REFERENCE in seconds:
        each = ", ".join(f"{name} {s / seconds[REFERENCE]:.2f}" for name, s in seconds.items())
        plain = f"{1e3 * seconds[REFERENCE]:.1f} ms here"
        yield f"time for one gradient, with its share of the step, over that of {REFERENCE} ({plain}): {each}"


def _trained(contest: Contest, name: str) -> Trained:
    try:
        return by_schedule(contest, name)
    except LoclinError as error:
        raise LoclinError(f"schedule {name}: {error}") from error


def _end_rows(contest: Contest, point: Point, here: Mapping[str, Any], taken: int) -> Iterator[Row]:
    """Where a schedule leaves the tasks."""
    scores = contest.at(point, contest.whole)[:, 1]
    yield from _by_role(contest, "score", scores, here)
    yield _row(contest, "worst_score", scores.min(), here)
    yield _row(contest, "mean_score", scores.mean(), here)
    if contest.validated:
        yield _row(
            contest,
            "validated_worst_score",
            contest.at(point, contest.validating)[:, 1].min(),
            here,
        )
    yield _row(contest, "evaluations", taken, here)


def _curve_rows(
    contest: Contest, trained: Trained, start: Asked, here: Mapping[str, Any]
) -> Iterator[Row]:
    before = 0
    cosines = np.concatenate([course.cosines for course in trained.courses])
    for mark, asked in ((0, start), *trained.curve):
        there = {**here, "evaluations": mark}
        yield from _by_role(contest, "curve_loss", asked[:, 0], there)
        yield from _by_role(contest, "curve_score", asked[:, 1], there)
        yield _row(contest, "curve_worst_score", asked[:, 1].min(), there)
        every = len(contest.tasks)  # gradients behind a cosine
        part = cosines[before // every : mark // every]
        if mark and len(part) and not np.isnan(part).any():
            yield _row(contest, "gradient_cosine", float(part.mean()), there)
        before = mark


def _merged(contest: Contest, name: str) -> tuple[Point, float]:
    """Specialists joined, and the scale of their task vectors: chosen by the worst task of the
    validation split.
    """
    start, ends = contest.start, [contest.specialist(task).end for task in contest.tasks]
    if name == "average":
        return soup(start, ends), 1 / len(ends)
    join = ties if name == "TIES" else arithmetic
    worst = [
        contest.at(join(start, ends, s), contest.choosing)[:, 1].min() for s in contest.terms.scales
    ]
    scale = contest.terms.scales[int(np.argmax(worst))]
    return join(start, ends, scale), scale


def _line_rows(contest: Contest) -> Iterator[Row]:
    """The straight line between the specialists of the first and of the last task: (1−α) θ_A + α
    θ_B.
    """
    first, last = (contest.specialist(task).end for task in (contest.tasks[0], contest.tasks[-1]))
    found = np.array([contest.at((1 - a) * first + a * last, contest.quick) for a in ALPHAS])
    losses = found[:, :, 0].mean(1)
    for alpha, loss, asked in zip(ALPHAS, losses, found, strict=True):
        yield _row(contest, "line_loss", loss, {"alpha": alpha})
        yield from _by_role(contest, "line_score", asked[:, 1], {"alpha": alpha})
        yield _row(contest, "line_worst_score", asked[:, 1].min(), {"alpha": alpha})
    yield _row(contest, "barrier", barrier(losses, ALPHAS), {})


def _by_role(
    contest: Contest, quantity: str, values: Float[np.ndarray, " K"], here: Mapping[str, Any]
) -> Iterator[Row]:
    for place, value in enumerate(values):
        yield _row(contest, quantity, float(value), {**here, "role": role(place)})


def _row(contest: Contest, quantity: str, value: float | int, here: Mapping[str, Any]) -> Row:
    number = float(value)
    return Row(
        quantity=quantity,
        value=finite(None if math.isnan(number) else number),
        context={**contest.context, **here},
    )
