"""The rows of a search against numbers by hand: ladder, histogram beside the law, means over
searches.
"""

import math

import numpy as np
import pytest

from loclin import law
from loclin.run.rows import Row
from loclin.search.candidate import Candidate
from loclin.search.ensemble import Condition, compare
from loclin.search.forecast import Forecast
from loclin.search.scoring import Outcome
from loclin.stats import Estimate
from loclin.studies.search.rows import (
    compared_rows,
    forecast_rows,
    histogram_rows,
    ladder,
    observed_rows,
    over_searches,
    winner_rows,
)

KNOWN = Forecast(
    dimension=400,
    weights=5.0,
    coordinates=400,
    loss=Estimate(value=2.0, low=1.8, high=2.2, n=24),
    gradient=1.0,
    true_gradient=0.8,
    trace=Estimate(value=10.0, low=8.0, high=12.0, n=16),
    frobenius=Estimate(value=2.0, low=1.5, high=2.5, n=16),
    along=0.5,
    notes=(),
)


def outcomes(count: int, sigma: float, *, seed: int = 0) -> list[Outcome]:
    """Losses drawn from the law that KNOWN describes."""
    rng = np.random.default_rng(seed)
    sd = math.hypot(sigma, sigma**2 * 2.0 / math.sqrt(2))
    gains = -(sigma**2) * 5.0 + sd * rng.standard_normal(count)
    return [
        Outcome(
            candidate=Candidate(index=i, seed=i, sigma=sigma),
            loss=2.0 - gain,
            right=rng.random(8) < 0.3,
        )
        for i, gain in enumerate(gains)
    ]


def found(rows: list[Row], quantity: str, **context: object) -> list[Row]:
    return [
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    ]


def test_a_forecast_says_gain_length_and_price_at_every_sigma() -> None:
    rows = forecast_rows(KNOWN, n=100, sigmas=[0.01, 0.02], k=None, target_gain=0.01)
    for sigma in (0.01, 0.02):
        (own,), (other,) = (
            found(rows, "expected_gain", sigma=sigma, on=on) for on in ("select", "other")
        )
        assert own.value == KNOWN.gain(100, sigma).value
        assert (own.low, own.high) == (KNOWN.gain(100, sigma).low, KNOWN.gain(100, sigma).high)
        assert other.value == KNOWN.gain(100, sigma, fresh=True).value
        assert found(rows, "relative_sigma", sigma=sigma)[0].value == pytest.approx(sigma * 20 / 5)
        assert found(rows, "needed", sigma=sigma)[0].value == KNOWN.needed(0.01, sigma)
    assert found(rows, "edge")[0].value == pytest.approx(math.sqrt(2) / 2)
    assert found(rows, "best_sigma")[0].value == law.best_sigma(
        gradient=1.0, trace=10.0, n=100, along=0.5
    )
    inside = forecast_rows(KNOWN, n=10, sigmas=[0.01], k=4, target_gain=None)
    assert found(inside, "relative_sigma")[0].value == pytest.approx(0.01 * 2 / 5)
    assert not found(inside, "needed")


def test_what_was_observed_stands_beside_the_law() -> None:
    sigma, every = 0.05, outcomes(2000, 0.05)
    rows = list(observed_rows(every, loss=2.0, sigmas=[sigma], forecast=KNOWN, search=0))
    gains = np.array([2.0 - o.loss for o in every])
    (best,) = found(rows, "best_of_n", n=2000)
    assert best.value == pytest.approx(gains.max())
    (single,) = found(rows, "best_of_n", n=1)
    assert single.value == pytest.approx(gains.mean())
    (ten,) = found(rows, "best_of_n", n=10)
    assert ten.value == pytest.approx(ten.null, rel=0.1)  # the law that made them
    (passed,) = found(rows, "pass_at", n=1)
    assert passed.value == pytest.approx(np.mean([o.right.mean() for o in every]))
    assert found(rows, "not_finite")[0].value == 0


def test_the_histogram_is_a_density_beside_the_normal_law() -> None:
    rows = list(histogram_rows(outcomes(5000, 0.05), loss=2.0, sigmas=[0.05, 0.1], forecast=KNOWN))
    assert {r.context["sigma"] for r in rows} == {0.05}  # none at 0.1
    places = [r.context["gain"] for r in rows]
    width = places[1] - places[0]
    assert sum(r.value * width for r in rows if r.value is not None) == pytest.approx(1)
    assert sum(r.null * width for r in rows if r.null is not None) == pytest.approx(1, abs=0.01)
    for r in rows:
        assert r.value == pytest.approx(
            r.null, abs=5 * math.sqrt((r.null or 0) / (5000 * width)) + 0.05
        )
    assert not list(histogram_rows(outcomes(1, 0.05), loss=2.0, sigmas=[0.05], forecast=None))


def test_losses_that_are_not_finite_are_counted_and_gain_nothing() -> None:
    every = outcomes(4, 0.05)
    broken = [Outcome(candidate=o.candidate, loss=math.nan, right=o.right) for o in every]
    rows = list(
        observed_rows([*every[:3], broken[3]], loss=2.0, sigmas=[0.05], forecast=None, search=1)
    )
    assert found(rows, "not_finite")[0].value == 1
    assert found(rows, "best_of_n", n=4)[0].value == pytest.approx(
        2.0 - min(o.loss for o in every[:3])
    )
    assert found(rows, "best_of_n", n=4)[0].null is None
    none = list(observed_rows(broken, loss=2.0, sigmas=[0.05], forecast=KNOWN, search=1))
    assert found(none, "not_finite")[0].value == 4
    assert not found(none, "best_of_n")
    assert not list(histogram_rows(broken, loss=2.0, sigmas=[0.05], forecast=KNOWN))


def compared(search: int, right: int) -> list[Row]:
    base = Condition(name="the model itself", right=np.arange(40) < 10, forward_passes=1)
    best = Condition(
        name="best candidate",
        right=np.arange(40) < right,
        forward_passes=1 + search,
        note=f"search {search}",
    )
    rows = list(compared_rows(compare([best], base, seed=0), search=search))
    return [*rows, *winner_rows([("select", right / 40, 0.25)], search=search)]


def test_one_search_keeps_its_intervals_and_several_have_them_over_searches() -> None:
    single = over_searches(compared(0, 20))
    (gain,) = found(single, "gain", arm="best candidate")
    original = found(compared(0, 20), "gain", arm="best candidate")[0]
    assert (gain.value, gain.low, gain.high, gain.p) == (
        0.25,
        original.low,
        original.high,
        original.p,
    )
    assert found(single, "p_holm", arm="best candidate")[0].value == original.p
    assert all("search" not in r.context for r in single)
    several = over_searches([*compared(0, 20), *compared(1, 30), *compared(2, 25)])
    (gain,) = found(several, "gain", arm="best candidate")
    assert (gain.value, gain.n, gain.p) == (pytest.approx(0.375), 3, None)
    assert gain.low is not None
    assert gain.low < 0.375
    assert not found(several, "p_holm")
    (winner,) = found(several, "winner", split="select")
    assert (winner.value, winner.null) == (pytest.approx(0.625), 0.25)


def test_the_ladder_ends_with_all_candidates() -> None:
    assert ladder(1) == [1]
    assert ladder(12) == [1, 2, 5, 10, 12]
    assert ladder(1000) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
