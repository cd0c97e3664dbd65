"""The radius of one direction: a page, and a short table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loclin.record import Record, Row
from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, select
from loclin.report.section import Section, text_of
from loclin.report.words import estimate_text, number

STUDY = "radius"
GREY = "#555555"
SIDES = {"+": "forward", "−": "backward"}
COLOURS = {"+": PALETTE[0], "−": PALETTE[1]}
UNITS = {
    "‖δ‖/‖θ‖": "as a share of the weights' length, ‖δ‖/‖θ‖",
    "‖δ‖": "as a length, ‖δ‖",
    "λ": "as a multiple of the direction, λ",
}
STEP = "step ‖δ‖/‖θ‖"


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The page's sections in reading order."""
    return [_radius(rows, config), _line(rows, config)]


def print_radius(folder: Path) -> None:
    """Print the radius of a run folder as a short table, and what it rests on; nothing where the
    folder holds none that is finished.
    """
    record = Record(folder)
    run = record.run()
    if (
        STUDY not in run["studies"] or not (folder / STUDY / "results.json").exists()
    ):  # begun and failed
        return
    rows, config, console = record.results(STUDY), run["studies"][STUDY], Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("largest step", *SIDES.values()):
        table.add_column(heading, overflow="fold")
    for unit in UNITS:
        table.add_row(Text(_unit(unit, config)), *(Text(_size(rows, sign, unit)) for sign in SIDES))
    predicted = Text(text_of(rows, "predicted_radius", **{"as": "‖δ‖/‖θ‖"}))
    table.add_row(Text("‖δ‖/‖θ‖ by curvature"), predicted, predicted)
    for quantity, name in (
        ("edge_loss_change", "loss change there"),
        ("edge_score", "score there"),
    ):
        table.add_row(Text(name), *(Text(text_of(rows, quantity, sign=sign)) for sign in SIDES))
    console.print(table)
    for line in (*_basis(rows, config, run["notes"].get(STUDY, [])), *_whole(rows)):
        console.print(Text(line))


def _unit(unit: str, config: Mapping[str, Any]) -> str:
    return "λ (learning rate)" if unit == "λ" and config["direction"] == "gradient" else unit


def _size(rows: Sequence[Row], sign: str, unit: str) -> str:
    """A radius as text; whether it is a lower bound; or that there is none."""
    found = select(rows, "radius", sign=sign, **{"as": unit})
    if not found:
        return "none above round-off"
    opened = select(rows, "radius_open", sign=sign)
    bound = "≥ " if opened and opened[0].value else ""
    return bound + (
        number(found[0].value)
        if bound
        else estimate_text(found[0].value, found[0].low, found[0].high)
    )


def _basis(rows: Sequence[Row], config: Mapping[str, Any], notes: Sequence[str]) -> Iterator[str]:
    yield (
        "Predictable: the loss changes by gradient times step to within τ = "
        f"{config['tolerance']:g} of it, at every smaller step "
        f"too. Intervals are 95 % over {config['folds']} groups of examples; they say nothing of "
        "other directions or points."
    )
    if config["direction"] == "gradient":
        yield "Forward is up the gradient; a step that lowers the loss goes backward."
    yield from (f"{note[0].upper()}{note[1:]}." for note in notes)
    limit = select(rows, "limit")
    none = [side for sign, side in SIDES.items() if not select(rows, "radius", sign=sign)]
    if limit:
        yield f"Round-off begins below ‖δ‖/‖θ‖ = {number(limit[0].value)}: smaller steps cannot be told at this tolerance."
    if none:
        yield (
            f"No predictable step above round-off {' and '.join(none)}: the loss bends before it "
            "can be told from round-off; try "
            "--dtype float64 or a larger --tolerance."
        )


def _whole(rows: Sequence[Row]) -> Iterator[str]:
    """The verdict on the vector as it was given."""
    found = select(rows, "whole_step")
    if not found:
        return
    inside = select(rows, "whole_inside")
    verdict = (
        "beyond the last step that was tried"
        if not inside
        else "inside the radius: its effect is predictable"
        if inside[0].value
        else "outside the radius: its effect is not gradient times step"
    )
    changes = select(rows, "whole_loss_change")
    told = (
        f" The loss changes by {estimate_text(changes[0].value, changes[0].low, changes[0].high)}, "
        "where the gradient says "
        f"{number(changes[0].null)} (relative error {text_of(rows, 'whole_error')})"
        if changes
        else " The loss there is not finite"
    )
    score = select(rows, "whole_score")
    scored = (
        f"; the score goes from {number(score[0].null)} to {text_of(rows, 'whole_score')}"
        if score
        else ""
    )
    yield f"The whole vector, λ = 1 (‖δ‖/‖θ‖ = {number(found[0].value)}), is {verdict}.{told}{scored}."


def _radius(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    lines = []
    for unit, words in UNITS.items():
        named = (
            f"{words} (the learning rate of one plain step)"
            if _unit(unit, config) != unit
            else words
        )
        lines.append(
            f"Largest predictable step {named}: "
            + ", ".join(f"{_size(rows, sign, unit)} {side}" for sign, side in SIDES.items())
            + f"; curvature predicts {text_of(rows, 'predicted_radius', **{'as': unit})}."
        )
    for sign, side in SIDES.items():
        if select(rows, "edge_loss_change", sign=sign):
            lines.append(
                f"At its edge {side} the loss has changed by "
                f"{text_of(rows, 'edge_loss_change', sign=sign)} nats a token from "
                f"{_plain(rows, 'loss')}, and the score is "
                f"{text_of(rows, 'edge_score', sign=sign)} after "
                f"{_plain(rows, 'score_here')}."
            )
    return Section(
        title="How far along "
        f"{'..'.join(Path(part).name for part in config['direction'].rsplit('..', 1))}?",
        question="The largest step, both ways along the direction, up to which the loss changes as "
        "its gradient says to within "
        f"τ = {config['tolerance']:g}.",
        figures=[],
        sees=[*lines, *_whole(rows), *_basis(rows, config, [])],
    )


def _line(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    return Section(
        title="The loss along the line",
        question="What the loss and the score do, both ways, and where the prediction leaves them.",
        figures=[_changes(rows), _errors(rows, config), _scores(rows)],
        sees=[
            f"‖θ‖ = {_plain(rows, 'weights_length')} over {_plain(rows, 'dimension')} coordinates; "
            "the direction as given is "
            f"{_plain(rows, 'direction_length')} long; slope {_plain(rows, 'slope')} and curvature "
            f"{_plain(rows, 'curvature')} in "
            "steps of ‖θ‖."
        ],
    )


def _plain(rows: Sequence[Row], quantity: str) -> str:
    found = select(rows, quantity)
    return number(found[0].value) if found else "not defined"


def _changes(rows: Sequence[Row]) -> Drawing:
    curves = []
    for sign, side in SIDES.items():
        found = select(rows, "loss_change", sign=sign)
        sizes = [replace(r, value=abs(r.value)) for r in found if r.value]
        lines = [replace(r, value=abs(r.null)) for r in found if r.null]
        curves.append(Curve(rows=sizes, label=side, colour=COLOURS[sign]))
        curves.append(
            Curve(rows=lines, label=f"{side}, predicted", colour=COLOURS[sign], dashed=True)
        )
    return draw_curves(
        "change",
        "Size of the loss change against the step, both ways; dashed: gradient times step.",
        [c for c in curves if c.rows],
        over="step",
        labels=(STEP, "|ΔL|, nats a token"),
        title="Loss change; dashed: predicted",
        limits=None,
        log=(True, True),
        decades=True,
    )


def _errors(rows: Sequence[Row], config: Mapping[str, Any]) -> Drawing:
    curves, every = [], []
    for sign, side in SIDES.items():
        found = [r for r in select(rows, "first_order_error", sign=sign) if r.value]
        curves.append(Curve(rows=found, label=side, colour=COLOURS[sign]))
        every += found
    level = [replace(r, value=config["tolerance"]) for r in every]
    curves.append(Curve(rows=level, label=f"τ = {config['tolerance']:g}", colour=GREY, dashed=True))
    limit = select(rows, "limit")
    if limit and limit[0].value:
        lowest = min((r.value for r in every if r.value), default=1.0)
        share = limit[0].value * config["tolerance"]
        seen = [
            replace(r, value=share / r.context["step"])
            for r in every
            if share / r.context["step"] >= lowest / 3
        ]
        curves.append(Curve(rows=seen, label="round-off", colour="#000000", dashed=True))
    return draw_curves(
        "error",
        "Relative error of gradient times step against the step, both ways.",
        [c for c in curves if c.rows],
        over="step",
        labels=(STEP, "|ΔL − εgᵀv| / |εgᵀv|"),
        title="Error of the prediction",
        limits=None,
        log=(True, True),
        decades=True,
    )


def _scores(rows: Sequence[Row]) -> Drawing:
    curves = [
        Curve(rows=select(rows, "score", sign=sign), label=side, colour=COLOURS[sign])
        for sign, side in SIDES.items()
    ]
    return draw_curves(
        "score",
        "Score against the step, both ways.",
        curves,
        over="step",
        labels=(STEP, "score"),
        title="Score",
        decades=True,
    )
