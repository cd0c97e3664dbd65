"""The steering study on a page: whether labels, one gradient step and random search give one
direction, and whether each steers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loclin.record import Row
from loclin.report.angles import (
    BY_TENSOR,
    CAA_RELABELLED,
    COLOUR,
    ESTIMANDS,
    GREY,
    LEFT,
    LIMITS,
    RELABELLED,
    TOKENS,
    WHOLE,
    cosines,
    draw_layers,
    estimands,
    mean_text,
    null_band,
    one,
)
from loclin.report.figures import PALETTE, Curve, draw_curves, select
from loclin.report.section import Section, Table, text_of
from loclin.report.steered_arms import effects, search
from loclin.report.words import number


def sections(rows: Sequence[Row], config: Mapping[str, Any]) -> list[Section]:
    """The study's sections in reading order."""
    found = [
        _layers(rows, config),
        _beyond(rows, config),
        effects(rows, config),
        _routes(rows, config),
    ]
    return [*found, search(rows, config), _frozen(rows, config)]


def _class_form(rows: Sequence[Row]) -> bool:
    return all(r.value == 1 for r in select(rows, "class_form"))


def _layers(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    shown = estimands(rows)
    curves = [cosines(rows, of, of, COLOUR[of]) for of in shown]
    curves += [
        null_band(rows, of, BY_TENSOR, f"97.5 % of random steps, {of}", COLOUR[of]) for of in shown
    ]
    sizes = [
        Curve(
            rows=[r for r in select(rows, "eta_cosine", of=of, at="late") if r.context["eta"] > 0],
            label=of,
            colour=COLOUR[of],
        )
        for of in shown
    ]
    figures = [
        draw_layers(
            ("layer", "cos(Δh, CAA)"),
            "cosine-layers",
            "Cosine of the shift by one gradient step with CAA at every layer, η = "
            f"{config['eta']:g}; dashed: 97.5 % of the cosines "
            "of random weight directions with the gradient's norm in every tensor.",
            "Gradient step and labels",
            curves,
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
    ]
    lines = [
        f"{ESTIMANDS[of]}: cosine "
        f"{text_of(rows, 'cosine_at', of=of, removed='nothing', at='chosen')} at the layer chosen "
        "apart, "
        f"{text_of(rows, 'cosine_at', of=of, removed='nothing', at='late')} over the late layers; "
        "without the common mean activation "
        f"{text_of(rows, 'cosine_at', of=of, removed='common mean', at='late')}, without the "
        f"{config['outliers']} coordinates of the "
        f"largest activations {text_of(rows, 'cosine_at', of=of, removed='outliers', at='late')}; "
        "in the limit of small steps "
        f"{text_of(rows, 'eta_cosine', of=of, at='late', eta=0.0)}."
        for of in shown
    ]
    lines += [_small_step(rows, config, of) for of in shown]
    lines.append(_forms(rows))
    lines.append(
        "Permuted labels of CAA are no null of the step: the axis between the classes stays in the "
        "activations. Where it is most of "
        "their variance, CAA of permuted labels lies along it too, with either sign."
    )
    return Section(
        title="Does one gradient step shift activations along the vector from labels?",
        question="CAA is the difference that labels make to activations; Δh is what one step of "
        "the weights against the gradient of a "
        f"loss does to them, on other prompts. The step is of {config['gradient']} examples, read "
        f"on {config['shift']} others; CAA is "
        f"of {config['labels']} others again. An isotropic random vector of activations would have "
        "a cosine of "
        f"{mean_text(rows, 'isotropic_cosine')} (root mean square).",
        figures=figures,
        sees=lines,
        tables=[_null_table(rows)],
    )


def _small_step(rows: Sequence[Row], config: Mapping[str, Any], of: str) -> str:
    at: dict[str, Any] = {"of": of, "at": "late", "eta": config["eta"]}
    return (
        f"At η = {config['eta']:g} a step forward has the {of} shift off the limit of small steps "
        "by "
        f"{text_of(rows, 'limit_error', **at)} of its length, half the difference of a step "
        "forward and back, which is taken, by "
        f"{text_of(rows, 'centred_error', **at)}; the two are mirror images to a cosine of "
        f"{text_of(rows, 'mirror_cosine', **at)}."
    )


def _forms(rows: Sequence[Row]) -> str:
    if not _class_form(rows):
        return (
            "In these examples the right answer counts as +: CAA is the mean difference at the "
            "answer's token, E2 is E1, and E3 is not "
            "defined."
        )
    return (
        "CAA of the classes and of paired answers (at the answer's token) have the cosine "
        f"{text_of(rows, 'cosine_at', of='paired CAA', removed='nothing', at='late')} over the "
        "late layers."
    )


def _null_table(rows: Sequence[Row]) -> Table:
    """The cosine and 97.5 % of every null, at the late layers (six of them at most)."""
    kinds = (WHOLE, BY_TENSOR, TOKENS, RELABELLED, CAA_RELABELLED)
    body = []
    for of in estimands(rows):
        for layer in _late(rows):
            cells = [text_of(rows, "cosine", of=of, removed="nothing", layer=layer)]
            for null in kinds:
                found = select(
                    rows, "null_cosine", of=of, null=null, layer=layer, statistic="97.5 %"
                )
                cells.append(number(found[0].value) if found else "–")
            body.append([of, str(layer), *cells])
    return Table(
        caption="Cosine with CAA and 97.5 % of the draws of every null, mean over runs: random "
        "weight directions of the gradient's "
        "norm as a whole and tensor by tensor, steps to unrelated tokens (all these both ways), "
        "permuted labels of the gradient batch "
        "(no chance level: such a step un-learns the answers), permuted labels of CAA.",
        header=("of", "layer", "cosine", *kinds),
        rows=body,
    )


def _late(rows: Sequence[Row]) -> list[int]:
    layers = sorted({r.context["layer"] for r in select(rows, "caa_length")})
    late = layers[len(layers) // 2 :]
    return (
        [late[i] for i in np.unique(np.linspace(0, len(late) - 1, 6).round().astype(int))]
        if late
        else []
    )


def _beyond(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figures, lines = [], []
    for of in [e for e in estimands(rows) if e != "E2"]:
        figures.append(
            draw_layers(
                ("layer", "cosine"),
                f"beyond-{of.lower()}",
                f"{of} and CAA by layer as they are, without g, and without the readout; g and "
                "CAA; dashed: 97.5 % of random weight "
                "directions without the readout.",
                f"{of}, CAA and the readout",
                [
                    cosines(rows, of, f"{of} and CAA", PALETTE[0]),
                    cosines(rows, of, "both without g", PALETTE[1], removed="logit gradient"),
                    cosines(rows, of, "both without the readout", PALETTE[2], removed="readout"),
                    cosines(rows, "logit gradient", "g and CAA", PALETTE[3]),
                    null_band(rows, of, LEFT, "97.5 % of random steps without the readout", GREY),
                ],
            )
        )
        lines += _in_plain_words(rows, of)
    return Section(
        title="What does agreement at late layers add beyond the gradient of the logits?",
        question="At late layers any step that raises an answer's probability must push "
        "activations along the way in which the rest of "
        "the network reads that answer; and labels differ along it too, if the model answers "
        "right. Two vectors can then agree and say "
        "nothing further about each other. g is the mean gradient of the logit difference; the "
        "readout is the span of the mean "
        "gradients of both answers' log-probabilities, which g lies in. Gradients of single "
        "prompts differ from their means: what is "
        "left may still be on the way to the logits for some of them.",
        figures=figures,
        sees=lines,
    )


def _in_plain_words(rows: Sequence[Row], of: str) -> list[str]:
    """What is left of the agreement without g and without the readout, and what that means."""
    whole, left, step, labels = (
        one(rows, quantity, at="late", **context)
        for quantity, context in (
            ("cosine_at", {"of": of, "removed": "nothing"}),
            ("cosine_at", {"of": of, "removed": "readout"}),
            ("cosine_with_logits_at", {"of": of}),
            ("cosine_at", {"of": "logit gradient", "removed": "nothing"}),
        )
    )
    chance = one(rows, "null_at", of=of, null=LEFT, at="late")
    if (
        whole is None
        or left is None
        or step is None
        or labels is None
        or chance is None
        or chance.value is None
    ):
        return [f"{of}: not defined in these runs."]
    told = [
        f"{of}, late layers: the cosine with CAA is {number(whole.value)}. g alone has the cosine "
        f"{number(step.value)} with {of} and "
        f"{number(labels.value)} with CAA. Without g {of} and CAA have "
        f"{text_of(rows, 'cosine_at', of=of, removed='logit gradient', at='late')}, without the "
        "readout "
        f"{text_of(rows, 'cosine_at', of=of, removed='readout', at='late')}, where 97.5 % of "
        "random weight directions stay below "
        f"{number(chance.value)}."
    ]
    if left.low is None or left.high is None:
        told.append(
            f"Whether {of} and CAA share more than the readout cannot be said from one run."
        )
    elif left.low > chance.value:
        told.append(
            f"So {of} and CAA share something that is not along the mean gradients of the answers' "
            "log-probabilities, more than random "
            "steps do."
        )
    elif left.high < chance.value:
        told.append(
            f"So the agreement of {of} and CAA at late layers, as far as there is any, adds "
            "nothing to the readout that random steps "
            "would not: a step that raises an answer's probability has to go there."
        )
    else:
        told.append(
            f"Whether {of} and CAA share more than the readout cannot be said from these runs."
        )
    return told


def _routes(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    figure = draw_layers(
        ("layer", "cosine"),
        "two-routes",
        "E1 (weights) and CAA (labels, no weights) by layer, with the ceiling that their own noise "
        "allows, and 97.5 "
        "% of two nulls.",
        "Two independent routes",
        [
            cosines(rows, "E1", "E1 and CAA", PALETTE[0]),
            Curve(
                rows=select(rows, "ceiling", of="E1"),
                label="ceiling by reliability",
                colour=PALETTE[2],
                band=False,
            ),
            null_band(rows, "E1", BY_TENSOR, "97.5 % of random steps", GREY),
            null_band(rows, "E1", TOKENS, "97.5 % of unrelated tokens", PALETTE[4]),
        ],
    )
    lines = [
        "Over the late layers the two agree to "
        f"{text_of(rows, 'cosine_at', of='E1', removed='nothing', at='late')}, at most to "
        f"{text_of(rows, 'cosine_at', of='E1', removed='nothing', at='highest')} at the best layer "
        "of each run.",
        "Reliability over the late layers: CAA "
        f"{text_of(rows, 'reliability_at', of='CAA', at='late')}, E1 "
        f"{text_of(rows, 'reliability_at', of='E1', at='late')}; so two perfectly agreeing routes "
        "would show a cosine of "
        f"{text_of(rows, 'ceiling_at', of='E1', at='late')}. Corrected for that the cosine is "
        f"{text_of(rows, 'disattenuated_at', of='E1', at='late')}.",
    ]
    return Section(
        title="Do two independent routes give one direction?",
        question=f"One route sees weights {_and_what(rows)}, the other labels and no weights, on "
        "examples that share no group "
        "(of the built-in statements: they share facts, in other phrasings). Runs are parts of the "
        "examples of one model: intervals "
        "say nothing of other models. "
        "The reliability of each is that of halves of its examples (for the step, of both of its "
        "parts).",
        figures=[figure],
        sees=lines,
    )


def _and_what(rows: Sequence[Row]) -> str:
    """Of the examples' form: in the paired form a step towards the fixed answer is one towards the
    right one.
    """
    return "and no contrast of labels" if _class_form(rows) else "and which answer is right"


def _frozen(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    shown = [of for of in estimands(rows) if of != "E2"]
    curves = []
    for of in shown:
        curves.append(cosines(rows, of, of, COLOUR[of]))
        frozen = select(rows, "cosine", of=_frozen_name(of), removed="nothing")
        curves.append(Curve(rows=frozen, label=_frozen_name(of), colour=COLOUR[of], dashed=True))
    figure = draw_layers(
        ("layer", "cos(Δh, CAA)"),
        "frozen",
        "The cosine with CAA by layer, of a step of all weights and of one that leaves the "
        "embeddings as they are.",
        "Embeddings frozen",
        curves,
    )
    lines = [
        f"{of} over the late layers: "
        f"{text_of(rows, 'cosine_at', of=of, removed='nothing', at='late')} with all weights, "
        f"{text_of(rows, 'cosine_at', of=_frozen_name(of), removed='nothing', at='late')} with "
        "embeddings frozen."
        for of in shown
    ]
    return Section(
        title="Is it the embeddings?",
        question="A step may shift activations by moving the embeddings of the prompts' own "
        "tokens. Input, output and position "
        f"embeddings are {mean_text(rows, 'frozen_share')} of the weights; here they do not step.",
        figures=[figure],
        sees=lines,
    )


def _frozen_name(of: str) -> str:
    return f"{of}, embeddings frozen"
