"""The linearity study on a page: how the loss changes along straight lines, where first-order
prediction ends, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from loclin.report.figures import PALETTE, Curve, Drawing, defined, draw_dots, select
from loclin.report.section import Missing, Section, Table, first, made, text_of
from loclin.report.words import number
from loclin.run.rows import Row
from loclin.studies.linearity.names import (
    BOTH,
    FIRST,
    GRADIENT,
    MATCHED,
    RANDOM,
    RECOVERY,
    SIDES,
    TASK,
    TOP,
)
from loclin.studies.linearity.parts import (
    Rows,
    effect_text,
    line_figure,
    over_steps,
    tolerance_curves,
)
from loclin.studies.linearity.settings import moved
from loclin.studies.names import POINTS, own, points

Settings = Mapping[str, Any]
#: Directions whose lines are drawn, with their colours; of the others the window alone is shown.
DRAWN = {
    GRADIENT: PALETTE[0],
    MATCHED: PALETTE[8],
    RANDOM: PALETTE[4],
    TOP: PALETTE[1],
    TASK: PALETTE[2],
    RECOVERY["sgd"]: PALETTE[2],
    RECOVERY["adamw"]: PALETTE[3],
    FIRST["sgd"]: PALETTE[5],
    FIRST["adamw"]: PALETTE[6],
}
PREDICTED = (GRADIENT, MATCHED, TASK, RECOVERY["adamw"], TOP)  # whose loss changes are drawn


def sections(rows: Rows, settings: Settings, skip: Missing = ()) -> list[Section]:
    """The study's sections in reading order."""
    plain = [_plain(r) for r in rows if "run" not in r.context and r.quantity != "loss_change"]
    parts = (_lines, _windows, _wholes, _pairs)
    return made([partial(part, plain, settings) for part in parts], skip)


def _points(settings: Settings) -> Iterable[tuple[str, str]]:
    return points(untouched=settings.get("untouched", False)).items()


def _plain(row: Row) -> Row:
    """A logarithm as the number itself, a geometric mean over runs, under its plain name."""
    if not row.quantity.startswith("log10_"):
        return row
    logarithms = (row.value, row.low, row.high, row.null)
    value, low, high, null = (None if x is None else 10.0**x for x in logarithms)
    name = row.quantity.removeprefix("log10_")
    return replace(row, quantity=name, value=value, low=low, high=high, null=null)


def _reach(rows: Rows, name: str = "window", mark: str = "", **there: Any) -> str:
    """A window, as a lower bound where not every run saw its end."""
    text = text_of(rows, name, **there)
    opened = first(rows, name.removesuffix("_window") + "_open", **there)
    return f"≥ {text}{mark}" if opened and opened.value else text


def _share(rows: Rows, quantity: str, **there: Any) -> str:
    """In which share of the runs something was so, of task vectors in which share of all their
    tasks; empty where in none.
    """
    found = first(rows, quantity, **there)
    of = "tasks of all runs" if there.get("direction") == TASK else "runs"
    return f"in {found.value:.0%} of the {of}" if found and found.value else ""


def _directions(rows: Rows) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every direction at every point, by its name and its context."""
    slopes = [(r.context["point"], r.context["direction"]) for r in rows if r.quantity == "slope"]
    for point, direction in dict.fromkeys(sorted(slopes, key=lambda s: list(POINTS).index(s[0]))):
        yield f"{direction} at {POINTS[point]}", {"point": point, "direction": direction}


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _step(settings: Settings) -> str:
    return f"step ε, as a share of the {moved(settings['space'])}' length"


def _lines(rows: Rows, settings: Settings) -> Section:
    figures, lines = list[Drawing](), list[str]()
    wide, moves = max(settings["tolerances"]), moved(settings["space"])
    for point, symbol in _points(settings):
        figures.append(_figure(rows, "loss_change", point, "+", settings))
        both = [(kind, sign) for kind in ("error", "score") for sign in SIDES]
        figures += [_figure(rows, kind, point, sign, settings) for kind, sign in both]
        there = {"point": point, "tolerance": wide, "sign": BOTH}
        mark = " (not closed within the steps tried)"
        along = {d: _reach(rows, mark=mark, direction=d, **there) for d in (GRADIENT, RANDOM)}
        lines.append(
            f"At {symbol} the loss is {text_of(rows, 'loss', point=point)} nats a token and the "
            f"score {text_of(rows, 'score_here', point=point)}. The prediction holds to within "
            f"{wide:g} of itself up to ε = {along[GRADIENT]} along the gradient and up to ε = "
            f"{along[RANDOM]} along a random direction."
        )
    precision = "float64" if settings["evaluate"] == "float64" else settings["dtype"]
    brought = "of the test split, which no training of this study saw; what the model was trained "
    brought += "on before is not known"
    unseen = brought if settings["data"] else "that no training saw"
    factors = (
        "With LoRA what moves are the factors A and B: their length, and so ε, depends on how the "
        "update BA is split between them, so that ε compares directions at one point here but not "
        "with steps of full weights."
    )
    return Section(
        title="How does the loss change along a straight line?",
        question="The change of the loss against the size of the step, beside what the gradient "
        f"alone predicts (Figure 6): where do the two part? A step ε moves the {moves} by ε times "
        "their length along a unit direction, forward or backward; forward along the gradient "
        "raises the loss.",
        figures=figures,
        sees=[
            f"Independent runs: {settings['seeds']}; means are geometric for steps, windows "
            "and sizes of errors and of loss changes, on the logit scale for scores, plain for "
            "losses, signed loss changes and decades. Weights and losses are evaluated in "
            f"{precision}, on {settings['window_examples']} examples {unseen}.",
            "Norm-matched noise is random within every tensor and has the gradient's norm there, "
            "at both points.",
            *([factors] if settings["space"] == "lora" else []),
            *lines,
        ],
    )


def _figure(rows: Rows, quantity: str, point: str, sign: str, settings: Settings) -> Drawing:
    """Along the directions that are drawn, on one side of a point."""
    shown = PREDICTED if quantity == "loss_change" else DRAWN
    here = {"point": point, "sign": sign}
    at = {"point": point, "direction": GRADIENT, "tolerance": settings["tolerances"][0]}
    limit = first(rows, "limit", **at)
    return line_figure(
        f"{quantity.replace('_', '-')}-{point}-{SIDES[sign]}",
        rows,
        quantity,
        {d: (DRAWN[d], {**here, "direction": d}) for d in shown},
        settings,
        rounding=defined(limit.value) * at["tolerance"] if limit else None,
        where=f"at {POINTS[point]}, {SIDES[sign]}",
        step=_step(settings),
    )


def _windows(rows: Rows, settings: Settings) -> Section:
    tau, figures = settings["tolerances"][0], list[Drawing]()
    for point, symbol in _points(settings):
        if found := select(rows, "window", point=point, tolerance=tau, sign=BOTH):
            measured = [(r.context["direction"], r) for r in found]
            predicted = [(d, replace(r, value=r.null, low=None, high=None)) for d, r in measured]
            groups = {"measured": measured, "predicted from curvature": predicted}
            name, title = f"windows-{point}", f"First-order window at {symbol}, τ = {tau:g}"
            caption, label = f"{title}: measured and predicted from curvature.", _step(settings)
            figures.append(draw_dots(name, caption, groups, label=label, title=title, log=True))
    return Section(
        title="How far does first-order prediction reach?",
        question="The window ε_τ: the largest step up to which the loss changes by gradient times "
        f"step to within τ = {tau:g} of it, on the side where that ends first. Does curvature "
        "along the line, 2τ|gᵀv|/|vᵀHv|, say where?",
        figures=figures,
        sees=[
            "Top curvature 1 is the eigenvector of the largest Hessian eigenvalue; prefix j is "
            "what update j of a recovery adds to the span of those before it.",
            *(line for name, here in _directions(rows) for line in _unsure(rows, name, here, tau)),
        ],
        tables=[_radii(rows, settings)],
    )


def _unsure(rows: Rows, name: str, here: dict[str, Any], tolerance: float) -> Iterator[str]:
    """Where there is no window in some runs, or one that is only known from one side."""
    there = {**here, "tolerance": tolerance}
    if not select(rows, "window", **there, sign=BOTH):
        limit = text_of(rows, "limit", **there)
        yield f"{_upper(name)}: no window above round-off (ε = {limit}) in any run."
        return
    if missing := _share(rows, "no_window", **there, sign=BOTH):
        yield f"{_upper(name)}: {missing} there is no window above round-off; ε_τ is of the others."
    if opened := _share(rows, "window_open", **there, sign=BOTH):
        yield f"{_upper(name)}: {opened} the window reaches beyond the last step tried."


def _radii(rows: Rows, settings: Settings) -> Table:
    """Every direction's window, and what bounds it."""
    tau, *wider = settings["tolerances"]
    header = ["direction", f"ε_τ, τ = {tau:g}", *SIDES.values(), "curvature predicts"]
    header += ["predicted / measured", *(f"τ = {other:g}" for other in wider)]
    header += ["round-off limit", "decades above it", "loss change inside"]

    def radius(there: dict[str, Any]) -> str:
        found = select(rows, "window", **there)
        return _reach(rows, **there) if found else "none above round-off"

    table = []
    for name, here in _directions(rows):
        at = {**here, "tolerance": tau}
        there, signs = {**at, "sign": BOTH}, [{**at, "sign": sign} for sign in SIDES]
        *of, both = (first(rows, "window", **a) for a in (*signs, there))
        sides = [number(r.value) if r else "none" for r in of]
        changes = [defined(r.value) for a in signs for r in select(rows, "edge_loss_change", **a)]
        table.append(
            [
                *(name, radius(there), *sides, number(both.null if both else None)),
                text_of(rows, "prediction_ratio", **there),
                *(radius({**there, "tolerance": other}) for other in wider),
                text_of(rows, "limit", **at),
                text_of(rows, "window_width", **there),
                number(max(changes, default=None)),
            ]
        )
    caption = f"Radii: steps as a share of the {moved(settings['space'])}' length; geometric means "
    caption += "with 95 % intervals, decades plain."
    return Table(caption=caption, header=header, rows=table)


def _wholes(rows: Rows, settings: Settings) -> Section:
    tau, figures, lines = settings["tolerances"][0], list[Drawing](), list[str]()
    lengths = list[tuple[str, Row]]()
    for name, here in _directions(rows):
        lengths += [(name, r) for r in select(rows, "whole_in_windows", **here, tolerance=tau)]
        if select(rows, "whole_step", **here):
            lines.append(_whole_line(rows, name, here, tau))
    if lengths:
        edge = [(name, replace(r, value=1.0, low=None, high=None)) for name, r in lengths]
        groups, title = {"length": lengths, "edge of the window": edge}, f"In windows, τ = {tau:g}"
        caption = "How many first-order windows each displacement is long; 1 is the window's edge."
        label = "length / ε_τ"
        figures.append(draw_dots("whole", caption, groups, label=label, title=title, log=True))
    return Section(
        title="Do real displacements stay inside?",
        question="Task vectors and recoveries have a length of their own: is the whole step inside "
        "its window, and how far is the gradient's prediction off at its end?",
        figures=figures,
        sees=lines,
        follows=list(_safe(rows, settings, tau)) if own(settings) else (),
    )


def _safe(rows: Rows, settings: Settings, tolerance: float) -> Iterator[str]:
    """Up to where a step along the gradient and a task vector is predictable."""
    here: dict[str, Any] = {"point": "pretrained", "tolerance": tolerance}
    if window := first(rows, "window", direction=GRADIENT, sign=BOTH, **here):
        least = window.value if window.low is None else window.low
        yield (
            f"A step along the gradient is safe up to ε = {number(least)} of the "
            f"{moved(settings['space'])}' length: the loss changes as the gradient says to within "
            f"τ = {tolerance:g} (largest such step "
            f"{_reach(rows, direction=GRADIENT, sign=BOTH, **here)})."
        )
    if found := first(rows, "whole_in_windows", direction=TASK, **here):
        length, most = text_of(rows, "whole_in_windows", direction=TASK, **here), found.high
        coefficient = "1" if most and most <= 1 else f"1/{number(most or found.value)}"
        yield (
            f"A task vector is {length} windows long: merged with a coefficient up to "
            f"{coefficient} its effect is what the gradient says."
        )


def _whole_line(rows: Rows, name: str, here: dict[str, Any], tolerance: float) -> str:
    there, inside = {**here, "tolerance": tolerance}, "whether inside is not known"
    if found := first(rows, "whole_inside", **there):
        of = "tasks of all runs" if here["direction"] == TASK else "runs"
        inside = f"inside in {defined(found.value):.0%} of the {of}"
    missing = _share(rows, "no_window", **there, sign="+")
    none = f" (none forward {missing})" if missing else ""
    step = text_of(rows, "whole_step", **here)
    length = f"length in windows {text_of(rows, 'whole_in_windows', **there)}{none}"
    return f"{_upper(name)}: ‖δ‖/‖θ‖ = {step}, {length}, {inside}. {effect_text(rows, **here)}."


def _pairs(rows: Rows, settings: Settings) -> Section:
    of = [r.context for r in rows if r.quantity == "additivity_error"]
    pairs = list(dict.fromkeys((c["point"], c["pair"]) for c in of))
    curves = []
    for i, (point, pair) in enumerate(pairs):
        found = select(rows, "additivity_error", point=point, pair=pair, sign="+")
        label = f"{pair} at {POINTS[point]}"
        curves.append(Curve(rows=found, label=label, colour=PALETTE[i]))
    return Section(
        title="Do steps add up?",
        question="Two steps at once, each of relative size ε: up to which size is their effect on "
        "the loss the sum of their effects?",
        figures=[_additivity(curves, settings)] if pairs else [],
        sees=[_pair_line(rows, *of, settings["tolerances"][0]) for of in pairs],
    )


def _additivity(curves: list[Curve], settings: Settings) -> Drawing:
    caption = "How far the effect of two steps at once is from the sum of their effects."
    labels = ("size ε of each step", "|Δ(v+w) − Δ(v) − Δ(w)| / (|Δ(v)| + |Δ(w)|)")
    title, every = "Is the effect of the sum the sum of the effects?", list(curves)
    every += tolerance_curves(curves[0].rows, settings)
    return over_steps("additivity", caption, every, labels=labels, title=title)


def _pair_line(rows: Rows, point: str, pair: str, tolerance: float) -> str:
    there = {"point": point, "pair": pair, "tolerance": tolerance}
    found, name = first(rows, "additivity_window", **there), f"{pair} at {POINTS[point]}"
    within = f"to within τ = {tolerance:g}"
    if not found:
        return f"{_upper(name)}: no size above round-off at which they add up {within}."
    mark = " (not closed within the steps tried)"
    missing = _upper(_share(rows, "no_additivity", **there))
    return (
        f"{_upper(name)}: they add up {within} until ε = "
        f"{_reach(rows, 'additivity_window', mark, **there)}; mixed curvature predicts "
        f"{number(found.null)}."
        + (f" {missing} there is no such size above round-off." if missing else "")
    )
