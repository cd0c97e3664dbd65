"""The steering claims on a page: whether labels, one gradient step and random search give one
direction, and whether each steers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from loclin.report.figures import Curve, Drawing, curve, draw_curves, draw_dots, select
from loclin.report.section import Missing, Section, Table, made, number_of, text_of
from loclin.report.words import number
from loclin.run.rows import Row
from loclin.steering.estimands import Estimand
from loclin.studies.names import own
from loclin.studies.steering import names

Rows = Sequence[Row]
Settings = Mapping[str, Any]
#: Places in the palette.
COLOUR, GREY = {"E1": 0, "E2": 2, "E3": 1}, 8
PLAIN, MIDDLE, LATE, LEVEL = names.PLAIN, names.AT_MIDDLE, names.AT_LATE, names.LEVEL
#: Conditions whose dose and response is drawn.
DRAWN = (names.CAA, "E1", "E3", names.LOGITS, names.SEARCH, names.STEP)
#: Nulls of the table by layer.
NULLS = (names.WHOLE, names.BY_TENSOR, names.TOKENS, names.RELABELLED, names.CAA_RELABELLED)
#: Columns of the table of effects.
EFFECTS = {
    "slope": (text_of, "slope"),
    "over CAA's": (text_of, "slope_ratio"),
    "anti-steerable": (text_of, "anti_steerable"),
    "KL": (number_of, "kl"),
    "perplexity": (number_of, "perplexity"),
    "strength at equal KL": (number_of, "strength_at_kl"),
    "over CAA's there": (text_of, "kl_ratio"),
}


def sections(rows: Rows, settings: Settings, skip: Missing = ()) -> list[Section]:
    """The study's sections in reading order."""
    every = (_layers, _beyond, _effects, _routes, _search, _frozen)
    return made([partial(part, rows, settings) for part in every], skip)


def estimands(rows: Rows) -> list[Estimand]:
    """Those that are defined for these examples."""
    found = {r.context["of"] for r in select(rows, "cosine_at", at="late", **PLAIN)}
    return [of for of in names.ESTIMANDS if of in found]


def _class_form(rows: Rows) -> bool:
    return all(r.value == 1 for r in select(rows, "class_form"))


def _draw(
    name: str, caption: str, title: str, curves: Sequence[Curve], y: str = "cosine", **more: Any
) -> Drawing:
    """Cosines over layers, or over another key."""
    look = {"over": "layer", "limits": (-1.02, 1.02), "log": (False, False), "labels": ("layer", y)}
    return draw_curves(name, caption, curves, title=title, **{**look, **more})


def _cosines(
    rows: Rows, of: str, label: str, colour: int, removed: str = names.NOTHING, **look: Any
) -> Curve:
    """Cosines with CAA by layer."""
    return curve(rows, "cosine", label, colour, of=of, removed=removed, **look)


def _null(rows: Rows, of: str, null: str, label: str, colour: int) -> Curve:
    """What 97.5 % of the draws of a null stay below, by layer."""
    of_null: dict[str, Any] = {"of": of, "null": null, "statistic": LEVEL}
    label = f"{LEVEL} of {label}"
    return curve(rows, "null_cosine", label, colour, dashed=True, band=False, **of_null)


def _layers(rows: Rows, settings: Settings) -> Section:
    shown, eta, curves = estimands(rows), settings["eta"], list[Curve]()
    for of in shown:
        curves.append(_cosines(rows, of, of, COLOUR[of]))
        curves.append(_null(rows, of, names.BY_TENSOR, f"random steps, {of}", COLOUR[of]))
    stepped = [r for r in rows if r.context.get("eta") != 0]
    sizes = [curve(stepped, "eta_cosine", of, COLOUR[of], of=of, at="late") for of in shown]
    captions = (
        f"Cosine of one gradient step's shift with CAA at every layer, η = {eta:g}; dashed: 97.5 % "
        "of those of random weight directions with the gradient's norm in every tensor.",
        "The same cosine for a step forward alone, mean over the later half of the layers, over "
        "the length of the step.",
    )
    labels = ("η, step over the weights' norm", "cos(Δh, CAA), late layers")
    over_eta: dict[str, Any] = {"over": "eta", "labels": labels, "log": (True, False)}
    return Section(
        title="Does one gradient step shift activations along the vector from labels?",
        question="CAA is the difference that labels make to activations; Δh is what one step of "
        "the weights against the gradient of a loss does to them, on other prompts. The step is of "
        f"{settings['gradient']} examples, read on {settings['shift']} others; CAA is of "
        f"{settings['labels']} others again. An isotropic random vector of activations would have "
        f"a cosine of {number_of(rows, 'isotropic_cosine')} (root mean square).",
        figures=[
            _draw("cosine-layers", captions[0], "Step and labels", curves, "cos(Δh, CAA)"),
            _draw("cosine-eta", captions[1], "Over step size", sizes, **over_eta),
        ],
        sees=[
            *([] if _class_form(rows) else [names.PAIRED_FORM]),
            *(_labels_say(rows, of) for of in shown),
        ],
        tables=[_angle_table(rows, eta), _null_table(rows)],
    )


def _labels_say(rows: Rows, of: str) -> str:
    """Whether CAA of permuted labels lies along the shift as well as CAA does."""
    cosine = select(rows, "cosine_at", of=of, **PLAIN, **MIDDLE)
    level = select(rows, "null_at", of=of, null=names.CAA_RELABELLED, **MIDDLE)
    if not cosine or not level:
        return f"{of} has no cosine with CAA at the middle block."
    return (
        f"{of} at the middle block: cosine {number(cosine[0].value)}; 97.5 % of CAA with permuted "
        f"labels stay below {number(level[0].value)}. Where that is no less, labels give the sign "
        "alone, and a dominant axis of the activations gives the size: the claim's note says which."
    )


def _angle_table(rows: Rows, eta: float) -> Table:
    """What was measured over the late layers and at the middle block, of every vector."""
    frozen = [names.frozen(of) for of in names.ESTIMANDS]
    every = [*names.ESTIMANDS, *frozen, names.PAIRED, names.LOGITS, names.SEARCH]
    there = {r.context["of"] for r in select(rows, "cosine")}
    shown, body = [*(of for of in every if of in there), names.CAA], []
    for label, (quantity, more) in names.ANGLES.items():
        context = {"at": "late", **more}
        if "eta" in context:
            context["eta"] = eta if context["eta"] is None else context["eta"]
        text = number_of if quantity == "unreliable" else text_of
        body.append([label, *(text(rows, quantity, of=of, **context) for of in shown)])
    return Table(
        caption="Over the late layers, where nothing else is said. "
        + "; ".join(f"{of}: {what}" for of, what in names.ESTIMANDS.items())
        + f", by half the difference of a step forward and back at η = {eta:g}. Reliability: of "
        "halves of the examples, for a step of both of its parts; a cosine over its ceiling has no "
        "value where it is not above 0, which the last row counts. Cosines are averaged on "
        "Fisher's scale.",
        header=("", *shown),
        rows=body,
    )


def _null_table(rows: Rows) -> Table:
    """The cosine and 97.5 % of every null, at the late layers (six of them at most)."""
    layers = sorted({r.context["layer"] for r in select(rows, "caa_length")})
    late, body = layers[len(layers) // 2 :], []
    places = np.unique(np.linspace(0, len(late) - 1, 6).round().astype(int)) if late else ()
    for of in estimands(rows):
        for layer in (late[i] for i in places):
            here = {"of": of, "layer": layer}
            level = partial(number_of, rows, "null_cosine", statistic=LEVEL, **here)
            cosine = text_of(rows, "cosine", **here, **PLAIN)
            body.append([of, str(layer), cosine, *(level(null=null) for null in NULLS)])
    return Table(
        caption="Cosine with CAA and 97.5 % of the draws of every null, mean over models: random "
        "weight directions of the gradient's norm as a whole and tensor by tensor, steps to "
        "unrelated tokens (all these both ways), permuted labels of the gradient batch (no chance "
        "level: such a step un-learns the answers), permuted labels of CAA.",
        header=("of", "layer", "cosine", *NULLS),
        rows=body,
    )


def _beyond(rows: Rows, settings: Settings) -> Section:
    figures = []
    for of in estimands(rows):
        curves = [
            _cosines(rows, of, f"{of} and CAA", 0),
            _cosines(rows, of, "both without g", 1, names.LOGITS),
            _cosines(rows, of, "both without the readout", 2, names.READOUT),
            _cosines(rows, names.LOGITS, "g and CAA", 3),
            _null(rows, of, names.BEYOND, "random steps without the readout", GREY),
        ]
        caption = (
            f"{of} and CAA by layer as they are, without g, and without the readout; g and CAA; "
            "dashed: 97.5 % of random weight directions without the readout."
        )
        if of != "E2":
            title = f"{of}, CAA and the readout"
            figures.append(_draw(f"beyond-{of.lower()}", caption, title, curves))
    return Section(
        title="What does agreement at late layers add beyond the gradient of the logits?",
        question="At late layers any step that raises an answer's probability must push "
        "activations where the rest of the network reads that answer, and labels differ there too: "
        "two vectors can agree and say nothing further about each other. g is the mean gradient of "
        "the logit difference; the readout is the span of the mean gradients of both answers' "
        "log-probabilities, which g lies in. Gradients of single prompts differ from their means: "
        "what is left may still be on the way to the logits for some of them.",
        figures=figures,
        sees=[
            "Where the cosine without the readout lies above that of 97.5 % of random steps (see "
            "the table), a step and CAA share something that is not along the mean gradients of "
            "the answers' log-probabilities. Where it lies below, their agreement adds nothing to "
            "the readout: a step that raises an answer's probability has to go there. At the last "
            "block a vector's effect is its readout and nothing else; claims are decided at a "
            "middle block too."
        ],
    )


def _conditions(rows: Rows) -> list[str]:
    """Those with a slope, but for the random directions' quantiles."""
    found = (r.context["condition"] for r in select(rows, "slope", **MIDDLE))
    return [name for name in found if name not in names.RANDOM]


def _effects(rows: Rows, settings: Settings) -> Section:
    """Dose and response under every condition, and what it damages."""
    conditions = _conditions(rows)
    curves = [  # the band of the weights' step would hide the rest
        curve(rows, "response", c, i, band=c != names.STEP, condition=c, **MIDDLE)
        for i, c in enumerate(DRAWN)
        if c in conditions
    ]
    for q in (names.LOW, names.HIGH):
        label, at = q.replace("random", "random directions"), {"condition": q, **MIDDLE}
        curves.append(curve(rows, "response", label, GREY, dashed=True, band=False, **at))
    ratios = {
        name: [(c, r) for c in conditions for r in select(rows, quantity, condition=c, **place)]
        for name, quantity, place in (
            ("middle block, equal length", "slope_ratio", MIDDLE),
            ("middle block, equal KL", "kl_ratio", MIDDLE),
            ("late block, equal length", "slope_ratio", LATE),
        )
    }
    block = partial(number_of, rows, "layer")
    captions = (
        "Logit difference after the test prompts, less that of the model as it is, over the "
        "strength of every condition at the middle block; 1 is as long as CAA.",
        "Effect under every condition over that of CAA: the slope at equal length, and the change "
        "at the strength of equal KL on neutral text. Plain mean over units with 95 % interval; "
        "the claims take ratios on the log scale.",
    )
    labels = ("strength", "change of logit(+) − logit(−)")
    dose: dict[str, Any] = {"over": "strength", "labels": labels, "limits": None}
    beside: dict[str, Any] = {"label": "effect / effect of CAA", "title": "Beside CAA"}
    return Section(
        title="Does it steer as well?",
        question="Every vector is added to the output of one block, at every token of "
        f"{settings['test']} prompts that made nothing. The block is that of the largest effect of "
        f"CAA on {settings['choose']} others: in the median third {block(**MIDDLE)}, in "
        f"the later half {block(**LATE)}, means over units. After the last block a "
        "vector only adds to logits, and its effect is its readout: the middle block decides. "
        "Damage is the KL divergence of the next token on neutral text, but where an answer is "
        "due. The same random directions are used in every run.",
        figures=[
            _draw("dose", captions[0], "Dose and response", curves, **dose),
            draw_dots("effects", captions[1], ratios, fitted=True, **beside),
        ],
        sees=_sentences(rows),
        follows=[_use(rows, settings)] if own(settings) else (),
        tables=[
            _effect_table(rows, settings, "At the middle block.", names.MIDDLE),
            _effect_table(rows, settings, "At the late block.", names.CHOSEN),
        ],
    )


def _use(rows: Rows, settings: Settings) -> str:
    """Where the vector from labels belongs, and how strongly."""
    strength = number_of(rows, "strength_at_kl", condition=names.CAA, **MIDDLE)
    slope = text_of(rows, "slope", condition=names.CAA, **MIDDLE)
    block = number_of(rows, "layer", **MIDDLE)
    return (
        f"The vector from labels belongs at the output of block {block} (mean over units) at a "
        f"strength up to {strength}, where neutral text moves by {settings['kl']:g} nats a token; "
        f"one unit moves the logit difference by {slope}."
    )


def _sentences(rows: Rows) -> list[str]:
    """What the parts of E1 and the step itself do."""
    ratio, (least, most) = partial(text_of, rows, "slope_ratio", **MIDDLE), names.SIMILAR
    along, across = (ratio(condition=part) for part in (names.E1_ALONG, names.E1_ACROSS))
    return [
        f"Of E1 as long as CAA, the part along CAA moves answers by {along} of CAA's effect, the "
        f"part across it by {across}.",
        f"The weights' step itself, at η = {text_of(rows, 'step_size', **MIDDLE)} so that it "
        "shifts the block by as much as CAA is long, moves answers "
        f"{ratio(condition=names.STEP)} times as much as CAA does.",
        f"An effect counts as similar where two one-sided tests put its ratio within {least:g} and "
        f"{most:g} (the claims say whether it is); a difference that is not seen is no similarity.",
    ]


def _effect_table(rows: Rows, settings: Settings, block: str, place: str) -> Table:
    before = number_of(rows, "perplexity", condition=names.MODEL, at=place)
    return Table(
        caption=f"{block} Slope: change of the logit difference for a vector as long as CAA, over "
        "strengths up to 1 either way. Anti-steerable: share of prompts with a slope below 0, of "
        "which none counts as 0.005. KL and perplexity on neutral text at strength 1 (perplexity "
        f"of the model as it is: {before}); equal KL: {settings['kl']:g} nats a token.",
        header=("condition", *EFFECTS),
        rows=[
            [c, *(text(rows, q, condition=c, at=place) for text, q in EFFECTS.values())]
            for c in [*_conditions(rows), *names.RANDOM]
        ],
    )


def _routes(rows: Rows, settings: Settings) -> Section:
    curves = [
        _cosines(rows, "E1", "E1 and CAA", 0),
        curve(rows, "ceiling", "ceiling by reliability", 2, band=False, of="E1"),
        _null(rows, "E1", names.BY_TENSOR, "random steps", GREY),
        _null(rows, "E1", names.TOKENS, "unrelated tokens", 4),
    ]
    figure = (
        "E1 (weights) and CAA (labels, no weights) by layer, with the ceiling that their own noise "
        "allows, and 97.5 % of two nulls."
    )
    # in the paired form a step towards the fixed answer is one towards the right one
    without = "no contrast of labels" if _class_form(rows) else "which answer is right"
    return Section(
        title="Do two independent routes give one direction?",
        question=f"One route sees weights and {without}, the other labels and no weights, on "
        "examples that share no group (of the built-in statements: they share facts, in other "
        "phrasings).",
        figures=[_draw("two-routes", figure, "Two independent routes", curves)],
        sees=[],
    )


def _search(rows: Rows, settings: Settings) -> Section:
    curves = [
        _cosines(rows, names.SEARCH, "search and CAA", 0),
        curve(rows, "cosine_with_step", "search and E1", 1, of=names.SEARCH),
        _null(rows, names.SEARCH, names.SCORES, f"{names.SCORES}, with CAA", GREY),
    ]
    caption = (
        "Vector of the best random weight steps: cosine with CAA and with E1 by layer, and 97.5 % "
        "of vectors of as many steps whose scores are permuted."
    )
    gain = partial(text_of, rows, "search_gain")
    effect = partial(text_of, rows, condition=names.SEARCH)
    lines = [
        f"The best {settings['winners']} of {settings['candidates']} random steps raise log p(+) "
        f"by {gain(among='winners')} nats where they are scored, all by {gain(among='all')}.",
        "At the middle block their vector moves the answers to the test prompts "
        f"{effect('slope_ratio', **MIDDLE)} times as much as CAA at equal length, "
        f"{effect('kl_ratio', **MIDDLE)} times at equal KL.",
    ]
    if chance := [r.value for r in select(rows, "chance_ratio") if r.value is not None]:
        low, high = np.quantile(chance, [0.025, 0.975])
        lines.append(
            f"By strengths −1 and 1 alone it is {effect('ends_ratio')}; of vectors of as many "
            "steps drawn without regard to their scores, means over runs, 95 % lie between "
            f"{number(float(low))} and {number(float(high))}."
        )
    return Section(
        title="Does random search find a vector that steers?",
        question=f"Random weight steps of {settings['search_size']:g} of the weights' norm are "
        "scored on one part of the examples; the mean shift of the best is read on a second, and "
        "tried on a third.",
        figures=[_draw("search-layers", caption, "Search, labels and gradient", curves)],
        sees=lines,
    )


def _frozen(rows: Rows, settings: Settings) -> Section:
    curves = [
        _cosines(rows, name, name, COLOUR[of], dashed=name != of)
        for of in estimands(rows)
        for name in (of, names.frozen(of))
        if of != "E2"
    ]
    caption = "The cosine with CAA by layer, of a step of all weights and of one that leaves the "
    caption += "embeddings as they are."
    return Section(
        title="Is it the embeddings?",
        question="A step may shift activations by moving the embeddings of the prompts' own "
        "tokens. Input, output and position embeddings are "
        f"{number_of(rows, 'frozen_share')} of the weights; here they do not step.",
        figures=[_draw("frozen", caption, "Embeddings frozen", curves, "cos(Δh, CAA)")],
        sees=[],
    )
