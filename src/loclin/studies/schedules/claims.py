"""The claim of the schedules study and the rule that decides it, written before the first run
(measures §12, §14).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.record import Claim, Row
from loclin.schedules.terms import SEQUENTIAL, SIMULTANEOUS
from loclin.stats import mean_above, over_runs
from loclin.studies.schedules.config import Config
from loclin.studies.table import by_run
from loclin.studies.verdict import LABEL, adjusted, figures, setting, verdict

#: How much lower the worst task has to end after sequential training, in score; set beforehand.
#: With two options it is 0.4 of the way from guessing to all right.
BRITTLE = 0.2
Values = Float[np.ndarray, " S"]


def decide(config: Config, rows: Sequence[Row]) -> list[Claim]:
    """The claim for every optimiser, adjusted over them."""
    return adjusted(
        [sequential_brittle(config, rows, optimiser) for optimiser in config.optimisers]
    )


def sequential_brittle(config: Config, rows: Sequence[Row], optimiser: str) -> Claim:
    """One after the other the worse task ends far lower than by simultaneous schedules, which
    differ by less than that.

    Worst-task scores are averaged over pairs within a run. The spread of the simultaneous
    schedules, best less worst, is biased upwards by noise: it can keep a claim from being
    supported, never refute it. Nor does training that taught nothing.
    """
    names = [n for n in SIMULTANEOUS if n in config.named]
    orders = [n for n in SEQUENTIAL if n in config.named]
    if len(names) < 2 or len(orders) < 2:
        return _undecided(config, optimiser)

    def worst(schedule: str, pair: str = "all") -> Values:
        return by_run(rows, "worst_score", schedule=schedule, pair=pair, optimiser=optimiser)

    together = np.array([worst(n) for n in names])
    sequential = np.mean([worst(n) for n in orders], axis=0)
    gap, spread = together.mean(0) - sequential, together.max(0) - together.min(0)
    first = by_run(rows, "first_worst_score", pair="all", optimiser=optimiser)
    e, beyond, s = over_runs(gap), over_runs(gap - spread), over_runs(sequential)
    learned = over_runs(together.mean(0) - first)
    kinds = "; ".join(
        f"{pair} pairs {over_runs(np.mean([worst(n, pair) for n in names], axis=0))} against "
        f"{over_runs(np.mean([worst(n, pair) for n in orders], axis=0))}"
        for pair in config.pairs
    )
    return Claim(
        **_stated(config, optimiser, len(names)),
        p=max(mean_above(gap, BRITTLE), mean_above(gap - spread, 0.0)),
        p_holm=None,
        verdict=verdict(
            e.low > BRITTLE and beyond.low > 0, e.high < BRITTLE and learned.low > BRITTLE
        ),
        note=f"one after the other {s}, {len(names)} simultaneous schedules "
        f"{over_runs(together.mean(0))}; best less worst of them "
        f"{over_runs(spread)}, which the gap exceeds by {beyond}; above the start {learned}; "
        f"{kinds}" + _after(config, rows, optimiser, orders),
        **figures(e),  # type: ignore[arg-type]
    )


def _after(config: Config, rows: Sequence[Row], optimiser: str, orders: Sequence[str]) -> str:
    """What the sequential schedules leave of the task trained first: whether it is that one which
    is lost.
    """
    first = {"sequential": "A", "sequential reversed": "B"}
    scores = []
    for order in orders:
        each = [
            by_run(rows, "score", schedule=order, role=first[order], pair=pair, optimiser=optimiser)
            for pair in config.pairs
        ]
        scores.append(np.mean(each, axis=0))
    return f"; the task trained first ends at {over_runs(np.mean(scores, axis=0))}"


def _stated(config: Config, optimiser: str, count: int) -> dict[str, Any]:
    return {
        "id": "sequential-brittle",
        "statement": "Training two tasks one after the other leaves the worse one far lower than "
        "both at once, by whichever schedule.",
        "setting": setting(config, LABEL[optimiser]),
        "paper": "nine schedules ranked, sequential last (Fig. 4)",
        "measured": f"score of the worse task, mean of {count} simultaneous schedules less mean of "
        "the sequential orders, over pairs "
        f"{', '.join(config.pairs)}, {config.evaluations} gradients of {config.batch} examples "
        "each",
        "null": f"{BRITTLE}; and the spread of the simultaneous schedules, best less worst",
        "rule": f"supported: lower limits of the gap above {BRITTLE} and of (gap − spread) above "
        "0; refuted: upper limit of the gap "
        f"below {BRITTLE}, where simultaneous schedules end more than {BRITTLE} above the start",
    }


def _undecided(config: Config, optimiser: str) -> Claim:
    return Claim(
        **_stated(config, optimiser, 0),
        value=None,
        low=None,
        high=None,
        n=0,
        p=None,
        p_holm=None,
        verdict="not run",
        note="needs two simultaneous schedules and both sequential ones among --schedules",
    )
