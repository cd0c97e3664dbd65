"""The numbers of a search as tidy rows: forecast, what was observed beside it, and what the test
says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loclin.record import Row, estimated, finite
from loclin.search.ensemble import ArmRow, best_of, pass_at
from loclin.search.forecast import Forecast
from loclin.search.scoring import Outcome
from loclin.stats import Estimate, over_runs

BINS = 24  # of the histogram of gains
LADDER = (1, 2, 5)  # in every decade of N
PER_SEARCH = ("search", "passes", "note")  # what of a number's context may differ between searches


def forecast_rows(
    forecast: Forecast, *, n: int, sigmas: Sequence[float], k: int | None, wish: float | None
) -> list[Row]:
    """What the law says before the search.

    Args:
        forecast: at the model's own weights.
        n: N at each σ.
        sigmas: σ.
        k: dimensions of the basis that candidates lie in, or None.
        wish: a gain whose price is asked.
    """
    spread = 1.96 * forecast.loss_sd
    loss = Estimate(
        value=forecast.loss, low=forecast.loss - spread, high=forecast.loss + spread, n=1
    )
    rows = [
        estimated("loss", loss, {}),
        estimated("trace", forecast.trace, {}),
        estimated("frobenius", forecast.frobenius, {}),
    ]
    plain = {
        "dimension": float(forecast.dimension),
        "weights_length": forecast.weights,
        "gradient": forecast.gradient,
        "true_gradient": forecast.true_gradient,
        "along": forecast.along,
        "effective_rank": forecast.effective_rank,
        "edge": forecast.edge,
        "best_sigma": forecast.best_sigma(n),
    }
    rows += [Row(quantity=quantity, value=finite(value)) for quantity, value in plain.items()]
    for sigma in sigmas:
        rows.append(_relative(forecast, sigma, k))
        for on, fresh in (("select", False), ("other", True)):
            context = {"sigma": sigma, "n": n, "on": on}
            rows.append(estimated("expected_gain", forecast.gain(n, sigma, fresh=fresh), context))
        if wish is not None:
            needed = forecast.needed(wish, sigma)
            rows.append(
                Row(
                    quantity="needed",
                    value=None if needed is None else float(needed),
                    context={"sigma": sigma, "wish": wish},
                )
            )
    return rows


def observed_rows(
    outcomes: Sequence[Outcome],
    *,
    loss: float,
    sigmas: Sequence[float],
    forecast: Forecast | None,
    search: int,
) -> Iterator[Row]:
    """What the candidates of one search did on the select examples, at every σ, beside the law
    where there is a forecast.

    Gains are in nats per answer token, those of the candidate with the lowest loss; the mean over
    all draws of n of the N candidates (`ensemble.best_of`). Candidates whose loss is not finite are
    drawn but never selected.

    Args:
        outcomes: the ledger.
        loss: of the model itself on the same examples.
        sigmas: σ.
        forecast: or None.
        search: which search.
    """
    for sigma in sigmas:
        here = [o for o in outcomes if o.candidate.sigma == sigma]
        gains = np.array([loss - o.loss for o in here])
        context = {"search": search, "sigma": sigma}
        counted = gains[np.isfinite(gains)]
        yield Row(quantity="not_finite", value=float(len(gains) - len(counted)), context=context)
        right = np.stack([o.right for o in here])
        ns = ladder(len(here))
        for n, share in zip(ns, pass_at(right, ns).mean(1), strict=True):
            yield Row(quantity="pass_at", value=float(share), context=context | {"n": n})
        if not len(counted):
            continue
        for n, gain in zip(ns, best_of(gains, ns), strict=True):
            expected = forecast.gain(n, sigma).value if forecast else None
            yield Row(
                quantity="best_of_n", value=gain, null=finite(expected), context=context | {"n": n}
            )


def histogram_rows(
    outcomes: Sequence[Outcome], *, loss: float, sigmas: Sequence[float], forecast: Forecast | None
) -> Iterator[Row]:
    """Density of the gains of all searches' candidates at every σ, in equal bins.

    Null: the law's, normal with mean −σ² tr H/2 and variance σ²‖g‖² + σ⁴‖H‖_F²/2.
    """
    for sigma in sigmas:
        gains = np.array([loss - o.loss for o in outcomes if o.candidate.sigma == sigma])
        gains = gains[np.isfinite(gains)]
        if len(gains) < 2 or not gains.max() > gains.min():
            continue
        heights, edges = np.histogram(
            gains, bins=min(BINS, max(5, math.isqrt(len(gains)))), density=True
        )
        for height, left, right in zip(
            heights.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True
        ):
            expected = (
                None
                if forecast is None
                else _expected_share(forecast, sigma, left, right) / (right - left)
            )
            place = {"sigma": sigma, "gain": (left + right) / 2}
            yield Row(quantity="gain_density", value=height, null=expected, context=place)


def compared_rows(table: Sequence[ArmRow], *, search: int) -> Iterator[Row]:
    """The comparison on the test examples: score and gain of every arm, with intervals over
    examples.
    """
    for arm in table:
        context: dict[str, Any] = {
            "search": search,
            "arm": arm.name,
            "passes": arm.forward_passes,
            "deployable": arm.deployable,
            "note": arm.note,
        }
        yield estimated("score", arm.score, context)
        yield estimated("gain", arm.gain, context, p=arm.p)
        yield Row(quantity="p_holm", value=arm.p_holm, context=context)


def winner_rows(scores: Sequence[tuple[str, float, float]], *, search: int) -> Iterator[Row]:
    """The chosen candidate's score on each split, beside the model's own as null: what selection
    promised, and what was left.

    Args:
        scores: name of the split, the winner's score, the model's own.
        search: which search.
    """
    for name, score, own in scores:
        yield Row(
            quantity="winner", value=score, null=own, context={"search": search, "split": name}
        )


def over_searches(rows: Sequence[Row]) -> list[Row]:
    """Means over searches, without "search" in their context: what a page draws.

    Their interval is over searches, on one division of the examples. A single search keeps what it
    has: intervals over test examples, and p-values, which have no mean.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "search" in row.context:
            kept = {key: value for key, value in row.context.items() if key not in PER_SEARCH}
            groups.setdefault((row.quantity, repr(sorted(kept.items()))), []).append(row)
    found = []
    for members in groups.values():
        first, values = members[0], [r.value for r in members if r.value is not None]
        context = {key: value for key, value in first.context.items() if key != "search"}
        nulls = [r.null for r in members if r.null is not None]
        null = float(np.mean(nulls)) if nulls else None
        if len({r.context["search"] for r in rows if "search" in r.context}) == 1:
            found.append(replace(first, context=context))
        elif first.quantity != "p_holm":
            found.append(
                estimated(first.quantity, over_runs(values) if values else None, context, null=null)
            )
    return found


def ladder(most: int) -> list[int]:
    """1, 2, 5, 10, ... and N itself.

    >>> ladder(30)
    [1, 2, 5, 10, 20, 30]
    """
    steps = (step * 10**decade for decade in range(len(str(most))) for step in LADDER)
    return [*(n for n in steps if n < most), most]


def _expected_share(forecast: Forecast, sigma: float, left: float, right: float) -> float:
    trace = forecast.trace.value if forecast.trace else 0.0
    bent = forecast.frobenius.value if forecast.frobenius else 0.0
    sd = math.hypot(sigma * forecast.gradient, sigma**2 * bent / math.sqrt(2)) * math.sqrt(2)
    if sd == 0:
        return 0.0
    mean = -(sigma**2) * trace / 2
    return (math.erf((right - mean) / sd) - math.erf((left - mean) / sd)) / 2


def _relative(forecast: Forecast, sigma: float, k: int | None) -> Row:
    """σ√D/‖θ‖, the length of a candidate's step as a share of the weights' (√k in a basis)."""
    share = (
        sigma * math.sqrt(k or forecast.coordinates) / forecast.weights
        if forecast.weights
        else None
    )
    return Row(quantity="relative_sigma", value=share, context={"sigma": sigma})
