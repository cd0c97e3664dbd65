"""The section of the steering claims on what every vector does to answers, at equal length and at
equal damage; and what it shares with the other sections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from loclin.report.figures import PALETTE, Curve, draw_curves, draw_dots, select
from loclin.report.section import Section, Table, text_of
from loclin.report.words import number
from loclin.run.rows import Row
from loclin.steering.estimands import Estimand
from loclin.studies.names import own
from loclin.studies.steering import claims_names as names

GREY = PALETTE[8]
KL = "strength_at_kl"
DRAWN = (names.CAA, "E1", "E3", names.LOGITS, names.SEARCH, names.STEP)


def mean_text(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    """The mean over units alone, as text."""
    found = select(rows, quantity, **context)
    return number(found[0].value if found else None)


def estimands(rows: Sequence[Row]) -> list[Estimand]:
    """Those that are defined for these examples."""
    found = {r.context["of"] for r in select(rows, "cosine_at", removed=names.NOTHING, at="late")}
    return [of for of in names.ESTIMANDS if of in found]


def _conditions(rows: Sequence[Row]) -> list[str]:
    """Those with a slope, but for the random directions' quantiles."""
    found = (r.context["condition"] for r in select(rows, "slope", at=names.MIDDLE))
    return [name for name in found if name not in names.RANDOM]


def effects(rows: Sequence[Row], settings: Mapping[str, Any]) -> Section:
    """Dose and response under every condition, and what it damages."""
    conditions = _conditions(rows)
    looks: dict[str, dict[str, Any]] = {
        c: {"label": c, "colour": colour, "band": c != names.STEP}  # whose band would hide the rest
        for c, colour in zip(DRAWN, PALETTE, strict=False)
        if c in conditions
    }
    for q in (names.LOW, names.HIGH):
        label = q.replace("random", "random directions")
        looks[q] = {"label": label, "colour": GREY, "dashed": True, "band": False}
    curves = [
        Curve(rows=select(rows, "response", condition=c, at=names.MIDDLE), **look)
        for c, look in looks.items()
    ]
    ratios = {
        name: [(c, r) for c in conditions for r in select(rows, quantity, condition=c, at=place)]
        for name, (quantity, place) in {
            "middle block, equal length": ("slope_ratio", names.MIDDLE),
            "middle block, equal KL": ("kl_ratio", names.MIDDLE),
            "late block, equal length": ("slope_ratio", names.CHOSEN),
        }.items()
    }
    block = partial(mean_text, rows, "layer")
    return Section(
        title="Does it steer as well?",
        question="Every vector is added to the output of one block, at every token of "
        f"{settings['test']} prompts that made nothing. The block is that of the largest effect of "
        f"CAA on {settings['choose']} others: in the median third {block(at=names.MIDDLE)}, in "
        f"the later half {block(at=names.CHOSEN)}, means over units. After the last block a "
        "vector only adds to logits, and its effect is its readout: the middle block decides. "
        "Damage is the KL divergence of the next token on neutral text, but where an answer is "
        "due. The same random directions are used in every run.",
        figures=[
            draw_curves(
                "dose",
                "Logit difference after the test prompts, less that of the model as it is, over "
                "the strength of every condition at the middle block; 1 is as long as CAA.",
                curves,
                over="strength",
                labels=("strength", "change of logit(+) − logit(−)"),
                title="Dose and response",
                limits=None,
                log=(False, False),
            ),
            draw_dots(
                "effects",
                "Effect under every condition over that of CAA: the slope at equal length, and the "
                "change at the strength of equal KL on neutral text. Plain mean over units with "
                "95 % interval; the claims take ratios on the log scale.",
                ratios,
                label="effect / effect of CAA",
                title="Beside CAA",
                fitted=True,
            ),
        ],
        sees=_sentences(rows),
        follows=[_use(rows, settings)] if own(settings) else (),
        tables=[_table(rows, settings, place) for place in (names.MIDDLE, names.CHOSEN)],
    )


def _use(rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """Where the vector from labels belongs, and how strongly."""
    here = {"condition": names.CAA, "at": names.MIDDLE}
    strength, slope = (q(rows, n, **here) for q, n in ((mean_text, KL), (text_of, "slope")))
    return (
        f"The vector from labels belongs at the output of block "
        f"{mean_text(rows, 'layer', at=names.MIDDLE)} (mean over units) at a strength up to "
        f"{strength}, where neutral text moves by {settings['kl']:g} nats a token; a unit of "
        f"strength moves the logit difference by {slope}."
    )


def _sentences(rows: Sequence[Row]) -> list[str]:
    """What the parts of E1 and the step itself do."""
    ratio = partial(text_of, rows, "slope_ratio", at=names.MIDDLE)
    parts = (names.E1_ALONG, names.E1_ACROSS, names.STEP)
    along, across, step = (ratio(condition=c) for c in parts)
    least, most = names.SIMILAR
    size = text_of(rows, "step_size", at=names.MIDDLE)
    return [
        f"Of E1 as long as CAA, the part along CAA moves answers by {along} of CAA's effect, the "
        f"part across it by {across}.",
        f"The weights' step itself, at η = {size} so that it shifts the block by as much as CAA is "
        f"long, moves answers {step} times as much as CAA does.",
        f"An effect counts as similar where two one-sided tests put its ratio within {least:g} and "
        f"{most:g} (the claims say whether it is); a difference that is not seen is no similarity.",
    ]


def _table(rows: Sequence[Row], settings: Mapping[str, Any], place: str) -> Table:
    columns: dict[str, tuple[Callable[..., str], str]] = {
        "slope": (text_of, "slope"),
        "over CAA's": (text_of, "slope_ratio"),
        "anti-steerable": (text_of, "anti_steerable"),
        "KL": (mean_text, "kl"),
        "perplexity": (mean_text, "perplexity"),
        "strength at equal KL": (mean_text, "strength_at_kl"),
        "over CAA's there": (text_of, "kl_ratio"),
    }

    def line(name: str) -> list[str]:
        here = {"condition": name, "at": place}
        return [name, *(text(rows, quantity, **here) for text, quantity in columns.values())]

    block = {names.MIDDLE: "At the middle block.", names.CHOSEN: "At the late block."}[place]
    return Table(
        caption=f"{block} Slope: change of the logit difference for a vector as long as CAA, over "
        "strengths up to 1 either way. Anti-steerable: share of prompts with a slope below 0, of "
        "which none counts as 0.005. KL and perplexity on neutral text at strength 1 (perplexity "
        "of the model as it is: "
        f"{mean_text(rows, 'perplexity', condition=names.MODEL, at=place)}); equal KL: "
        f"{settings['kl']:g} nats a token.",
        header=("condition", *columns),
        rows=[line(name) for name in [*_conditions(rows), *names.RANDOM]],
    )
