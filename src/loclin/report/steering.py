"""One steering vector: how strongly it steers, whether routes agree on it, what it damages. A page,
and a table for the terminal.
"""

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
from loclin.report.figures import (
    PALETTE,
    Curve,
    Drawing,
    draw_curves,
    draw_matrix,
    draw_points,
    select,
)
from loclin.report.section import Section, text_of
from loclin.report.section import Table as Listing
from loclin.report.words import estimate_text, number, p_text

ENTRY, KIND = "steer", "steer"
GREY = "#555555"
COLOURS = {"labels": PALETTE[0], "gradient": PALETTE[1], "logits": PALETTE[2], "search": PALETTE[3]}


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The page's sections in reading order."""
    found = [
        _strength(rows, config),
        _routes(rows, config),
        _damage(rows, config),
        _prompts(rows, config),
    ]
    return [*found, *([_texts(rows, config)] if select(rows, "generation") else [])]


def print_steering(folder: Path) -> None:
    """Print what a steering vector of a run folder does, as a short table; nothing where the folder
    holds none that is finished.
    """
    record = Record(folder)
    run = record.run()
    if (
        ENTRY not in run["studies"] or not (folder / ENTRY / "results.json").exists()
    ):  # begun and failed
        return
    rows, config, console = record.results(ENTRY), run["studies"][ENTRY], Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in _header(config):
        table.add_column(heading, overflow="fold")
    for cells in _table(rows, config):
        table.add_row(*map(Text, cells))
    console.print(table)
    for line in (*_layer(rows, config), *_beside(rows, config), *_agreement(rows, config)):
        console.print(Text(line))
    for note in run["notes"].get(ENTRY, []):
        console.print(Text(f"{note[0].upper()}{note[1:]}."))


def name_of(route: str, config: Mapping[str, Any]) -> str:
    """A route in words; the gradient step with its estimand."""
    words = {"labels": "labels", "logits": "logit gradient", "search": "random search"}
    return words.get(route, f"gradient step ({config['estimand']})")


def _made(rows: Sequence[Row]) -> list[str]:
    """The routes, the one that was asked for first."""
    return [str(r.context["route"]) for r in select(rows, "slope")]


def _chosen(rows: Sequence[Row]) -> list[int]:
    return [int(r.context["layer"]) for r in select(rows, "chosen_layer")]


def _header(config: Mapping[str, Any]) -> tuple[str, ...]:
    kl = f"{config['kl']:g} nats"
    return (
        "vector from",
        "slope",
        "p",
        "steered the other way",
        f"strength at {kl}",
        f"change at {kl}",
    )


def _table(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Every route: slope with p, anti-steerable share, strength at equal damage and what it does
    there.
    """
    for route in _made(rows):
        slope = select(rows, "slope", route=route)[0]
        strength = select(rows, "strength_at_kl", route=route)
        yield (
            name_of(route, config),
            estimate_text(slope.value, slope.low, slope.high),
            p_text(slope.p),
            text_of(rows, "anti_steerable", route=route),
            number(strength[0].value) if strength else "never",
            text_of(rows, "change_at_kl", route=route),
        )
    for row in select(rows, "random_slope"):
        yield (
            f"{row.n} random directions",
            _band(row),
            "–",
            "".join(map(_band, select(rows, "random_anti_steerable"))),
            "–",
            "–",
        )


def _band(row: Row) -> str:
    """Where the middle 95 % of random directions lie."""
    return f"{number(row.low)} to {number(row.high)}"


def _layer(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[str]:
    """Where the vector is added, why there, and what strength 1 is."""
    chosen, tried = _chosen(rows), select(rows, "layer_slope")
    lengths = [number(select(rows, "length", layer=n)[0].value) for n in chosen]
    where = f"block{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))}"
    if tried:
        best = next(r for r in tried if r.context["layer"] == chosen[0])
        yield (
            f"The vector is added to the output of {where} of {len(tried)}: there its slope on the "
            f"{config['choose']} prompts that "
            f"choose is largest, {estimate_text(best.value, best.low, best.high)} logits per unit "
            "of strength."
        )
        if config.get("without_block_0"):
            yield "Block 0 was not among them: a control vector of llama.cpp has none there."
        if (best.value or 0.0) <= 0:
            yield "No block has a slope above 0: towards the + answer this vector does not steer here at all."
    else:
        yield f"The vector is added to the output of {where}, as asked."
    yield f"Strength 1 is as long as the difference that labels make there: {', '.join(lengths)}."


def _beside(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[str]:
    """How strongly the vector steers, beside random directions and the other routes."""
    route, *others = _made(rows)
    slope, chance = select(rows, "slope", route=route)[0], select(rows, "random_slope")[0]
    inside = slope.value is not None and abs(slope.value) <= (slope.null or 0.0)
    yield (
        f"One unit of strength moves the logit difference of the {config['test']} test prompts by "
        f"{estimate_text(slope.value, slope.low, slope.high)} on average; {chance.n} random "
        "directions of that length move it by "
        f"{_band(chance)}{', so that this is no more than chance does' if inside else ''}."
    )
    if slope.value:
        for other in others:
            row = select(rows, "slope", route=other)[0]
            # a ratio to, or of, what chance does means nothing
            some = not inside and row.value is not None and abs(row.value) > (row.null or 0.0)
            times = f", {number((row.value or 0.0) / slope.value)} times that" if some else ""
            yield f"{_upper(name_of(other, config))} at the same length: {number(row.value)}{times}."
    yield (
        "Intervals are 95 % over the test prompts, by group, for these vectors; p is against "
        "isotropic random directions, at least "
        f"{p_text(1 / (chance.n + 1))} with {chance.n} of them. They are a narrow null: most of "
        "them miss the few directions in which "
        "activations vary, so a small p alone says little."
    )


def _agreement(rows: Sequence[Row], config: Mapping[str, Any]) -> Iterator[str]:
    """Cosines at the layers chosen."""
    for layer in _chosen(rows):
        for row in select(rows, "cosine", layer=layer):
            a, b = (name_of(str(row.context[k]), config) for k in ("route", "with"))
            null = (
                f"; 5 % of random weight steps have more than {number(row.null)}, p = "
                f"{p_text(row.p)}"
                if row.null is not None
                else ""
            )
            yield f"Block {layer}: cos({a}, {b}) = {estimate_text(row.value, row.low, row.high)}{null}."


def _strength(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures = []
    tried = select(rows, "layer_slope")
    route = _made(rows)[0]
    if tried:
        figures.append(
            draw_curves(
                "layers",
                f"Slope of the vector from {name_of(route, config)} at every block alone, on the "
                "part that chooses.",
                [Curve(rows=tried, label=name_of(route, config), colour=COLOURS[route])],
                over="layer",
                labels=("block", "logits per unit of strength"),
                title="Which layer?",
                limits=None,
                log=(False, False),
            )
        )
    curves = [
        Curve(rows=select(rows, "change", route=r), label=name_of(r, config), colour=COLOURS[r])
        for r in _made(rows)
    ]
    chance = Curve(
        rows=select(rows, "random_change"),
        label="random directions, middle 95 %",
        colour=GREY,
        dashed=True,
    )
    figures.append(
        draw_curves(
            "dose",
            "Mean change of the logit difference on the test prompts by strength, with 95 % "
            "intervals; random directions of the same "
            "length dashed.",
            [*curves, chance],
            over="strength",
            labels=("strength", "change of the logit difference"),
            title="Dose and response",
            limits=None,
            log=(False, False),
        )
    )
    return Section(
        title="Which layer, and how strongly?",
        question="strength × vector is added to the output of a block at every token of the "
        "prompt. Measured is logit(toward) − "
        "logit(away) of the next token. Every vector is as long as the difference that labels make "
        "at that block.",
        figures=figures,
        sees=[*_layer(rows, config), *_beside(rows, config)],
        tables=[
            Listing(
                caption="Every route on the test prompts. The slope is the mean over prompts, in "
                "logits per unit of strength, over "
                "strengths from −1 to 1; steered the other way is the share of prompts whose own "
                "slope is below 0.",
                header=_header(config),
                rows=list(_table(rows, config)),
            )
        ],
    )


def _routes(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    pairs = list(
        dict.fromkeys(
            (str(r.context["route"]), str(r.context["with"])) for r in select(rows, "cosine")
        )
    )
    figures: list[Drawing] = []
    if pairs:
        curves = [
            Curve(
                rows=select(rows, "cosine", route=a, **{"with": b}),
                label=f"{name_of(a, config)}, {name_of(b, config)}",
                colour=PALETTE[i % len(PALETTE)],
            )
            for i, (a, b) in enumerate(pairs)
        ]
        null = select(rows, "random_cosine")
        if null:
            curves.append(
                Curve(rows=null, label="random weight steps, labels", colour=GREY, dashed=True)
            )
        figures.append(
            draw_curves(
                "cosines",
                "Cosine of every two routes by block, with 95 % intervals where there are any; "
                "dashed: the middle 95 % of random "
                "weight steps beside labels.",
                curves,
                over="layer",
                labels=("block", "cosine"),
                title="Do the routes agree?",
                limits=(-1.02, 1.02),
                log=(False, False),
            )
        )
        figures.append(_matrix(rows, config))
    return Section(
        title="Do the routes agree?",
        question="Labels know no weights, and the gradient step was taken and read on other "
        "examples than those of the labels.",
        figures=figures,
        sees=_explained(rows, config, pairs) or ["One route alone was made: nothing to compare."],
    )


def _explained(
    rows: Sequence[Row], config: Mapping[str, Any], pairs: Sequence[tuple[str, str]]
) -> list[str]:
    """The cosines at the layers chosen, and what their intervals and their null are."""
    lines = list(_agreement(rows, config))
    if any("gradient" in pair for pair in pairs):
        lines.append(
            "Cosines with the gradient step have intervals over prompts and over gradient batches, "
            "drawn again together; those of "
            "labels and logits, which share their prompts, over prompts. A cosine with a search "
            "has none. "
            "They speak of vectors made from as many examples: noise lowers every cosine, the more "
            "so the fewer there are."
        )
    if select(rows, "random_cosine"):
        lines.append(
            f"The null: {config['null']} random steps of the weights, as long in every tensor as "
            "the gradient step, and their "
            "opposites. Their shifts share what any step of the weights does, which random "
            "directions of activations would not show."
        )
    if ("gradient", "logits") in pairs or ("logits", "gradient") in pairs:
        lines.append(
            "The logit gradient is what the rest of the network reads. A step that raises a logit "
            "can move late blocks along it "
            "whatever the labels: agreement with labels that goes no further than theirs with the "
            "logit gradient may be this alone."
        )
    return lines


def _matrix(rows: Sequence[Row], config: Mapping[str, Any]) -> Drawing:
    """The cosines at the first of the layers chosen, as a symmetric matrix."""
    layer, cells = _chosen(rows)[0], []
    for row in select(rows, "cosine", layer=layer):
        a, b = (name_of(str(row.context[k]), config) for k in ("route", "with"))
        cells += [replace(row, context={"a": x, "b": y}) for x, y in ((a, b), (b, a))]
    cells += [
        Row(quantity="cosine", value=1.0, context={"a": n, "b": n})
        for n in (name_of(r, config) for r in _made(rows))
    ]
    return draw_matrix(
        "matrix",
        f"Cosine of every two routes at block {layer}.",
        cells,
        over=("a", "b"),
        labels=("", ""),
        title=f"Cosines at block {layer}",
    )


def _damage(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    route = _made(rows)[0]
    name, colour = name_of(route, config), COLOURS[route]
    perplexity = select(rows, "perplexity", route=route)
    figures = [
        draw_curves(
            figure,
            caption,
            [Curve(rows=found, label=f"vector from {name}", colour=colour)],
            over="strength",
            labels=("strength", axis),
            title=title,
            limits=None,
            log=(False, figure == "perplexity"),
            base=2,  # marks within a decade
        )
        for figure, caption, found, axis, title in (
            ("kl", "KL divergence of the next tokens of neutral text by strength, with 95 % "
                   "intervals over passages.",
             select(rows, "kl", route=route), "KL, nats a token", "Damage"),
            ("perplexity", "Perplexity of neutral text by "
                           "strength.", perplexity, "perplexity", "Perplexity"),
        )
    ]  # fmt: skip
    before = number(perplexity[0].null) if perplexity else "not defined"
    lines = [
        f"At strength 1 the vector from {name_of(r, config)} moves the next tokens of neutral text "
        "by "
        f"{text_of(rows, 'kl', route=r, strength=1.0)} nats a token; perplexity goes from {before} "
        "to "
        f"{text_of(rows, 'perplexity', route=r, strength=1.0).removesuffix(' (no interval)')}."
        for r in _made(rows)
    ]
    for r in _made(rows):
        there = select(rows, "strength_at_kl", route=r)
        lines.append(
            f"{_upper(name_of(r, config))}: {config['kl']:g} nats a token are reached at strength "
            f"{number(there[0].value)}, where the "
            f"logit difference has moved by {text_of(rows, 'change_at_kl', route=r)}."
            if there
            else f"{_upper(name_of(r, config))}: no strength reaches {config['kl']:g} nats a token."
        )
    return Section(
        title="What does it damage?",
        question="The vector is added at every token of neutral text (passages, or the model's own "
        "samples). KL(p ‖ p′) is between the "
        "next token's distribution without and with it; positions where an answer is due (the "
        "model as it is gives the two answers "
        "more than half of the probability) are left out of it.",
        figures=figures,
        sees=lines,
    )


def _prompts(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    points: dict[str, list[tuple[float, float]]] = {}
    for route in COLOURS:  # in the order of their colours; a route that was not made has no points
        values = sorted(
            r.value for r in select(rows, "prompt_slope", route=route) if r.value is not None
        )
        points[name_of(route, config)] = [
            ((i + 0.5) / len(values), v) for i, v in enumerate(values)
        ]
    lines = [
        f"The vector from {name_of(r, config)} steers {text_of(rows, 'anti_steerable', route=r)} "
        "of the test prompts the other way."
        for r in _made(rows)
    ]
    chance = select(rows, "random_anti_steerable")
    if chance:
        lines.append(f"Of random directions, {_band(chance[0])} of the prompts.")
    return Section(
        title="Does it steer every prompt?",
        question="A mean can hide prompts that go the other way: here is the slope of each.",
        figures=[
            draw_points(
                "prompts",
                "Slope of every test prompt, sorted.",
                points,
                labels=("share of the test prompts", "logits per unit of strength"),
                title="Prompt by prompt",
                fitted=True,
            )
        ],
        sees=lines,
    )


def _texts(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    made = select(rows, "generation")
    strengths = sorted({r.value for r in made if r.value is not None})
    texts = {(str(r.context["prompt"]), r.value): str(r.context["text"]) for r in made}
    prompts = dict.fromkeys(prompt for prompt, _ in texts)
    return Section(
        title="What does it say?",
        question="The first test prompts that leave room, continued greedily with the vector at "
        "every token; 0 is the model as it is.",
        figures=[],
        sees=[],
        tables=[
            Listing(
                caption=f"Continuations by the vector from {name_of(_made(rows)[0], config)}; all "
                "of them, none picked.",
                header=("prompt", *(f"strength {s:g}" for s in strengths)),
                rows=[
                    [_line(p), *(_line(texts.get((p, s), "")) for s in strengths)] for p in prompts
                ],
            )
        ],
    )


def _line(text: str) -> str:
    """A text on one line, so that it fits a table."""
    return " ".join(text.split()) or "–"


def _upper(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
