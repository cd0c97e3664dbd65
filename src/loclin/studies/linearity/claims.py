"""The claim that the linearity study decides, one for each point, by a rule written here before any
run (measures §14).

The rule needs an interval clear of its threshold and a p-value below 0.05 after Holm's correction
over the study's claims. Two things have to hold, so p is the larger of the two (intersection-union
test).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from loclin.record import Claim, Row
from loclin.stats import Estimate, mean_above, over_runs
from loclin.studies.linearity.config import Config
from loclin.studies.table import by_run
from loclin.studies.verdict import LABEL, SYMBOL, adjusted, figures, setting, verdict

GRADIENT, MATCHED = "gradient", "norm-matched noise"
LEAST = 1.0  # decades of step sizes that make a range

Values = Float[np.ndarray, " S"]


def decide(config: Config, rows: Sequence[Row]) -> list[Claim]:
    """Both claims, p-values adjusted over the two."""
    return adjusted([window(config, rows, point) for point in SYMBOL])


def window(config: Config, rows: Sequence[Row], point: str) -> Claim:
    """Along the gradient and along noise, first-order prediction holds over more than a decade of
    steps above round-off.
    """
    gradient, noise = (_of(config, rows, "window_width", point, d) for d in (GRADIENT, MATCHED))
    g, m = over_runs(gradient), over_runs(noise)
    tau = config.tolerance
    size = _of(config, rows, "log10_window", point, GRADIENT)
    e = None if np.isnan(size).all() else over_runs(size)
    return Claim(
        id="first-order-window",
        statement="There is a range of steps in which first-order prediction holds.",
        setting=setting(config, SYMBOL[point]),
        paper="located on Qwen2.5-0.5B (Fig. 6)",
        measured=f"log10 of the window ε_τ along the gradient, τ = {tau:g}: the largest step, as a "
        "share of the "
        f"{'factors' if config.space == 'lora' else 'weights'}' length",
        null=f"{LEAST:g} decade between the round-off limit and ε_τ, along the gradient and along "
        "norm-matched noise",
        p=max(mean_above(gradient, LEAST), mean_above(noise, LEAST)),
        p_holm=None,
        rule="width = log10(ε_τ / round-off limit), the smaller of both signs; supported: lower "
        "limits of the widths along the "
        f"gradient and along norm-matched noise both above {LEAST:g}; refuted: upper limit along "
        f"the gradient below {LEAST:g}; "
        "the noise is isotropic within every tensor and has the gradient's norm there, at both "
        "points",
        verdict=verdict(g.low > LEAST and m.low > LEAST, g.high < LEAST),
        note="; ".join(_notes(config, rows, point, e, g, m)),
        **figures(e),  # type: ignore[arg-type]
    )


def _of(config: Config, rows: Sequence[Row], quantity: str, point: str, direction: str) -> Values:
    """The smaller side's value at the τ that decides, one per run."""
    return by_run(
        rows, quantity, point=point, direction=direction, tolerance=config.tolerance, sign="both"
    )


def _notes(
    config: Config,
    rows: Sequence[Row],
    point: str,
    size: Estimate | None,
    gradient: Estimate,
    noise: Estimate,
) -> list[str]:
    here = {"point": point, "direction": GRADIENT}
    notes = [f"widths {gradient} decades along the gradient, {noise} along norm-matched noise"]
    if size:
        notes.insert(0, f"ε_τ {_power(size)} along the gradient")
    for direction in (GRADIENT, MATCHED):
        missing = np.isnan(_of(config, rows, "log10_window", point, direction))
        if missing.any():
            notes.append(
                f"in {missing.sum()} of {len(missing)} runs there is no window along "
                f"{_article(direction)}"
            )
    notes += _named(
        "ε_τ {} along norm-matched noise", _of(config, rows, "log10_window", point, MATCHED)
    )
    notes += _named(
        "curvature predicts {} times the measured ε_τ",
        _of(config, rows, "log10_prediction_ratio", point, GRADIENT),
    )
    shares = [by_run(rows, "edge_loss_change", sign=sign, **here) for sign in ("+", "−")]
    both = np.array([s for s in shares if len(s)])
    if both.size and not np.isnan(both).all():
        notes.append(
            f"inside it the loss changes by up to {over_runs(np.max(both, axis=0))} of itself"
        )
    notes += _lengths(config, rows, point)
    notes.append(
        "any smooth loss has some window above round-off: the radius, not the verdict, is the "
        "number to use"
    )
    return notes


def _article(direction: str) -> str:
    return f"the {direction}" if direction == GRADIENT else direction


def _lengths(config: Config, rows: Sequence[Row], point: str) -> list[str]:
    """How many windows the real displacements at this point are long."""
    if point == "pretrained":
        names = {"task vector": "a task vector of the same task"}
    else:
        names = {f"recovery, {label}": f"the recovery by {label}" for label in LABEL.values()}
    found = []
    for direction, name in names.items():
        chosen = [
            r for r in rows if r.context.get("on", r.context.get("task")) == r.context.get("task")
        ]
        lengths = by_run(
            chosen,
            "log10_whole_in_windows",
            point=point,
            direction=direction,
            tolerance=config.tolerance,
        )
        found += _named(name + " is {} windows long", lengths)
    return found


def _named(text: str, logarithms: Values) -> list[str]:
    """A sentence with the geometric mean, where it is defined in some run."""
    return (
        []
        if not len(logarithms) or np.isnan(logarithms).all()
        else [text.format(_power(over_runs(logarithms)))]
    )


def _power(e: Estimate) -> str:
    """An estimate of a logarithm as the number itself: the geometric mean with its interval."""
    with np.errstate(over="ignore"):
        value, low, high = (float(np.power(10.0, x)) for x in (e.value, e.low, e.high))
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
