"""First-order windows on a page: how far prediction reaches along every direction, as a figure and
a table of radii (measures §7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loclin.record import Row
from loclin.report.figures import PALETTE, defined, draw_dots, select
from loclin.report.section import POINTS, Section, Table, text_of
from loclin.report.words import estimate_text, number

#: Directions whose lines are drawn, with their colours; of the others the window alone is shown.
DRAWN = {
    "gradient": PALETTE[0],
    "norm-matched noise": PALETTE[8],
    "random": PALETTE[4],
    "top curvature 1": PALETTE[1],
    "task vector": PALETTE[2],
    "recovery, SGD": PALETTE[2],
    "recovery, AdamW": PALETTE[3],
    "first updates, SGD": PALETTE[5],
    "first updates, AdamW": PALETTE[6],
}
SIDES = {"+": "forward", "−": "backward"}
STEP = "step ε, as a share of the {}' length"
TASK = "task vector"


def step_of(config: Mapping[str, Any]) -> str:
    """What a step is measured in: with LoRA it is the factors that move."""
    return STEP.format(moved(config))


def moved(config: Mapping[str, Any]) -> str:
    """What a step moves."""
    return "factors" if config["space"] == "lora" else "weights"


def reach(
    rows: Sequence[Row],
    quantity: str = "log10_window",
    opened: str = "window_open",
    mark: str = " (not closed within the steps tried)",
    **there: Any,
) -> str:
    """A window, as a lower bound where not every run saw its end."""
    text, found = power_text(rows, quantity, **there), select(rows, opened, **there)
    return f"≥ {text}{mark}" if found and found[0].value else text


def share_of(rows: Sequence[Row], quantity: str, there: Mapping[str, Any]) -> str:
    """In how many runs something was so, of task vectors in which share of all their tasks; empty
    where in none.
    """
    found = select(rows, quantity, **there)
    share = found[0].value if found else None
    if not share:
        return ""
    if there.get("direction") == TASK:
        return f"in {share:.0%} of the tasks of all runs"
    return f"in {round(share * found[0].n)} of {found[0].n} runs"


def powered(rows: Sequence[Row]) -> list[Row]:
    """Rows of logarithms as the numbers themselves: geometric means over runs, with their
    intervals.
    """
    found = []
    for r in rows:
        value, low, high, null = (
            None if x is None else 10.0**x for x in (r.value, r.low, r.high, r.null)
        )
        found.append(replace(r, value=value, low=low, high=high, null=null))
    return found


def power_text(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    """A logarithm's estimate over runs as the number itself."""
    found = powered(select(rows, quantity, **context))
    return estimate_text(found[0].value, found[0].low, found[0].high) if found else "not defined"


def directions_at(rows: Sequence[Row], point: str) -> list[str]:
    """The directions at a point, in the order of the record."""
    return list(
        dict.fromkeys(
            r.context["direction"]
            for r in rows
            if r.quantity == "slope" and r.context.get("point") == point
        )
    )


def windows(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    """The section."""
    tolerance, figures = config["tolerances"][0], []
    lines: list[str] = []
    for point, symbol in POINTS.items():
        measured = [
            (d, r)
            for d in directions_at(rows, point)
            for r in powered(
                select(
                    rows, "log10_window", point=point, direction=d, tolerance=tolerance, sign="both"
                )
            )
        ]
        if measured:
            predicted = [(d, replace(r, value=r.null, low=None, high=None)) for d, r in measured]
            title = f"First-order window at {symbol}, τ = {tolerance:g}"
            figures.append(
                draw_dots(
                    f"windows-{point}",
                    f"{title}: measured and predicted from curvature.",
                    {"measured": measured, "predicted from curvature": predicted},
                    label=step_of(config),
                    title=title,
                    log=True,
                )
            )
        lines += _unsure_lines(rows, point, tolerance)
    return Section(
        title="How far does first-order prediction reach?",
        question="The window ε_τ: the largest step up to which the loss changes by gradient times "
        f"step to within τ = {tolerance:g} of "
        "it, on the side where that ends first. Does curvature along the line, 2τ|gᵀv|/|vᵀHv|, say "
        "where?",
        figures=figures,
        sees=[
            "Top curvature 1 is the eigenvector of the largest Hessian eigenvalue; prefix j is "
            "what update j of a recovery adds to the "
            "span of those before it.",
            *lines,
        ],
        tables=[_radii(rows, config)],
    )


def _radii(rows: Sequence[Row], config: Mapping[str, Any]) -> Table:
    """Every direction's window, and what bounds it."""
    tolerance, *wider = config["tolerances"]
    header = [
        "direction",
        f"ε_τ, τ = {tolerance:g}",
        "forward",
        "backward",
        "curvature predicts",
        "predicted / measured",
    ]
    header += [f"τ = {other:g}" for other in wider]
    header += ["round-off limit", "decades above it", "loss change inside"]
    found = [
        _radius(
            rows,
            f"{direction} at {symbol}",
            {"point": point, "direction": direction},
            tolerance,
            wider,
        )
        for point, symbol in POINTS.items()
        for direction in directions_at(rows, point)
    ]
    caption = f"Radii: steps as a share of the {moved(config)}' length; geometric means over runs with 95 % intervals, decades plain."
    return Table(caption=caption, header=header, rows=found)


def _radius(
    rows: Sequence[Row],
    name: str,
    here: Mapping[str, Any],
    tolerance: float,
    wider: Sequence[float],
) -> list[str]:
    there = {**here, "tolerance": tolerance, "sign": "both"}
    predicted = powered(select(rows, "log10_window", **there))
    shares = [
        r.value for sign in SIDES for r in select(rows, "edge_loss_change", **here, sign=sign)
    ]
    return [
        name,
        _radius_text(rows, there),
        *(_side(rows, there, sign) for sign in SIDES),
        number(predicted[0].null) if predicted else "–",
        power_text(rows, "log10_prediction_ratio", **there),
        *(_radius_text(rows, {**there, "tolerance": other}) for other in wider),
        power_text(rows, "log10_limit", **here, tolerance=tolerance),
        text_of(rows, "window_width", **there),
        number(max(map(defined, shares))) if shares else "–",
    ]


def _radius_text(rows: Sequence[Row], there: Mapping[str, Any]) -> str:
    return (
        reach(rows, mark="", **there)
        if select(rows, "log10_window", **there)
        else "none above round-off"
    )


def _side(rows: Sequence[Row], there: Mapping[str, Any], sign: str) -> str:
    found = powered(select(rows, "log10_window", **{**there, "sign": sign}))
    return number(found[0].value) if found else "none"


def _unsure_lines(rows: Sequence[Row], point: str, tolerance: float) -> Iterator[str]:
    """Where there is no window in some runs, or one that is only known from one side."""
    for direction in directions_at(rows, point):
        there = {"point": point, "direction": direction, "tolerance": tolerance, "sign": "both"}
        name = f"{direction[0].upper()}{direction[1:]} at {POINTS[point]}"
        if not select(rows, "log10_window", **there):
            limit = power_text(
                rows, "log10_limit", **{k: v for k, v in there.items() if k != "sign"}
            )
            yield f"{name}: no window above round-off (ε = {limit}) in any run."
            continue
        missing, opened = (
            share_of(rows, quantity, there) for quantity in ("no_window", "window_open")
        )
        if missing:
            yield f"{name}: {missing} there is no window above round-off; ε_τ is of the others."
        if opened:
            yield f"{name}: {opened} the window reaches beyond the last step tried."
