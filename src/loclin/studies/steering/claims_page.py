"""The steering claims on a page: whether labels, one gradient step and random search give one
direction, and whether each steers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from loclin.report.figures import PALETTE, Curve, Drawing, draw_curves, select
from loclin.report.section import Missing, Section, Table, made, text_of
from loclin.report.words import number
from loclin.run.rows import Row
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_page_conditions import GREY, effects, estimands, mean_text

COLOUR = {"E1": PALETTE[0], "E2": PALETTE[2], "E3": PALETTE[1]}
LIMITS = (-1.02, 1.02)
PLAIN = {"removed": names.NOTHING}
PAIRED_FORM = (
    "In these examples the right answer counts as +: CAA is the mean difference at the answer's "
    "token, E2 is E1, and E3 is not defined."
)


def sections(rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()) -> list[Section]:
    """The study's sections in reading order."""
    every = (_layers, _beyond, effects, _routes, _search, _frozen)
    return made([partial(part, rows, settings) for part in every], skip)


def _draw(name: str, caption: str, title: str, curves: Sequence[Curve], y: str) -> Drawing:
    """Cosines over layers."""
    look: dict[str, Any] = {"limits": LIMITS, "log": (False, False), "labels": ("layer", y)}
    return draw_curves(name, caption, curves, over="layer", title=title, **look)


def _cosines(
    rows: Sequence[Row], of: str, label: str, colour: str, removed: str = "", **look: Any
) -> Curve:
    """Cosines with CAA by layer."""
    found = select(rows, "cosine", of=of, removed=removed or names.NOTHING)
    return Curve(rows=found, label=label, colour=colour, **look)


def _null(rows: Sequence[Row], of: str, null: str, label: str, colour: str) -> Curve:
    """What 97.5 % of the draws of a null stay below, by layer."""
    found = select(rows, "null_cosine", of=of, null=null, statistic="97.5 %")
    return Curve(rows=found, label=f"97.5 % of {label}", colour=colour, dashed=True, band=False)


def _layers(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    shown, eta, curves, sizes = estimands(rows), settings["eta"], [], []
    for of in shown:
        found = [r for r in select(rows, "eta_cosine", of=of, at="late") if r.context["eta"] > 0]
        sizes.append(Curve(rows=found, label=of, colour=COLOUR[of]))
        curves.append(_cosines(rows, of, of, COLOUR[of]))
        curves.append(_null(rows, of, names.BY_TENSOR, f"random steps, {of}", COLOUR[of]))
    return Section(
        title="Does one gradient step shift activations along the vector from labels?",
        question="CAA is the difference that labels make to activations; Δh is what one step of "
        "the weights against the gradient of a loss does to them, on other prompts. The step is of "
        f"{settings['gradient']} examples, read on {settings['shift']} others; CAA is of "
        f"{settings['labels']} others again. An isotropic random vector of activations would have "
        f"a cosine of {mean_text(rows, 'isotropic_cosine')} (root mean square).",
        figures=[
            _draw(
                "cosine-layers",
                f"Cosine of the shift by one gradient step with CAA at every layer, η = {eta:g}; "
                "dashed: 97.5 % of the cosines of random weight directions with the gradient's "
                "norm in every tensor.",
                "Gradient step and labels",
                curves,
                "cos(Δh, CAA)",
            ),
            draw_curves(
                "cosine-eta",
                "The same cosine for a step forward alone, mean over the later half of the layers, "
                "over the length of the step.",
                sizes,
                over="eta",
                labels=("η, step over the weights' norm", "cos(Δh, CAA), late layers"),
                title="Over step size",
                limits=LIMITS,
            ),
        ],
        sees=[
            *([] if _class_form(rows) else [PAIRED_FORM]),
            *(_labels_say(rows, of) for of in shown),
        ],
        tables=[_angle_table(rows, eta), _null_table(rows)],
    )


def _labels_say(rows: Sequence[Row], of: str) -> str:
    """Whether CAA of permuted labels lies along the shift as well as CAA does."""
    here = {"of": of, "at": names.MIDDLE}
    cosine, level = (
        found[0].value if found else None
        for found in (
            select(rows, "cosine_at", **PLAIN, **here),
            select(rows, "null_at", null=names.CAA_RELABELLED, **here),
        )
    )
    if cosine is None or level is None:
        return f"{of} has no cosine with CAA at the middle block."
    return (
        f"{of} at the middle block: cosine {number(cosine)}; 97.5 % of CAA with permuted labels "
        f"stay below {number(level)}. Where that is no less, labels give the sign alone, and a "
        "dominant axis of the activations gives the size: the claim's note says which."
    )


def _class_form(rows: Sequence[Row]) -> bool:
    return all(r.value == 1 for r in select(rows, "class_form"))


def _angle_table(rows: Sequence[Row], eta: float) -> Table:
    """What was measured over the late layers and at the middle block, of every vector."""
    middle = {"at": names.MIDDLE}
    quantities: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine with CAA": ("cosine_at", PLAIN),
        "at the late block": ("cosine_at", {**PLAIN, "at": names.CHOSEN}),
        "at the best block of each run": ("cosine_at", {**PLAIN, "at": names.HIGHEST}),
        "at the middle block": ("cosine_at", {**PLAIN, **middle}),
        "there, without the readout": ("cosine_at", {"removed": names.READOUT, **middle}),
        "97.5 % of random steps there": ("null_at", {"null": names.BEYOND, **middle}),
        "there, in whitened activations": ("cosine_at", {"removed": names.WHITENED, **middle}),
        "97.5 % of random steps in these": ("null_at", {"null": names.IN_WHITENED, **middle}),
        **{label: ("cosine_at", {"removed": removed}) for removed, label in names.REMOVED.items()},
        "97.5 % of random steps without the readout": ("null_at", {"null": names.BEYOND}),
        "cosine with g": ("cosine_with_logits_at", {}),
        "cosine with CAA in the limit of small steps": ("eta_cosine", {"eta": 0.0}),
        "cosine of a step forward and minus one back": ("mirror_cosine", {"eta": eta}),
        "distance of a step forward from the limit": ("limit_error", {"eta": eta}),
        "distance of half the difference of both": ("centred_error", {"eta": eta}),
        "reliability": ("reliability_at", {}),
        "ceiling of the cosine by both reliabilities": ("ceiling_at", {}),
        "cosine over its ceiling": ("disattenuated_at", {}),
        "share of runs and blocks whose reliability is not above 0": ("unreliable", {}),
    }
    frozen = [names.frozen(of) for of in names.ESTIMANDS]
    every = [*names.ESTIMANDS, *frozen, names.PAIRED, names.LOGITS, names.SEARCH]
    there = {r.context["of"] for r in select(rows, "cosine")}
    shown, body = [*(of for of in every if of in there), names.CAA], []
    for label, (quantity, more) in quantities.items():
        context = {"at": "late", **more}
        text = mean_text if quantity == "unreliable" else text_of
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


def _null_table(rows: Sequence[Row]) -> Table:
    """The cosine and 97.5 % of every null, at the late layers (six of them at most)."""
    kinds = (names.WHOLE, names.BY_TENSOR, names.TOKENS, names.RELABELLED, names.CAA_RELABELLED)
    layers, body = sorted({r.context["layer"] for r in select(rows, "caa_length")}), []
    late = layers[len(layers) // 2 :]
    places = np.unique(np.linspace(0, len(late) - 1, 6).round().astype(int)) if late else ()
    for of in estimands(rows):
        for layer in (late[i] for i in places):
            found = partial(mean_text, rows, "null_cosine", of=of, layer=layer, statistic="97.5 %")
            cosine = text_of(rows, "cosine", of=of, layer=layer, **PLAIN)
            body.append([of, str(layer), cosine, *(found(null=null) for null in kinds)])
    return Table(
        caption="Cosine with CAA and 97.5 % of the draws of every null, mean over models: random "
        "weight directions of the gradient's norm as a whole and tensor by tensor, steps to "
        "unrelated tokens (all these both ways), permuted labels of the gradient batch (no chance "
        "level: such a step un-learns the answers), permuted labels of CAA.",
        header=("of", "layer", "cosine", *kinds),
        rows=body,
    )


def _beyond(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    shown, figures = [of for of in estimands(rows) if of != "E2"], []
    for of in shown:
        curves = [
            _cosines(rows, of, f"{of} and CAA", PALETTE[0]),
            _cosines(rows, of, "both without g", PALETTE[1], names.LOGITS),
            _cosines(rows, of, "both without the readout", PALETTE[2], names.READOUT),
            _cosines(rows, names.LOGITS, "g and CAA", PALETTE[3]),
            _null(rows, of, names.BEYOND, "random steps without the readout", GREY),
        ]
        caption = (
            f"{of} and CAA by layer as they are, without g, and without the readout; g and CAA; "
            "dashed: 97.5 % of random weight directions without the readout."
        )
        title = f"{of}, CAA and the readout"
        figures.append(_draw(f"beyond-{of.lower()}", caption, title, curves, "cosine"))
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
            "middle block too.",
        ],
    )


def _routes(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    ceiling = select(rows, "ceiling", of="E1")
    curves = [
        _cosines(rows, "E1", "E1 and CAA", PALETTE[0]),
        Curve(rows=ceiling, label="ceiling by reliability", colour=PALETTE[2], band=False),
        _null(rows, "E1", names.BY_TENSOR, "random steps", GREY),
        _null(rows, "E1", names.TOKENS, "unrelated tokens", PALETTE[4]),
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
        figures=[_draw("two-routes", figure, "Two independent routes", curves, "cosine")],
        sees=[],
    )


def _search(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    with_step = select(rows, "cosine_with_step", of=names.SEARCH)
    curves = [
        _cosines(rows, names.SEARCH, "search and CAA", PALETTE[0]),
        Curve(rows=with_step, label="search and E1", colour=PALETTE[1]),
        _null(rows, names.SEARCH, names.SCORES, f"{names.SCORES}, with CAA", GREY),
    ]
    caption = (
        "Vector of the best random weight steps: cosine with CAA and with E1 by layer, and 97.5 % "
        "of vectors of as many steps whose scores are permuted."
    )
    gain = partial(text_of, rows, "search_gain")
    effect = partial(text_of, rows, condition=names.SEARCH)
    at_middle = partial(effect, at=names.MIDDLE)
    lines = [
        f"The best {settings['winners']} of {settings['candidates']} random steps raise log p(+) "
        f"by {gain(among='winners')} nats where they are scored, all by {gain(among='all')}.",
        "At the middle block their vector moves the answers to the test prompts "
        f"{at_middle('slope_ratio')} times as much as CAA at equal length, "
        f"{at_middle('kl_ratio')} times at equal KL.",
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
        figures=[_draw("search-layers", caption, "Search, labels and gradient", curves, "cosine")],
        sees=lines,
    )


def _frozen(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    shown, curves = [of for of in estimands(rows) if of != "E2"], []
    for of in shown:
        frozen = names.frozen(of)
        curves.append(_cosines(rows, of, of, COLOUR[of]))
        curves.append(_cosines(rows, frozen, frozen, COLOUR[of], dashed=True))
    caption = (
        "The cosine with CAA by layer, of a step of all weights and of one that leaves the "
        "embeddings as they are."
    )
    return Section(
        title="Is it the embeddings?",
        question="A step may shift activations by moving the embeddings of the prompts' own "
        "tokens. Input, output and position embeddings are "
        f"{mean_text(rows, 'frozen_share')} of the weights; here they do not step.",
        figures=[_draw("frozen", caption, "Embeddings frozen", curves, "cos(Δh, CAA)")],
        sees=[],
    )
