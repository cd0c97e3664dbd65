"""The steering study on a page, second part: what every vector does to answers, at equal length and
at equal damage; and the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loclin.record import Row
from loclin.report.angles import GREY, STEP, cosines, draw_layers, estimands, mean_text, null_band
from loclin.report.figures import PALETTE, Curve, draw_curves, draw_dots, select
from loclin.report.section import Section, Table, text_of
from loclin.report.words import number


def _arms(rows: Sequence[Row]) -> list[str]:
    """Arms with a slope, but for the random directions' quantiles."""
    return [
        r.context["arm"] for r in select(rows, "slope") if not r.context["arm"].startswith("random")
    ]


def effects(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    """Dose and response of every arm, and what it damages."""
    arms = _arms(rows)
    shown = [a for a in ("CAA", "E1", "E3", "logit gradient", "search", STEP) if a in arms]
    curves = [
        Curve(
            rows=select(rows, "response", arm=a), label=a, colour=PALETTE[i], band=a != STEP
        )  # whose band would hide all others
        for i, a in enumerate(shown)
    ]
    curves += [
        Curve(
            rows=select(rows, "response", arm=f"random, {q}"),
            label=f"random directions, {q}",
            colour=GREY,
            dashed=True,
            band=False,
        )
        for q in ("2.5 %", "97.5 %")
    ]
    ratios = {
        name: [(a, r) for a in arms for r in select(rows, quantity, arm=a)]
        for name, quantity in (("at equal length", "slope_ratio"), ("at equal KL", "kl_ratio"))
    }
    figures = [
        draw_curves(
            "dose",
            "Logit difference after the test prompts, less that of the model as it is, over the "
            "strength of every arm; 1 is as long as "
            "CAA.",
            curves,
            over="strength",
            labels=("strength", "change of logit(+) − logit(−)"),
            title="Dose and response",
            limits=None,
            log=(False, False),
        ),
        draw_dots(
            "effects",
            "Effect of every arm over that of CAA: the slope at equal length, and the change at "
            "the strength of equal KL on neutral "
            "text. Mean over runs with 95 % interval.",
            ratios,
            label="effect / effect of CAA",
            title="Beside CAA",
            fitted=True,
        ),
    ]
    return Section(
        title="Does it steer as well?",
        question="Every vector is added to the output of one layer, at every token of "
        f"{config['test']} prompts that made nothing. The "
        f"layer is that of the largest effect of CAA on {config['choose']} others, in the later "
        "half: "
        f"{mean_text(rows, 'layer')}, mean over runs; after the last block it only adds to logits. "
        "Damage is the KL divergence of "
        "the next token on neutral text, but where an answer is due. The same random directions "
        "are used in every run.",
        figures=figures,
        sees=_told(rows, config),
        tables=[_arm_table(rows)],
    )


def _told(rows: Sequence[Row], config: Mapping[str, Any]) -> list[str]:
    """How much every estimand and its parts move answers."""
    moved = [
        f"{of} moves answers {text_of(rows, 'slope_ratio', arm=of)} times as much as CAA at equal "
        "length, "
        f"{text_of(rows, 'kl_ratio', arm=of)} times at equal damage (KL {config['kl']:g})."
        for of in estimands(rows)
    ]
    return [
        *moved,
        "Of E1 at that length, the part along CAA moves answers by "
        f"{text_of(rows, 'slope_ratio', arm='E1 along CAA')} of CAA's effect, the part across it "
        "by "
        f"{text_of(rows, 'slope_ratio', arm='E1 across CAA')}; nearly all random directions as "
        "long as CAA lie between "
        f"{mean_text(rows, 'slope_ratio', arm='random, 2.5 %')} and "
        f"{mean_text(rows, 'slope_ratio', arm='random, 97.5 %')}.",
        f"The weights' step itself, at η = {text_of(rows, 'step_size')} so that it shifts the "
        "layer by as much as CAA is long, moves "
        f"answers {text_of(rows, 'slope_ratio', arm=STEP)} times as much as CAA does.",
        "An effect counts as similar where two one-sided tests put its ratio within 0.8 and 1.25 "
        "(the claims say whether it is); a "
        "difference that is not seen is no similarity.",
    ]


def _arm_table(rows: Sequence[Row]) -> Table:
    body = []
    for arm in [*_arms(rows), "random, 2.5 %", "random, median", "random, 97.5 %"]:
        cells = [text_of(rows, q, arm=arm) for q in ("slope", "slope_ratio", "anti_steerable")]
        cells += [mean_text(rows, q, arm=arm) for q in ("kl", "perplexity", "strength_at_kl")]
        body.append(
            [arm, *cells, text_of(rows, "kl_ratio", arm=arm) if arm in _arms(rows) else "–"]
        )
    return Table(
        caption="Slope: change of the logit difference for a vector as long as CAA, over strengths "
        "up to 1 either way. Anti-steerable: "
        "share of prompts with a slope below 0. KL and perplexity on neutral text at strength 1 "
        "(perplexity of the model as it is: "
        f"{mean_text(rows, 'perplexity', arm='the model')}).",
        header=(
            "arm",
            "slope",
            "over CAA's",
            "anti-steerable",
            "KL",
            "perplexity",
            "strength at equal KL",
            "over CAA's there",
        ),
        rows=body,
    )


def search(rows: Sequence[Row], config: Mapping[str, Any]) -> Section:
    """The search route."""
    figure = draw_layers(
        ("layer", "cosine"),
        "search-layers",
        "Vector of the best random weight steps: cosine with CAA and with E1 by layer, and 97.5 % "
        "of vectors of as many steps whose "
        "scores are permuted.",
        "Search, labels and gradient",
        [
            cosines(rows, "search", "search and CAA", PALETTE[0]),
            Curve(
                rows=select(rows, "cosine_with_step", of="search"),
                label="search and E1",
                colour=PALETTE[1],
            ),
            null_band(
                rows, "search", "permuted scores", "97.5 % of permuted scores, with CAA", GREY
            ),
        ],
    )
    chance = [r.value for r in select(rows, "chance_ratio") if r.value is not None]
    lines = [
        f"The best {config['winners']} of {config['candidates']} random steps raise log p(+) on "
        "the examples that score them by "
        f"{text_of(rows, 'search_gain', among='winners')} nats, all of them by "
        f"{text_of(rows, 'search_gain', among='all')}.",
        "Their vector moves the answers to the test prompts "
        f"{text_of(rows, 'slope_ratio', arm='search')} times as much as CAA at "
        f"equal length, {text_of(rows, 'kl_ratio', arm='search')} times at equal KL.",
    ]
    if chance:
        low, high = np.quantile(chance, [0.025, 0.975])
        lines.append(
            f"By strengths −1 and 1 alone it is {text_of(rows, 'ends_ratio', arm='search')}; of "
            "vectors of as many steps drawn without "
            f"regard to their scores, means over runs, 95 % lie between {number(float(low))} and "
            f"{number(float(high))}."
        )
    return Section(
        title="Does random search find a vector that steers?",
        question=f"Random weight steps of {config['search_size']:g} of the weights' norm are "
        "scored on one part of the examples; the "
        "mean shift of the best is read on a second, and tried on a third.",
        figures=[figure],
        sees=lines,
    )
