"""One steering vector: how strongly it steers, whether routes agree on it, what it damages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, draw_matrix, draw_points
from loclin.report.section import Missing, Section, Table, made
from loclin.report.words import estimate_text, number, p_text
from loclin.run.rows import Row
from loclin.studies.steering import names
from loclin.studies.steering.view import Steered

GREY = "#555555"
HEADER = ("vector from", "slope", "p", "steered the other way")
KL_CAPTION = "KL of the next tokens of neutral text by strength, with 95 % intervals over passages."
_plain = partial(draw_curves, limits=None, log=(False, False))


def sections(rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()) -> list[Section]:
    """The page's sections in reading order; the terminal shows the first two."""
    s = Steered(rows, settings)
    parts = [
        _strength,
        _agreement,
        _damage,
        _prompts,
        *([_texts] if s.of(names.GENERATION) else []),
    ]
    return made([partial(part, s) for part in parts], skip)


def _strength(s: Steered) -> Section:
    route, tried = s.routes[0], s.of(names.LAYER_SLOPE)
    chance, label = s.of(names.RANDOM_CHANGE), "random directions, middle 95 %"
    curves = [s.curve(names.CHANGE, r) for r in s.routes]
    figures = [
        _plain(
            "dose",
            "Mean change of the logit difference on the test prompts by strength, with 95 % "
            "intervals; random directions of the same length dashed.",
            [*curves, Curve(rows=chance, label=label, colour=GREY, dashed=True)],
            over="strength",
            labels=("strength", "change of the logit difference"),
            title="Dose and response",
        )
    ]
    if tried:
        layers = _plain(
            "layers",
            f"Slope of the vector from {s.name(route)} at every block alone, on the part that "
            "chooses.",
            [replace(curves[0], rows=tried)],
            over="layer",
            labels=("block", "logits per unit of strength"),
            title="Which layer?",
        )
        figures.insert(0, layers)
    kl = f"{s.settings['kl']:g} nats"
    table = Table(
        caption="Every route on the test prompts. The slope is the mean over prompts, in logits "
        "per unit of strength, over strengths from −1 to 1; steered the other way is the share of "
        "prompts whose own slope is below 0.",
        header=(*HEADER, f"strength at {kl}", f"change at {kl}"),
        rows=list(_table(s)),
    )
    return Section(
        title="Which layer, and how strongly?",
        question="strength × vector is added to the output of a block at every token of the "
        "prompt. Measured is logit(toward) − logit(away) of the next token. Every vector is as "
        "long as the difference that labels make at that block.",
        figures=figures,
        sees=[*_layer(s), *_beside(s)],
        follows=[_use(s)],
        tables=[table],
        brief=True,
    )


def _use(s: Steered) -> str:
    """Where to add the vector and how strongly, or that it is no better than chance."""
    route, kl = s.routes[0], f"{s.settings['kl']:g} nats a token"
    slope, at_kl = s.of(names.SLOPE, route=route)[0], s.of(names.STRENGTH_AT_KL, route=route)
    name = f"The vector from {s.name(route)}"
    if slope.value is None or slope.value <= (slope.null or 0.0):
        return f"{name} steers no better than random directions do: do not use it."
    name += f" belongs at the output of block {', '.join(map(str, s.chosen))}"
    if not at_kl:
        return f"{name}; no strength that was tried moves neutral text by {kl}."
    return (
        f"{name}, at a strength up to {number(at_kl[0].value)}: there neutral text moves by {kl}, "
        f"and the logit difference by {s.text(names.CHANGE_AT_KL, route=route)}."
    )


def _table(s: Steered) -> Iterator[tuple[str, ...]]:
    """Every route: slope with p, anti-steerable share, strength at equal damage and what it does
    there.
    """
    for route in s.routes:
        slope, strength = s.of(names.SLOPE, route=route)[0], s.of(names.STRENGTH_AT_KL, route=route)
        yield (
            s.name(route),
            estimate_text(slope.value, slope.low, slope.high),
            p_text(slope.p),
            s.text(names.ANTI_STEERABLE, route=route),
            number(strength[0].value) if strength else "never",
            s.text(names.CHANGE_AT_KL, route=route),
        )
    for row in s.of(names.RANDOM_SLOPE):
        share = "".join(map(_band, s.of(names.RANDOM_ANTI_STEERABLE)))
        yield (f"{row.n} random directions", _band(row), "–", share, "–", "–")


def _band(row: Row) -> str:
    """Where the middle 95 % of random directions lie."""
    return f"{number(row.low)} to {number(row.high)}"


def _layer(s: Steered) -> Iterator[str]:
    """Where the vector is added, why there, and what strength 1 is."""
    chosen, tried = s.chosen, s.of(names.LAYER_SLOPE)
    where = f"block{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))}"
    if tried:
        best = next(r for r in tried if r.context["layer"] == chosen[0])
        yield (
            f"The vector is added to the output of {where} of {len(tried)}: there its slope on the "
            f"{s.settings['choose']} prompts that choose is largest, "
            f"{estimate_text(best.value, best.low, best.high)} logits per unit of strength."
        )
        if s.settings.get("without_block_0"):
            yield "Block 0 was not among them: a control vector of llama.cpp has none there."
        if (best.value or 0.0) <= 0:
            yield "No block has a slope above 0: this vector does not steer towards + here at all."
    else:
        yield f"The vector is added to the output of {where}, as asked."
    lengths = ", ".join(number(s.of(names.LENGTH, layer=n)[0].value) for n in chosen)
    yield f"Strength 1 is as long as the difference that labels make there: {lengths}."


def _beside(s: Steered) -> Iterator[str]:
    """How strongly the vector steers, beside random directions and the other routes."""
    route, *others = s.routes
    slope, chance = s.of(names.SLOPE, route=route)[0], s.of(names.RANDOM_SLOPE)[0]
    inside = slope.value is not None and abs(slope.value) <= (slope.null or 0.0)
    yield (
        f"One unit of strength moves the logit difference of the {s.settings['test']} test prompts "
        f"by {estimate_text(slope.value, slope.low, slope.high)} on average; {chance.n} random "
        f"directions of that length move it by {_band(chance)}"
        f"{', so that this is no more than chance does' if inside else ''}."
    )
    for other in others if slope.value else ():
        row = s.of(names.SLOPE, route=other)[0]
        # a ratio to, or of, what chance does means nothing
        some = not inside and row.value is not None and abs(row.value) > (row.null or 0.0)
        times = f", {number((row.value or 0.0) / (slope.value or 1.0))} times that" if some else ""
        yield f"{_upper(s.name(other))} at the same length: {number(row.value)}{times}."
    yield (
        "Intervals are 95 % over the test prompts, by group; p is against isotropic random "
        f"directions, at least {p_text(1 / (chance.n + 1))} with {chance.n} of them. They are a "
        "narrow null: most miss the few directions in which activations vary."
    )


def _agreement(s: Steered) -> Section:
    curves = [
        Curve(
            rows=s.of(names.COSINE, route=a, **{"with": b}),
            label=f"{s.name(a)}, {s.name(b)}",
            colour=PALETTE[i % len(PALETTE)],
        )
        for i, (a, b) in enumerate(s.pairs)
    ]
    if null := s.of(names.RANDOM_COSINE):
        label = "random weight steps, labels"
        curves.append(Curve(rows=null, label=label, colour=GREY, dashed=True))
    figures = []
    if curves:
        caption = (
            "Cosine of every two routes by block, with 95 % intervals where there are any; dashed: "
            "the middle 95 % of random weight steps beside labels."
        )
        at: dict[str, Any] = {"over": "layer", "labels": ("block", "cosine")}
        title, limits = "Do the routes agree?", (-1.02, 1.02)
        figures = [_plain("cosines", caption, curves, title=title, limits=limits, **at), _matrix(s)]
    return Section(
        title="Do the routes agree?",
        question=" ".join(_explained(s)),
        figures=figures,
        sees=list(_cosines(s)) or ["One route alone was made: nothing to compare."],
        brief=True,
    )


def _cosines(s: Steered) -> Iterator[str]:
    """The cosines at the layers chosen."""
    for layer in s.chosen:
        for row in s.of(names.COSINE, layer=layer):
            a, b = s.name(row.context["route"]), s.name(row.context["with"])
            null = ""
            if row.null is not None:
                null = f"; 5 % of random weight steps have more than {number(row.null)}, p = "
                null += p_text(row.p)
            cosine = estimate_text(row.value, row.low, row.high)
            yield f"Block {layer}: cos({a}, {b}) = {cosine}{null}."


def _explained(s: Steered) -> Iterator[str]:
    """What is compared, and what the intervals and the null are."""
    yield (
        "Labels know no weights, and the gradient step was taken and read on other examples than "
        "those of the labels."
    )
    if any("gradient" in pair for pair in s.pairs):
        yield (
            "Cosines with the gradient step have intervals over prompts and over gradient batches; "
            "those of labels and logits over prompts; those with a search none. They speak of "
            "vectors made from as many examples: noise lowers every cosine."
        )
    if s.of(names.RANDOM_COSINE):
        yield (
            f"The null: {s.settings['null']} random steps of the weights, as long in every tensor "
            "as the gradient step, and their opposites. They share what any step of the weights "
            "does."
        )
    if {("gradient", "logits"), ("logits", "gradient")} & set(s.pairs):
        yield (
            "The logit gradient is what the rest of the network reads. A step that raises a logit "
            "can move late blocks along it whatever the labels, and agreement with labels may be "
            "this alone."
        )


def _matrix(s: Steered) -> Drawing:
    """The cosines at the first of the layers chosen, as a symmetric matrix."""
    layer, cells = s.chosen[0], []
    for row in s.of(names.COSINE, layer=layer):
        a, b = s.name(row.context["route"]), s.name(row.context["with"])
        cells += [replace(row, context={"a": x, "b": y}) for x, y in ((a, b), (b, a))]
    for n in map(s.name, s.routes):
        cells.append(Row(quantity=names.COSINE, value=1.0, context={"a": n, "b": n}))
    return draw_matrix(
        "matrix",
        f"Cosine of every two routes at block {layer}.",
        cells,
        over=("a", "b"),
        labels=("", ""),
        title=f"Cosines at block {layer}",
    )


def _damage(s: Steered) -> Section:
    route = s.routes[0]
    figures = [
        draw_curves(
            quantity,
            caption,
            [s.curve(quantity, route, "vector from {}")],
            over="strength",
            labels=("strength", axis),
            title=title,
            limits=None,
            log=(False, quantity == names.PERPLEXITY),
            base=2,  # marks within a decade
        )
        for quantity, title, axis, caption in (
            (names.KL, "Damage", "KL, nats a token", KL_CAPTION),
            (
                names.PERPLEXITY,
                "Perplexity",
                "perplexity",
                "Perplexity of neutral text by strength.",
            ),
        )
    ]
    perplexity = s.of(names.PERPLEXITY, route=route)
    before = number(perplexity[0].null) if perplexity else "not defined"
    return Section(
        title="What does it damage?",
        question="The vector is added at every token of neutral text. KL(p ‖ p′) is between the "
        "next token's distribution without and with it, but for positions where an answer is due "
        "(the model as it is gives the two answers more than half of the probability).",
        figures=figures,
        sees=[
            *(_damaged(s, r, before) for r in s.routes),
            *(_equal_damage(s, r) for r in s.routes),
        ],
    )


def _damaged(s: Steered, route: str, before: str) -> str:
    at = {"route": route, "strength": 1.0}
    after = s.text(names.PERPLEXITY, **at).removesuffix(" (no interval)")
    return (
        f"At strength 1 the vector from {s.name(route)} moves the next tokens of neutral text by "
        f"{s.text(names.KL, **at)} nats a token; perplexity goes from {before} to {after}."
    )


def _equal_damage(s: Steered, route: str) -> str:
    there, kl = s.of(names.STRENGTH_AT_KL, route=route), f"{s.settings['kl']:g} nats a token"
    if not there:
        return f"{_upper(s.name(route))}: no strength reaches {kl}."
    return (
        f"{_upper(s.name(route))}: {kl} are reached at strength {number(there[0].value)}, where "
        f"the logit difference has moved by {s.text(names.CHANGE_AT_KL, route=route)}."
    )


def _prompts(s: Steered) -> Section:
    points: dict[str, list[tuple[float, float]]] = {}
    for route in names.ROUTES:  # in the order of their colours; one that was not made has no points
        values = sorted(r.value or 0.0 for r in s.of(names.PROMPT_SLOPE, route=route))
        points[s.name(route)] = [((i + 0.5) / len(values), v) for i, v in enumerate(values)]
    lines = [
        f"The vector from {s.name(r)} steers {s.text(names.ANTI_STEERABLE, route=r)} of the test "
        "prompts the other way."
        for r in s.routes
    ]
    chance = s.of(names.RANDOM_ANTI_STEERABLE)
    lines += [f"Of random directions, {_band(row)} of the prompts." for row in chance]
    figure = draw_points(
        "prompts",
        "Slope of every test prompt, sorted.",
        points,
        labels=("share of the test prompts", "logits per unit of strength"),
        title="Prompt by prompt",
        fitted=True,
    )
    return Section(
        title="Does it steer every prompt?",
        question="A mean can hide prompts that go the other way: here is the slope of each.",
        figures=[figure],
        sees=lines,
    )


def _texts(s: Steered) -> Section:
    made = s.of(names.GENERATION)
    strengths = sorted({r.value or 0.0 for r in made})
    texts = {(str(r.context["prompt"]), r.value): str(r.context["text"]) for r in made}
    prompts = dict.fromkeys(prompt for prompt, _ in texts)
    table = Table(
        caption=f"Continuations by the vector from {s.name(s.routes[0])}; all of them, none "
        "picked.",
        header=("prompt", *(f"strength {strength:g}" for strength in strengths)),
        rows=[
            [" ".join(text.split()) or "–" for text in (p, *(texts[p, x] for x in strengths))]
            for p in prompts
        ],
    )
    return Section(
        title="What does it say?",
        question="The first test prompts that leave room, continued greedily with the vector at "
        "every token; 0 is the model as it is.",
        figures=[],
        sees=[],
        tables=[table],
    )


def _upper(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
