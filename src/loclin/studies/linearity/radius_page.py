"""The radius of one direction: a page, whose first section is for the terminal too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from loclin.report.figures import PALETTE, select
from loclin.report.section import Missing, Section, Table, first, made, number_of, text_of
from loclin.report.words import estimate_text, number
from loclin.run.rows import Row
from loclin.studies.linearity.names import GRADIENT, SIDES, UNITS
from loclin.studies.linearity.parts import LINES, Rows, effect_text, line_figure

Settings = Mapping[str, Any]
COLOURS = {"+": PALETTE[0], "−": PALETTE[1]}


def sections(rows: Rows, settings: Settings, skip: Missing = ()) -> list[Section]:
    """The page's sections in reading order."""
    return made([partial(part, rows, settings) for part in (_radius, _line)], skip)


def _size(rows: Rows, sign: str, unit: str) -> str:
    """A radius as text; whether it is a lower bound; or that there is none."""
    found = first(rows, "radius", sign=sign, **{"as": unit})
    opened = first(rows, "radius_open", sign=sign)
    if not found:
        return "none above round-off"
    if opened and opened.value:
        return f"≥ {number(found.value)}"
    return estimate_text(found.value, found.low, found.high)


def _radius(rows: Rows, settings: Settings) -> Section:
    plain_step = settings["direction"] == GRADIENT
    labels = {"λ": "λ (learning rate)"} if plain_step else {}
    table = []
    for unit in UNITS.values():
        predicted = text_of(rows, "predicted_radius", **{"as": unit})
        sizes = (_size(rows, sign, unit) for sign in SIDES)
        table.append([labels.get(unit, unit), *sizes, predicted])
    for quantity, name in {"loss_change": "loss change there", "score": "score there"}.items():
        table.append([name, *(text_of(rows, f"edge_{quantity}", sign=s) for s in SIDES), ""])
    header, tau = ["largest step", *SIDES.values(), "by curvature"], settings["tolerance"]
    caption = f"The largest predictable step: {UNITS['relative']} as a share of the weights' length"
    caption += ", λ as a multiple of the direction."
    parts = settings["direction"].rsplit("..", 1)
    return Section(
        title=f"How far along {'..'.join(Path(part).name for part in parts)}?",
        question="The largest step, both ways along the direction, up to which the loss changes as "
        f"its gradient says to within τ = {tau:g}.",
        figures=[],
        follows=[*_safe(rows, settings), *_whole(rows)],
        sees=list(_basis(rows, settings)),
        tables=[Table(caption=caption, header=header, rows=table)],
        brief=True,
    )


def _safe(rows: Rows, settings: Settings) -> Iterator[str]:
    """The end of the radius's interval up to which a step is predictable, each way."""
    what = "learning rate" if settings["direction"] == GRADIENT else "step or merge coefficient"
    for sign, side in SIDES.items():
        if found := first(rows, "radius", sign=sign, **{"as": UNITS["multiple"]}):
            least = found.value if found.low is None else found.low
            yield (
                f"A {what} λ up to {number(least)} {side} is safe: the loss changes as its "
                f"gradient says to within τ = {settings['tolerance']:g} (largest such step "
                f"{_size(rows, sign, UNITS['multiple'])})."
            )


def _basis(rows: Rows, settings: Settings) -> Iterator[str]:
    """What the radius rests on."""
    tau, limit = settings["tolerance"], first(rows, "limit")
    yield (
        f"Predictable: the loss changes by gradient times step to within τ = {tau:g} of it, at "
        f"every smaller step too. Intervals are 95 % over {settings['folds']} groups of examples; "
        "they say nothing of other directions or points."
    )
    if settings["direction"] == GRADIENT:
        yield "Forward is up the gradient; a step that lowers the loss goes backward."
    loss, score = (number_of(rows, quantity) for quantity in ("loss", "score_here"))
    yield f"At the point itself the loss is {loss} nats a token and the score {score}."
    if limit:
        yield (
            f"Round-off begins below ‖δ‖/‖θ‖ = {number(limit.value)}: smaller steps cannot be told "
            "at this tolerance."
        )
    none = [side for sign, side in SIDES.items() if not select(rows, "radius", sign=sign)]
    if none:
        yield (
            f"No predictable step above round-off {' and '.join(none)}: the loss bends before it "
            "can be told from round-off; try --dtype float64 or a larger --tolerance."
        )


def _whole(rows: Rows) -> Iterator[str]:
    """The verdict on the vector as it was given."""
    step, inside = first(rows, "whole_step"), first(rows, "whole_inside")
    if not step:
        return
    verdict = "beyond the last step that was tried"
    if inside and inside.value:
        verdict = "inside the radius: its effect is predictable"
    elif inside:
        verdict = "outside the radius: its effect is not gradient times step"
    length = f"‖δ‖/‖θ‖ = {number(step.value)}"
    yield f"The whole vector, λ = 1 ({length}), is {verdict}. {effect_text(rows)}."


def _sized(row: Row) -> Row:
    """Sizes, as a logarithmic axis shows them, by the names that figures know."""
    if row.quantity not in ("loss_change", "first_order_error"):
        return row
    name = row.quantity.removeprefix("first_order_")
    value, null = (abs(x) if x else None for x in (row.value, row.null))
    return replace(row, quantity=name, value=value, null=null)


def _line(rows: Rows, settings: Settings) -> Section:
    sized, limit = [_sized(r) for r in rows], first(rows, "limit")
    rounding = (limit.value or 0.0) * settings["tolerance"] if limit else None
    drawn = {side: (COLOURS[sign], {"sign": sign}) for sign, side in SIDES.items()}
    lengths = ("weights_length", "dimension", "direction_length")
    of = {q: number_of(rows, q) for q in (*lengths, "slope", "curvature")}
    return Section(
        title="The loss along the line",
        question="What the loss and the score do, both ways, and where the prediction leaves them.",
        figures=[
            line_figure(
                name.replace("_", "-"),
                sized,
                name,
                drawn,
                settings,
                rounding=rounding,
                where="both ways",
                step=f"step {UNITS['relative']}",
            )
            for name in LINES
        ],
        sees=[
            f"‖θ‖ = {of['weights_length']} over {of['dimension']} coordinates; the direction as "
            f"given is {of['direction_length']} long; slope {of['slope']} and curvature "
            f"{of['curvature']} in steps of ‖θ‖."
        ],
    )
