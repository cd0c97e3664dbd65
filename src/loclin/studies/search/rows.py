"""The numbers of a search as tidy rows: forecast, what was observed beside it, and what the test
says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from loclin.run.rows import Row, estimated, finite
from loclin.search.ensemble import ConditionResult, best_of, pass_at
from loclin.search.forecast import Forecast
from loclin.search.scoring import Outcome
from loclin.stats import over_runs

BINS = 24  # of the histogram of gains
LADDER = (1, 2, 5)  # in every decade of N
PER_SEARCH = ("search", "passes", "note")  # what of a number's context may differ between searches


def forecast_rows(
    forecast: Forecast, *, n: int, sigmas: Sequence[float], k: int | None, target_gain: float | None
) -> list[Row]:
    """What the law says before the search, of N candidates at each σ; k is the dimension of the
    basis that they lie in, `target_gain` a gain whose price is asked.
    """
    f = forecast
    estimates = {"loss": f.loss, "trace": f.trace, "frobenius": f.frobenius}
    plain = {
        "dimension": float(forecast.dimension),
        "weights_length": forecast.weights,
        "gradient": forecast.gradient,
        "true_gradient": forecast.true_gradient,
        "along": forecast.along,
        "effective_rank": forecast.effective_rank,
        "edge": forecast.local.edge,
        "best_sigma": forecast.local.best_sigma(n),
    }
    rows = [estimated(quantity, estimate, {}) for quantity, estimate in estimates.items()]
    rows += [Row(quantity=quantity, value=finite(value)) for quantity, value in plain.items()]
    length = math.sqrt(k or forecast.coordinates)  # ‖z‖ of a candidate
    for sigma in sigmas:
        share = sigma * length / forecast.weights if forecast.weights else None
        rows.append(Row(quantity="relative_sigma", value=share, context={"sigma": sigma}))
        for on, fresh in (("select", False), ("other", True)):
            gain = forecast.gain(n, sigma, fresh=fresh)
            rows.append(estimated("expected_gain", gain, {"sigma": sigma, "n": n, "on": on}))
        if target_gain is not None:
            needed = forecast.needed(target_gain, sigma)
            context = {"sigma": sigma, "target_gain": target_gain}
            rows.append(Row(quantity="needed", value=finite(needed), context=context))
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
    drawn but never selected. `loss` is that of the model itself on the same examples.
    """
    for sigma in sigmas:
        here = [o for o in outcomes if o.candidate.sigma == sigma]
        gains = np.array([loss - o.loss for o in here])
        context = {"search": search, "sigma": sigma}
        lost = int(np.isnan(gains).sum())
        yield Row(quantity="not_finite", value=float(lost), context=context)
        right, ns = np.stack([o.right for o in here]), ladder(len(here))
        for n, share in zip(ns, pass_at(right, ns).mean(1), strict=True):
            yield Row(quantity="pass_at", value=float(share), context=context | {"n": n})
        if lost == len(here):
            continue
        for n, gain in zip(ns, best_of(gains, ns), strict=True):
            law = finite(forecast.gain(n, sigma).value) if forecast else None
            yield Row(quantity="best_of_n", value=gain, null=law, context=context | {"n": n})


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
        bins = min(BINS, max(5, math.isqrt(len(gains))))
        heights, edges = (values.tolist() for values in np.histogram(gains, bins, density=True))
        for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True):
            law = None
            if forecast is not None:
                law = _expected_share(forecast, sigma, left, right) / (right - left)
            place = {"sigma": sigma, "gain": (left + right) / 2}
            yield Row(quantity="gain_density", value=height, null=law, context=place)


def compared_rows(results: Sequence[ConditionResult], *, search: int) -> Iterator[Row]:
    """The comparison on the test examples: score and gain of every way to answer, with intervals
    over examples.
    """
    for result in results:
        condition = result.condition
        context = {
            "search": search,
            "arm": condition.name,
            "passes": condition.forward_passes,
            "deployable": True,  # an oracle would need to know which answer is right
            "note": condition.note,
        }
        yield estimated("score", result.score, context)
        yield estimated("gain", result.gain, context, p=result.p)
        yield Row(quantity="p_holm", value=result.p_holm, context=context)


def winner_rows(scores: Sequence[tuple[str, float, float]], *, search: int) -> Iterator[Row]:
    """What selection promised, and what was left: name of each split, the chosen candidate's score
    there, the model's own as null.
    """
    for name, score, own in scores:
        context = {"search": search, "split": name}
        yield Row(quantity="winner", value=score, null=own, context=context)


def over_searches(rows: Sequence[Row]) -> list[Row]:
    """Means over searches, without "search" in their context: what a page draws.

    Their interval is over searches, on one division of the examples. A single search keeps what it
    has: intervals over test examples, and p-values, which have no mean.
    """
    rows = [row for row in rows if "search" in row.context]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kept = {key: value for key, value in row.context.items() if key not in PER_SEARCH}
        groups.setdefault((row.quantity, repr(sorted(kept.items()))), []).append(row)
    single = len({row.context["search"] for row in rows}) == 1
    found = []
    for members in groups.values():
        first, values = members[0], [r.value for r in members if r.value is not None]
        context = {key: value for key, value in first.context.items() if key != "search"}
        nulls = [r.null for r in members if r.null is not None]
        null = float(np.mean(nulls)) if nulls else None
        if single:
            found.append(replace(first, context=context))
        elif first.quantity != "p_holm":
            mean = over_runs(values) if values else None
            found.append(estimated(first.quantity, mean, context, null=null))
    return found


def ladder(most: int) -> list[int]:
    """1, 2, 5, 10, ... and N itself.

    >>> ladder(30)
    [1, 2, 5, 10, 20, 30]
    """
    steps = (step * 10**decade for decade in range(len(str(most))) for step in LADDER)
    return [*(n for n in steps if n < most), most]


def _expected_share(forecast: Forecast, sigma: float, left: float, right: float) -> float:
    local = forecast.local
    bent = sigma**2 * local.frobenius / math.sqrt(2)
    sd = math.hypot(sigma * local.gradient, bent) * math.sqrt(2)
    if sd == 0:
        return 0.0
    mean = -(sigma**2) * local.trace / 2
    return (math.erf((right - mean) / sd) - math.erf((left - mean) / sd)) / 2
