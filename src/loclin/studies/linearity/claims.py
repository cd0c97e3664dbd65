"""The claim that the linearity study decides, one for each point, by a rule written here before any
run (measures §14).

Two things have to hold, so p is the larger of the two (intersection-union test).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import Estimate, mean_above, over_runs
from loclin.studies.linearity.names import BOTH, GRADIENT, MATCHED, RECOVERY, SIDES, TASK
from loclin.studies.linearity.settings import LinearitySettings
from loclin.studies.names import OPTIMISERS, POINTS
from loclin.studies.verdict import adjusted, figures, setting, verdict

LEAST = 1.0  # decades of step sizes that make a range
Values = Float[np.ndarray, " S"]


def decide(settings: LinearitySettings, rows: Sequence[Row]) -> list[Claim]:
    """Both claims, p-values adjusted over the two."""
    return adjusted([window(settings, rows, point) for point in POINTS])


def window(settings: LinearitySettings, rows: Sequence[Row], point: str) -> Claim:
    """Along the gradient and along noise, first-order prediction holds over more than a decade of
    steps above round-off.
    """
    tau = settings.tolerance

    def of(quantity: str, direction: str) -> Values:
        """The smaller side's value, one per run."""
        return by_run(rows, quantity, sign=BOTH, point=point, direction=direction, tolerance=tau)

    widths = {d: of("window_width", d) for d in (GRADIENT, MATCHED)}
    sizes = {d: of("log10_window", d) for d in (GRADIENT, MATCHED)}
    g, m = map(over_runs, widths.values())
    e = None if np.isnan(sizes[GRADIENT]).all() else over_runs(sizes[GRADIENT])
    notes = [f"ε_τ {_power(e)} along the gradient"] if e else []
    notes.append(f"widths {g} decades along the gradient, {m} along norm-matched noise")
    notes += _missing(sizes)
    notes += _named("ε_τ {} along norm-matched noise", sizes[MATCHED])
    ratio = of("log10_prediction_ratio", GRADIENT)
    notes += _named("curvature predicts {} times the measured ε_τ", ratio)
    notes += [*_change_inside(rows, point), *_lengths(rows, point, tau)]
    notes.append(
        "any smooth loss has some window above round-off: the radius, not the verdict, is the "
        "number to use"
    )
    return Claim(
        id="first-order-window",
        statement="There is a range of steps in which first-order prediction holds.",
        setting=setting(settings, POINTS[point]),
        paper="located on Qwen2.5-0.5B (Fig. 6)",
        measured=f"log10 of the window ε_τ along the gradient, τ = {tau:g}: the largest step, as a "
        f"share of the {settings.moved}' length",
        null=f"{LEAST:g} decade between the round-off limit and ε_τ, along the gradient and along "
        "norm-matched noise",
        p=max(mean_above(values, LEAST) for values in widths.values()),
        p_holm=None,
        rule="width = log10(ε_τ / round-off limit), the smaller of both signs; supported: lower "
        f"limits of the widths along the gradient and along norm-matched noise both above {LEAST:g}"
        f"; refuted: upper limit along the gradient below {LEAST:g}; the noise is isotropic within "
        "every tensor and has the gradient's norm there, at both points",
        verdict=verdict(g.low > LEAST and m.low > LEAST, g.high < LEAST),
        note="; ".join(notes),
        **figures(e),  # type: ignore[arg-type]
    )


def _missing(sizes: dict[str, Values]) -> Iterator[str]:
    for direction, values in sizes.items():
        missing, name = (
            np.isnan(values).sum(),
            "the gradient" if direction == GRADIENT else direction,
        )
        if missing:
            yield f"in {missing} of {len(values)} runs there is no window along {name}"


def _change_inside(rows: Sequence[Row], point: str) -> Iterator[str]:
    here = {"point": point, "direction": GRADIENT}
    shares = [by_run(rows, "edge_loss_change", sign=sign, **here) for sign in SIDES]
    both = np.array([s for s in shares if len(s)])
    if both.size and not np.isnan(both).all():
        yield f"inside it the loss changes by up to {over_runs(np.max(both, axis=0))} of itself"


def _lengths(rows: Sequence[Row], point: str, tolerance: float) -> Iterator[str]:
    """How many windows the real displacements at this point are long."""
    names = {RECOVERY[o]: f"the recovery by {label}" for o, label in OPTIMISERS.items()}
    if point == "pretrained":
        names = {TASK: "a task vector of the same task"}
    contexts = ((r, r.context.get("task")) for r in rows)
    own = [r for r, task in contexts if r.context.get("on", task) == task]
    for direction, name in names.items():
        quantity = "log10_whole_in_windows"
        lengths = by_run(own, quantity, point=point, direction=direction, tolerance=tolerance)
        yield from _named(name + " is {} windows long", lengths)


def _named(text: str, logarithms: Values) -> list[str]:
    """A sentence with the geometric mean, where it is defined in some run."""
    if np.isnan(logarithms).all():
        return []
    return [text.format(_power(over_runs(logarithms)))]


def _power(e: Estimate) -> str:
    """An estimate of a logarithm as the number itself: the geometric mean with its interval."""
    with np.errstate(over="ignore"):
        value, low, high = (float(np.power(10.0, x)) for x in (e.value, e.low, e.high))
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
