"""The linearity study on a page: how the loss changes along straight lines, where first-order
prediction ends, and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from loclin.record import Row
from loclin.report.figures import PALETTE, Curve, Drawing, defined, draw_curves, draw_dots, select
from loclin.report.radii import (
    DRAWN,
    SIDES,
    TASK,
    directions_at,
    moved,
    power_text,
    powered,
    reach,
    share_of,
    step_of,
    windows,
)
from loclin.report.section import POINTS, Section, text_of
from loclin.report.words import estimate_text, number

GREY = "#555555"


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The study's sections in reading order."""
    return [
        _lines(rows, config),
        windows(rows, config),
        _wholes(rows, config),
        _pairs(rows, config),
    ]


def _nulls(rows: Sequence[Row]) -> list[Row]:
    """What the rows are held against, as rows."""
    return [
        Row(quantity="null", value=r.null, context=r.context) for r in rows if r.null is not None
    ]


def _lines(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures, lines = [], []
    for point, symbol in POINTS.items():
        figures.append(_changes(rows, point, symbol, config))
        figures += [_errors(rows, point, symbol, sign, config) for sign in SIDES]
        figures += [_scores(rows, point, symbol, sign, config) for sign in SIDES]
        wide = max(config["tolerances"])
        there = {"point": point, "tolerance": wide, "sign": "both"}
        lines.append(
            f"At {symbol} the loss is {text_of(rows, 'loss', point=point)} nats a token and the "
            "score "
            f"{text_of(rows, 'score_here', point=point)}. The prediction holds to within {wide:g} "
            "of itself up to ε = "
            f"{reach(rows, direction='gradient', **there)} along the gradient and up to ε = "
            f"{reach(rows, direction='random', **there)} along a random direction."
        )
    return Section(
        title="How does the loss change along a straight line?",
        question="The change of the loss against the size of the step, beside what the gradient "
        "alone predicts (Figure 6): where do "
        "the two part? A step ε moves the "
        f"{moved(config)} by ε times their length along a unit direction, forward or backward; "
        "forward along the gradient raises "
        "the loss.",
        figures=figures,
        sees=[
            f"Independent runs: {config['seeds']}; means over them are geometric for steps, "
            "windows and sizes of errors and of loss "
            "changes, plain for losses, scores, signed loss changes and decades. Weights and "
            "losses are evaluated in "
            f"{'float64' if config['evaluate'] == 'float64' else config['dtype']}, on "
            f"{config['window_examples']} examples "
            f"{_unseen(config)}.",
            "Norm-matched noise is random within every tensor and has the gradient's norm there, "
            "at both points.",
            *(_by_factors(config)),
            *lines,
        ],
    )


def _unseen(config: Mapping[str, Any]) -> str:
    """What is known of the examples: of a model that was brought, not what it was pretrained on."""
    if config["data"] is None:
        return "that no training saw"
    return "of the test split, which no training of this study saw; what the model was trained on before is not known"


def _by_factors(config: Mapping[str, Any]) -> list[str]:
    if config["space"] != "lora":
        return []
    return [
        "With LoRA what moves are the factors A and B: their length, and so ε, depends on how the "
        "update BA is split between them, "
        "so that ε compares directions at one point here but not with steps of full weights."
    ]


def _changes(rows: Sequence[Row], point: str, symbol: str, config: Mapping[str, Any]) -> Drawing:
    curves = []
    for direction in (
        "gradient",
        "norm-matched noise",
        "task vector",
        "recovery, AdamW",
        "top curvature 1",
    ):
        found = select(rows, "log10_loss_change", point=point, direction=direction, sign="+")
        colour = DRAWN[direction]
        curves.append(
            Curve(rows=powered(found), label=direction, colour=colour, band=direction == "gradient")
        )
        curves.append(
            Curve(rows=_nulls(powered(found)), label="", colour=colour, dashed=True, band=False)
        )
    return draw_curves(
        f"change-{point}",
        f"Size of the loss change at {symbol} against the step, forward; dashed: the gradient's "
        "prediction.",
        [c for c in curves if c.rows],
        over="step",
        labels=(step_of(config), "|ΔL|, nats a token"),
        title=f"Loss change at {symbol}; dashed: predicted",
        limits=None,
        log=(True, True),
        decades=True,
    )


def _errors(
    rows: Sequence[Row], point: str, symbol: str, sign: str, config: Mapping[str, Any]
) -> Drawing:
    curves, lowest, tolerances = [], 1.0, config["tolerances"]
    for direction, colour in DRAWN.items():
        found = powered(select(rows, "log10_error", point=point, direction=direction, sign=sign))
        curves.append(
            Curve(rows=found, label=direction, colour=colour, band=direction == "gradient")
        )
        lowest = min([lowest, *(defined(r.value) for r in found)])
    steps = curves[0].rows if curves else []
    for tolerance in tolerances:
        level = [replace(r, value=tolerance, low=None, high=None) for r in steps]
        curves.append(
            Curve(rows=level, label=f"τ = {tolerance:g}", colour=GREY, dashed=True, band=False)
        )
    limits = powered(
        select(rows, "log10_limit", point=point, direction="gradient", tolerance=tolerances[0])
    )
    for limit in limits[:1]:
        rounding = [
            replace(
                r,
                value=defined(limit.value) * tolerances[0] / r.context["step"],
                low=None,
                high=None,
            )
            for r in steps
        ]
        seen = [r for r in rounding if defined(r.value) >= lowest / 3]
        if seen:
            curves.append(
                Curve(
                    rows=seen,
                    label="round-off, gradient",
                    colour="#000000",
                    dashed=True,
                    band=False,
                )
            )
    return draw_curves(
        f"error-{point}-{SIDES[sign]}",
        f"Relative error of first-order prediction at {symbol} against the step, {SIDES[sign]}.",
        curves,
        over="step",
        labels=(step_of(config), "|ΔL − εgᵀv| / |εgᵀv|"),
        title=f"Error of the prediction at {symbol}, {SIDES[sign]}",
        limits=None,
        log=(True, True),
        decades=True,
    )


def _scores(
    rows: Sequence[Row], point: str, symbol: str, sign: str, config: Mapping[str, Any]
) -> Drawing:
    curves = [
        Curve(
            rows=select(rows, "score", point=point, direction=direction, sign=sign),
            label=direction,
            colour=colour,
            band=direction == "gradient",
        )
        for direction, colour in DRAWN.items()
    ]
    return draw_curves(
        f"score-{point}-{SIDES[sign]}",
        f"Score on the task at {symbol} against the step, {SIDES[sign]}.",
        curves,
        over="step",
        labels=(step_of(config), "score"),
        title=f"Score at {symbol}, {SIDES[sign]}",
        decades=True,
    )


def _wholes(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    tolerance = config["tolerances"][0]
    entries: list[tuple[str, Row]] = []
    lines = []
    for point, symbol in POINTS.items():
        for direction in directions_at(rows, point):
            here = {"point": point, "direction": direction}
            lengths = powered(select(rows, "log10_whole_in_windows", **here, tolerance=tolerance))
            if lengths:
                entries.append((f"{direction} at {symbol}", lengths[0]))
            if select(rows, "log10_whole_step", **here):
                lines.append(_whole_line(rows, f"{direction} at {symbol}", here, tolerance))
    figures = []
    if entries:
        title = f"Displacements in windows, τ = {tolerance:g}"
        edge = [(name, replace(r, value=1.0, low=None, high=None)) for name, r in entries]
        figures.append(
            draw_dots(
                "whole",
                "How many first-order windows each displacement is long; 1 is the window's edge.",
                {"length": entries, "edge of the window": edge},
                label="length / ε_τ",
                title=title,
                log=True,
            )
        )
    return Section(
        title="Do real displacements stay inside?",
        question="Task vectors and recoveries have a length of their own: is the whole step inside "
        "its window, and how far is the "
        "gradient's prediction off at its end?",
        figures=figures,
        sees=lines,
    )


def _whole_line(rows: Sequence[Row], name: str, here: Mapping[str, Any], tolerance: float) -> str:
    changes = select(rows, "whole_loss_change", **here)
    told = (
        f"the loss changes by {estimate_text(changes[0].value, changes[0].low, changes[0].high)}, "
        "where the gradient says "
        f"{number(changes[0].null)}: a relative error of "
        f"{power_text(rows, 'log10_whole_error', **here)}"
        if changes
        else "the loss there is not finite"
    )
    inside = select(rows, "whole_inside", **here, tolerance=tolerance)
    of = "tasks of all runs" if here["direction"] == TASK else "runs"
    share = (
        f"inside in {inside[0].value:.0%} of the {of}"
        if inside and inside[0].value is not None
        else ""
    )
    missing = share_of(rows, "no_window", {**here, "tolerance": tolerance, "sign": "+"})
    none = f" (none forward {missing})" if missing else ""
    score = select(rows, "whole_score", **here)
    scored = (
        f"; score {number(score[0].null)} before, {number(score[0].value)} after" if score else ""
    )
    long = power_text(rows, "log10_whole_in_windows", **here, tolerance=tolerance)
    return (
        f"{name[0].upper()}{name[1:]}: ‖δ‖/‖θ‖ = {power_text(rows, 'log10_whole_step', **here)}, "
        f"length in windows {long}{none}, "
        f"{share or 'whether inside is not known'}; {told}{scored}."
    )


def _pairs(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    names = dict.fromkeys(
        (r.context["point"], r.context["pair"])
        for r in rows
        if r.quantity == "log10_additivity_error"
    )
    curves = [
        Curve(
            rows=powered(select(rows, "log10_additivity_error", point=point, pair=pair, sign="+")),
            label=f"{pair} at {POINTS[point]}",
            colour=PALETTE[i],
        )
        for i, (point, pair) in enumerate(names)
    ]
    steps = curves[0].rows if curves else []
    for tolerance in config["tolerances"]:
        level = [replace(r, value=tolerance, low=None, high=None) for r in steps]
        curves.append(
            Curve(rows=level, label=f"τ = {tolerance:g}", colour=GREY, dashed=True, band=False)
        )
    figures = []
    if names:
        figures.append(
            draw_curves(
                "additivity",
                "How far the effect of two steps at once is from the sum of their effects, against "
                "their size.",
                curves,
                over="step",
                labels=("size ε of each step", "|Δ(v+w) − Δ(v) − Δ(w)| / (|Δ(v)| + |Δ(w)|)"),
                title="Is the effect of the sum the sum of the effects?",
                limits=None,
                log=(True, True),
                decades=True,
            )
        )
    return Section(
        title="Do steps add up?",
        question="Two steps at once, each of relative size ε: up to which size is their effect on "
        "the loss the sum of their effects?",
        figures=figures,
        sees=list(_pair_lines(rows, names, config["tolerances"][0])),
    )


def _pair_lines(
    rows: Sequence[Row], names: Mapping[tuple[str, str], None], tolerance: float
) -> Iterator[str]:
    for point, pair in names:
        found = select(rows, "log10_additivity_window", point=point, pair=pair, tolerance=tolerance)
        name = f"{pair[0].upper()}{pair[1:]} at {POINTS[point]}"
        if not found:
            yield f"{name}: no size above round-off at which they add up to within τ = {tolerance:g}."
            continue
        null = None if found[0].null is None else 10.0 ** found[0].null
        there: dict[str, Any] = {"point": point, "pair": pair, "tolerance": tolerance}
        missing = share_of(rows, "no_additivity", there)
        none = (
            f" {missing[0].upper()}{missing[1:]} there is no such size above round-off."
            if missing
            else ""
        )
        yield (
            f"{name}: they add up to within τ = {tolerance:g} until ε = "
            f"{reach(rows, 'log10_additivity_window', 'additivity_open', **there)}; mixed "
            f"curvature predicts {number(null)}.{none}"
        )
