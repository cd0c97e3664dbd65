"""Which schedule leaves the worst task best: a ranking by paired runs, and a recommendation
(measures §12, §14).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Row, by_run, estimated
from loclin.schedules.names import REFERENCE, family
from loclin.stats import Estimate, by_model, holm, mean_above, mean_differs, over_models, over_runs
from loclin.studies.schedules import names as n
from loclin.studies.verdict import LEVEL

#: What needs no more than an order of the data, the plainest first.
PLAIN = (REFERENCE, "alternating")
#: How much worse than the best a plain schedule may be and still be recommended, in score; set
#: beforehand.
MARGIN = 0.05
#: Runs below which a difference that is the same in all of them is no sign of certainty: scores are
#: shares of a few examples, and tie.
ENOUGH_RUNS = 5

Values = Float[np.ndarray, " S"]
Context = Mapping[str, Any]


def ranking_rows(rows: Sequence[Row], context: Context, models: int = 1) -> list[Row]:
    """The place of every schedule, the best first (ties in the order of the record), and its
    worst-task score less the reference's, paired by run. Runs on one of several models are averaged
    first.

    The reference is joint mixed, or the first schedule where that was not run. p is two-sided, of
    no difference; p after Holm is adjusted over all schedules.
    """
    worst = _by_schedule(rows, n.WORST, context)
    if not worst:
        return []
    reference = REFERENCE if REFERENCE in worst else next(iter(worst))
    less = {
        name: by_model(worst[name] - worst[reference], models)
        for name in worst
        if name != reference
    }
    p = {name: 1.0 if _tied(values) else mean_differs(values) for name, values in less.items()}
    adjusted = _holm(p)
    found = []
    means = {name: over_models(values, models, "score") for name, values in worst.items()}
    for place, name in enumerate(sorted(means, key=lambda s: -means[s].value), start=1):
        here, runs = _of(name, context), means[name].n
        found.append(Row(quantity=n.PLACE, value=float(place), n=runs, context=here))
        if name != reference:
            here = {**here, "reference": reference}
            found.append(estimated(n.DIFFERENCE, _difference(less[name]), here, p=p[name]))
            found.append(Row(quantity=n.DIFFERENCE_P, value=adjusted[name], n=runs, context=here))
    return found


def recommendation_rows(rows: Sequence[Row], context: Context, models: int = 1) -> list[Row]:
    """What to train by: a plain schedule that is shown to be less than `MARGIN` worse than the
    best; the best where none is; none where not even the best is shown to teach the worst task.

    The best is chosen on validation examples; plain schedules are held against it on test examples,
    paired by run, by a one-sided t-test against −`MARGIN`, adjusted by Holm over the plain ones.
    Every other schedule is then better or worse than the recommended one, or not told apart from
    it, by its interval on test examples.
    """
    chosen, tested = (
        {name: by_model(values, models) for name, values in _by_schedule(rows, q, context).items()}
        for q in (n.VALIDATED_WORST, n.WORST)
    )
    best = max(chosen, key=lambda name: float(chosen[name].mean()))
    found = [estimated(n.BEST, over_runs(chosen[best]), _of(best, context))]
    gained = tested[best] - by_model(by_run(rows, n.FIRST_WORST, **context), models)
    nothing = mean_above(gained, 0.0)
    plain = len(gained) == 1 or (_tied(gained) and gained[0] > MARGIN)  # there is no spread
    if nothing >= LEVEL and not plain:
        return [*found, estimated(n.RECOMMENDED, None, {**context, "schedule": None}, p=nothing)]
    less = {name: tested[name] - tested[best] for name in PLAIN if name in tested and name != best}
    p = _holm({s: 1.0 if _tied(v) else mean_above(v, -MARGIN) for s, v in less.items()})
    shown = [name for name in less if p[name] < LEVEL and best != PLAIN[0]]
    taken = shown[0] if shown else best
    behind = _difference(less[taken]) if shown else None
    here, null = _of(taken, context), -MARGIN if shown else None
    if behind is None:  # they are one
        found.append(Row(quantity=n.RECOMMENDED, value=0.0, n=len(gained), context=here))
    else:
        found.append(estimated(n.RECOMMENDED, behind, here, null=null, p=p[taken]))
    for name in tested:
        if name != taken:
            e = _difference(tested[name] - tested[taken])
            relation = n.BETTER if e.low > 0 else n.WORSE if e.high < 0 else n.ALIKE
            there = {**_of(name, context), "relation": relation}
            found.append(estimated(n.LESS_RECOMMENDED, e, there))
    return found


def leader_stands_out(rows: Sequence[Row], context: Context, models: int = 1) -> bool:
    """Whether the schedule that is best on validation examples is told from the second best there,
    by the interval of their paired difference over runs.
    """
    worst = _by_schedule(rows, n.VALIDATED_WORST, context)
    values = sorted((by_model(v, models) for v in worst.values()), key=lambda v: -float(v.mean()))
    return len(values) < 2 or _difference(values[0] - values[1]).low > 0


def _by_schedule(rows: Sequence[Row], quantity: str, context: Context) -> dict[str, Values]:
    """By schedule, a quantity's values in the order of the runs."""
    names = dict.fromkeys(r.context["schedule"] for r in rows if r.quantity == quantity)
    found = {name: by_run(rows, quantity, schedule=name, **context) for name in names}
    return {name: values for name, values in found.items() if len(values)}


def _of(name: str, context: Context) -> dict[str, Any]:
    return {**context, "schedule": name, "family": family(name)}


def _holm(p: Mapping[str, float]) -> dict[str, float]:
    return dict(zip(p, holm(list(p.values())), strict=True))


def _difference(values: Values) -> Estimate:
    """Mean of paired differences; without an interval where a few runs all gave the same."""
    e = over_runs(values)
    return Estimate(value=e.value, low=-np.inf, high=np.inf, n=e.n) if _tied(values) else e


def _tied(values: Values) -> bool:
    return len(values) < ENOUGH_RUNS and float(np.ptp(values)) < 1e-9
