"""Planted studies of random search: rows as a run makes them, of worlds whose truth is known."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loclin.run.rows import Row
from loclin.studies.search import names
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.verdict import Rule
from tests.properties import verdict_of

#: Twelve runs on six models; eight on four.
SETTINGS = SearchClaimsSettings()
FEWER = SearchClaimsSettings(model="statements", seeds=8, models_per_claim=4)
#: Rows of one run, from the random numbers of the run, its number, and its model's own luck.
World = Callable[[np.random.Generator, int, float], list[Row]]


def row(quantity: str, value: float, null: float | None = None, **context: Any) -> Row:
    return Row(quantity=quantity, value=float(value), null=null, context=context)


def study(world: World, settings: SearchClaimsSettings, draw: int) -> list[Row]:
    """All runs of one study; runs on one model share its luck, a standard normal number."""
    rng = np.random.default_rng([draw, 7])
    luck = rng.standard_normal(settings.models)
    runs = range(settings.seeds)
    return [r for run in runs for r in world(rng, run, float(luck[run % settings.models]))]


def verdicts(
    world: World,
    rule: Callable[[SearchClaimsSettings, Sequence[Row]], Rule],
    settings: SearchClaimsSettings = SETTINGS,
    draws: int = 200,
) -> dict[str, float]:
    """How often one claim, alone, has each verdict."""
    rules = (rule(settings, study(world, settings, draw)) for draw in range(draws))
    words = [verdict_of(r) for r in rules]
    return {word: words.count(word) / draws for word in sorted({*words})}


def law_rows(
    rng: np.random.Generator,
    run: int,
    *,
    point: str,
    gain: Callable[[np.ndarray], np.ndarray],
    bent: float = 0.18,
    spaces: float = 1.0,
) -> list[Row]:
    """Errors of the study's size. `gain` is the truth over the slope's gain, from what the law says
    of it, 1 − c; `bent` is c at σ = 0.2 of the reference; subspaces gain `spaces` times that.
    """
    here: dict[str, Any] = {"run": run, "point": point}
    trace = 1 + 0.09 * rng.standard_normal()  # of the probes behind tr H

    def errors(c: np.ndarray, scatter: np.ndarray, factor: float, over: str) -> list[Row]:
        law = 1 - c * trace
        found = factor * gain(1 - c) + np.abs(scatter) * rng.standard_normal(len(c))
        return [
            row("law_error", np.abs(found - law).mean(), over=over, **here),
            row("linear_error", np.abs(found - 1).mean(), over=over, **here),
            row("second_order_error", np.abs(found - law).mean(), over=over, **here),
            row("law_bias", (found / law - 1).mean(), over=over, **here),
        ]

    c = bent * np.array([0.15, 1.0, 2.5])
    many = bent * rng.uniform(1.5, 2.5, 3)
    rows = errors(c, 0.2 * c, 1.0, names.OVER_SIZES)
    rows += errors(many, np.full(3, 0.06), spaces, names.OVER_SPACES)
    rows += errors(c, 0.2 * c, 1.0, names.OVER_ALL)
    return [*rows, row("log10_edge_ratio", 0.1 * rng.standard_normal(), **here)]


#: Logarithms of what the law expects of seven subspaces at their own best σ, as in a single run.
EXPECTED = np.array([-2.8, -0.9, -3.5, -2.5, -5.2, -3.8, -3.2])


def space_rows(
    rng: np.random.Generator, run: int, gains: Callable[[np.ndarray], np.ndarray]
) -> list[Row]:
    """Seven subspaces whose gains, as logarithms, follow from the law's."""
    law = EXPECTED + 0.4 * rng.standard_normal(7)
    found = gains(law) + 0.2 * rng.standard_normal(7)
    rows = [row("density_ratio", 1.0, run=run)]
    for i in range(7):
        values = {"best_gain": found[i], "best_gain_law": law[i], "signal_density": law[i]}
        for quantity, value in (values | {"equal_radius_gain": found[i]}).items():
            rows.append(row(quantity, np.exp(value), run=run, space=str(i)))
    return rows


def candidate_rows(
    rng: np.random.Generator, run: int, quantity: str, r: float, n: int = 100
) -> list[Row]:
    """Candidates whose gain is correlated with a quantity to r."""
    x = rng.standard_normal(n)
    gain = r * x + np.sqrt(1 - r**2) * rng.standard_normal(n)
    rows = [row("alignment_correlation", 0.9, 0.9, run=run, point="damaged", of="loss", size=1.0)]
    for i in range(n):
        rows.append(row(quantity, x[i], run=run, candidate=i))
        rows.append(row("candidate_gain", gain[i], run=run, candidate=i))
    return rows


def vote_rows(
    rng: np.random.Generator, run: int, scores: dict[tuple[str, int], float], level: float = 0.0
) -> list[Row]:
    """Scores of every way to answer 96 examples, some of them hard for all ways; on 30 % of them
    each way has its own luck. A run's own level is added to all.
    """
    hard, rows = rng.uniform(size=96), list[Row]()
    for (arm, k), p in scores.items():
        met = np.where(rng.uniform(size=96) < 0.3, rng.uniform(size=96), hard)
        rows.append(row("table_score", np.mean(met < p + level), run=run, arm=arm, votes=k))
    return rows
