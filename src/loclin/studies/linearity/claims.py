"""The claim of the linearity study, one for each point: a measurement without a verdict, since any
smooth loss is straight over small enough steps (measures §7, §14).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import Estimate, over_models
from loclin.studies.linearity.names import BOTH, GRADIENT, MATCHED, RECOVERY, SIDES, TASK
from loclin.studies.linearity.settings import LinearitySettings, moved
from loclin.studies.names import OPTIMISERS, POINTS, points
from loclin.studies.verdict import Rule, decided, mean, rule

Values = Float[np.ndarray, " S"]


def decide(settings: LinearitySettings, rows: Sequence[Row]) -> list[Claim]:
    """The window at both points."""
    return decided([window(settings, rows, p) for p in points(untouched=settings.untouched)])


def window(settings: LinearitySettings, rows: Sequence[Row], point: str) -> Rule:
    """How far first-order prediction holds along the gradient; beside it, along noise, and how many
    such windows real displacements are long.
    """
    tau, models = settings.tolerance, settings.models

    def of(quantity: str, direction: str) -> Values:
        """The smaller side's value, one per run."""
        return by_run(rows, quantity, sign=BOTH, point=point, direction=direction, tolerance=tau)

    g, m = (over_models(of("window_width", d), models) for d in (GRADIENT, MATCHED))
    sizes = {d: of("log10_window", d) for d in (GRADIENT, MATCHED)}
    ratio = of("log10_prediction_ratio", GRADIENT)
    notes = [
        *_named("ε_τ {} along the gradient", sizes[GRADIENT], models),
        *_named("ε_τ {} along norm-matched noise", sizes[MATCHED], models),
        *_missing(sizes),
        f"decades between the round-off limit and ε_τ: {g} along the gradient, {m} along "
        "norm-matched noise",
        *_named("curvature predicts {} times the measured ε_τ", ratio, models),
        *_change_inside(rows, point, models),
        *_lengths(rows, point, tau, models),
    ]
    return rule(
        settings,
        POINTS[point],
        mean(settings, sizes[GRADIENT]),
        id="first-order-window",
        statement="There is a range of steps in which first-order prediction holds.",
        paper="located on Qwen2.5-0.5B (Fig. 6)",
        measured=f"log10 of the window ε_τ along the gradient, τ = {tau:g}: the largest step, of "
        f"the smaller side, as a share of the {moved(settings.space)}' length",
        null="none: any smooth loss has some window above round-off",
        rule="none: it could not fail; the radius is the number to use",
        verdict="measurement",
        note="; ".join(notes),
    )


def _missing(sizes: dict[str, Values]) -> Iterator[str]:
    for direction, values in sizes.items():
        missing = np.isnan(values).sum()
        name = "the gradient" if direction == GRADIENT else direction
        if missing:
            yield f"in {missing} of {len(values)} runs there is no window along {name}"


def _change_inside(rows: Sequence[Row], point: str, models: int) -> Iterator[str]:
    here = {"point": point, "direction": GRADIENT}
    shares = [by_run(rows, "edge_loss_change", sign=sign, **here) for sign in SIDES]
    both = np.array([s for s in shares if len(s)])
    if both.size and not np.isnan(both).all():
        change = over_models(np.max(both, axis=0), models, "log")
        yield f"inside it the loss changes by up to {change} of itself"


def _lengths(rows: Sequence[Row], point: str, tolerance: float, models: int) -> Iterator[str]:
    """How many windows the real displacements at this point are long."""
    names = {RECOVERY[o]: f"the recovery by {label}" for o, label in OPTIMISERS.items()}
    if point == "pretrained":
        names = {TASK: "a task vector of the same task"}
    contexts = ((r, r.context.get("task")) for r in rows)
    own = [r for r, task in contexts if r.context.get("on", task) == task]
    for direction, name in names.items():
        quantity = "log10_whole_in_windows"
        lengths = by_run(own, quantity, point=point, direction=direction, tolerance=tolerance)
        yield from _named(name + " is {} windows long", lengths, models)


def _named(text: str, logarithms: Values, models: int) -> list[str]:
    """A sentence with the geometric mean, where it is defined in some run."""
    if np.isnan(logarithms).all():
        return []
    e = over_models(logarithms, models)
    with np.errstate(over="ignore"):
        value, low, high = np.power(10.0, [e.value, e.low, e.high]).tolist()
    return [text.format(Estimate(value=value, low=low, high=high, n=e.n))]
