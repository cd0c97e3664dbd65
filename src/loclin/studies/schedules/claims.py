"""The claim of the schedules study and the rule that decides it, written before the first run; and
what the study recommends (measures §12, §14).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Claim, Row, by_run
from loclin.schedules.names import SEQUENTIAL, SIMULTANEOUS
from loclin.stats import mean_above, over_runs
from loclin.studies.names import OPTIMISERS
from loclin.studies.schedules import names as n
from loclin.studies.schedules.recommend import ranking_rows, recommendation_rows
from loclin.studies.schedules.settings import SchedulesSettings
from loclin.studies.verdict import adjusted, figures, setting, verdict

#: How much lower the worst task has to end after sequential training, in score; set beforehand.
#: With two options it is 0.4 of the way from guessing to all right.
BRITTLE = 0.2
Values = Float[np.ndarray, " S"]


def conclude(settings: SchedulesSettings, rows: Sequence[Row]) -> list[Row]:
    """The ranking by every optimiser; of a user's own tasks the recommendation too."""
    found = []
    for optimiser in settings.optimisers:
        context = {"pair": n.EVERY_PAIR, "optimiser": optimiser}
        found += ranking_rows(rows, context)
        found += [] if settings.pairs else recommendation_rows(rows, context)
    return found


def decide(settings: SchedulesSettings, rows: Sequence[Row]) -> list[Claim]:
    """The claim for every optimiser, adjusted over them; none without pairs."""
    optimisers = settings.optimisers if settings.pairs else ()
    return adjusted([sequential_brittle(settings, rows, optimiser) for optimiser in optimisers])


def sequential_brittle(settings: SchedulesSettings, rows: Sequence[Row], optimiser: str) -> Claim:
    """One after the other the worse task ends far lower than by simultaneous schedules, which
    differ by less than that.

    Worst-task scores are averaged over pairs within a run. The spread of the simultaneous
    schedules, best less worst, is biased upwards by noise: it can keep a claim from being
    supported, never refute it. Nor does training that taught nothing.
    """
    names = [name for name in SIMULTANEOUS if name in settings.named]
    orders = [name for name in SEQUENTIAL if name in settings.named]
    stated = _stated(settings, optimiser, len(names))
    if len(names) < 2 or len(orders) < 2:
        note = "needs two simultaneous schedules and both sequential ones among --schedules"
        nothing: Any = {**stated, **figures(None), "p": None, "p_holm": None}
        return Claim(**nothing, verdict="not run", note=note)

    def worst(schedules: Sequence[str], pair: str = n.EVERY_PAIR) -> Float[np.ndarray, "n S"]:
        here: dict[str, Any] = {"pair": pair, "optimiser": optimiser}
        return np.array([by_run(rows, n.WORST, schedule=name, **here) for name in schedules])

    together, sequential = worst(names), worst(orders).mean(0)
    gap, spread = together.mean(0) - sequential, together.max(0) - together.min(0)
    first = by_run(rows, n.FIRST_WORST, pair=n.EVERY_PAIR, optimiser=optimiser)
    e, beyond, learned = map(over_runs, (gap, gap - spread, together.mean(0) - first))
    kinds = "; ".join(
        f"{pair} pairs {over_runs(worst(names, pair).mean(0))} against "
        f"{over_runs(worst(orders, pair).mean(0))}"
        for pair in settings.pairs
    )
    return Claim(
        **stated,
        **figures(e),  # type: ignore[arg-type]
        p_holm=None,
        p=max(mean_above(gap, BRITTLE), mean_above(gap - spread, 0.0)),
        verdict=verdict(
            e.low > BRITTLE and beyond.low > 0, e.high < BRITTLE and learned.low > BRITTLE
        ),
        note=f"one after the other {over_runs(sequential)}, {len(names)} simultaneous schedules "
        f"{over_runs(together.mean(0))}; best less worst of them {over_runs(spread)}, which the "
        f"gap exceeds by {beyond}; above the start {learned}; {kinds}; the task trained first ends "
        f"at {over_runs(_trained_first(settings, rows, optimiser))}",
    )


def _trained_first(settings: SchedulesSettings, rows: Sequence[Row], optimiser: str) -> Values:
    """What both sequential orders leave of the task trained first: whether it is that one which is
    lost.
    """
    scores = [
        by_run(rows, n.SCORE, schedule=order, role=role, pair=pair, optimiser=optimiser)
        for order, role in zip(SEQUENTIAL, "AB", strict=True)
        for pair in settings.pairs
    ]
    by_order = np.reshape(scores, (2, len(settings.pairs), -1))
    return np.asarray(by_order.mean(1).mean(0))


def _stated(settings: SchedulesSettings, optimiser: str, count: int) -> dict[str, Any]:
    return {
        "id": "sequential-brittle",
        "statement": "Training two tasks one after the other leaves the worse one far lower than "
        "both at once, by whichever schedule.",
        "setting": setting(settings, OPTIMISERS[optimiser]),
        "paper": "nine schedules ranked, sequential last (Fig. 4)",
        "measured": f"score of the worse task, mean of {count} simultaneous schedules less mean of "
        f"the sequential orders, over pairs {', '.join(settings.pairs)}, {settings.evaluations} "
        f"gradients of {settings.batch} examples each",
        "null": f"{BRITTLE}; and the spread of the simultaneous schedules, best less worst",
        "rule": f"supported: lower limits of the gap above {BRITTLE} and of (gap − spread) above "
        f"0; refuted: upper limit of the gap below {BRITTLE}, where simultaneous schedules end "
        f"more than {BRITTLE} above the start",
    }
