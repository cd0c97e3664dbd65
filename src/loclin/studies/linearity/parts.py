"""What the pages of linearity and radius have in common: figures over the size of a step, windows
and whole steps in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, select
from loclin.report.section import first, text_of
from loclin.report.words import estimate_text, number
from loclin.run.rows import Row

Rows = Sequence[Row]
#: Figures along a line: caption, vertical axis, title.
LINES = {
    "loss_change": ("Loss change (dashed: predicted)", "|ΔL|, nats a token", "Loss change"),
    "error": ("Relative error of the prediction", "|ΔL − εgᵀv| / |εgᵀv|", "Error"),
    "score": ("Score on the task", "score", "Score"),
}


def over_steps(
    name: str, caption: str, curves: Sequence[Curve], *, labels: tuple[str, str], title: str
) -> Drawing:
    """Curves over the step, both axes logarithmic; scores from 0 to 1."""
    axes: dict[str, Any] = {"over": "step", "labels": labels, "decades": True}
    if labels[1] != "score":
        axes |= {"limits": None, "log": (True, True)}
    return draw_curves(name, caption, [c for c in curves if c.rows], title=title, **axes)


def line_figure(
    name: str,
    rows: Rows,
    quantity: str,
    drawn: Mapping[str, tuple[str, Mapping[str, Any]]],
    settings: Mapping[str, Any],
    *,
    rounding: float | None,
    where: str,
    step: str,
) -> Drawing:
    """One of `LINES`, with predicted changes, or tolerances and round-off, dashed.

    Args:
        rows: sizes of loss changes, errors and scores.
        drawn: colour and context of every curve by its label; the first has a band.
        rounding: round-off's error times the step.
        where: point and side, in words.
        step: label of the horizontal axis.
    """
    caption, label, title = LINES[quantity]
    curves = list[Curve]()
    for of, (colour, context) in drawn.items():
        found = select(rows, quantity, **context)
        curves.append(Curve(rows=found, label=of, colour=colour, band=not curves))
        if quantity == "loss_change":
            nulls = [replace(r, value=r.null) for r in found if r.null is not None]
            curves.append(dashed(nulls, "", colour))
    if quantity == "error":
        steps, errors = curves[0].rows, [r.value for curve in curves for r in curve.rows if r.value]
        drowned = [_level(r, (rounding or 0.0) / r.context["step"]) for r in steps]
        seen = [r for r in drowned if r.value and r.value >= min([1.0, *errors]) / 3]
        curves += [*tolerance_curves(steps, settings), dashed(seen, "round-off", "#000000")]
    return over_steps(
        name,
        f"{caption} against the step, {where}.",
        curves,
        labels=(step, label),
        title=f"{title}, {where}",
    )


def dashed(rows: Rows, label: str, colour: str) -> Curve:
    """What is not measured: a prediction, a tolerance, round-off."""
    return Curve(rows=rows, label=label, colour=colour, dashed=True, band=False)


def tolerance_curves(steps: Rows, settings: Mapping[str, Any]) -> list[Curve]:
    """τ at these rows' steps."""
    tolerances = settings.get("tolerances") or [settings["tolerance"]]
    levels = {f"τ = {t:g}": [_level(r, t) for r in steps] for t in tolerances}
    return [dashed(rows, label, PALETTE[8]) for label, rows in levels.items()]


def _level(row: Row, value: float) -> Row:
    return replace(row, value=value, low=None, high=None)


def effect_text(rows: Rows, **context: Any) -> str:
    """What a whole displacement does, beside what its gradient says."""
    text, change = "The loss there is not finite", first(rows, "whole_loss_change", **context)
    if change:
        text = f"The loss changes by {estimate_text(change.value, change.low, change.high)}, "
        text += f"where the gradient says {number(change.null)} (relative error "
        text += f"{text_of(rows, 'whole_error', **context)})"
    if score := first(rows, "whole_score", **context):
        after = text_of(rows, "whole_score", **context)
        text += f"; the score goes from {number(score.null)} to {after}"
    return text
