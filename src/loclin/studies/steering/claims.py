"""The claims that the steering study decides, by rules written here before any run (measures §13,
§14).

At the last block every vector's effect is its readout: "steers as well" is decided at a block of
the median third, beyond the readout and in whitened activations; the late blocks, which the paper
speaks of, stand beside it. Where several things have to hold, p is the largest of theirs.

Null draws are means over units, as the estimates are. Random weight directions and unrelated tokens
are the same in all runs on one model: a mean over directions drawn anew in each would be too narrow
a null. Those of different models are independent, and so are permuted labels of different runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from loclin.run.rows import Claim, Row
from loclin.steering.estimands import Estimand
from loclin.studies.steering import names
from loclin.studies.steering.claims_found import (
    Found,
    Values,
    above_draws,
    beyond_readout,
    by_layer,
    chosen_layers,
    effects_beside,
    form,
    labels_say,
    readout_alone,
    whole,
    why_not,
    without,
)
from loclin.studies.steering.claims_settings import SteeringClaimsSettings as Settings
from loclin.studies.verdict import Condition, Drawn, Mean, Rule, Within, decided, rule

ALONG = 0.2  # a cosine, or a share of CAA's effect, below which a claim is refuted
AGREE = 0.5  # a mean cosine from which two routes "agree"


def decide(settings: Settings, rows: Sequence[Row]) -> list[Claim]:
    """All claims, adjusted over both directions of all of them."""
    found = Found.of(rows, settings.models)
    steps = [gradient_step_steers(settings, found, of) for of in names.ESTIMANDS]
    return decided([*steps, two_routes_agree(settings, found), search_steers(settings, found)])


def gradient_step_steers(settings: Settings, found: Found, of: Estimand) -> Rule:
    """The shift by a gradient step lies along CAA, more than the readout and chance give, and
    steers as well.
    """
    least, most = names.SIMILAR
    estimate = found.estimate(found.cosine(of, names.MIDDLE))
    return rule(
        settings,
        of,
        estimate,
        step_conditions(found, of) if estimate else (),
        id="gradient-step-steers",
        statement="One gradient step on the loss of an answer shifts activations along the vector "
        "from labels, beyond what the readout gives, and steers as well.",
        paper="cosine ≈ 0.58 at late layers, similar effect (Fig. 7); not said which estimand",
        measured=f"cos(Δh, CAA) at the middle block, {of}: {names.ESTIMANDS[of]}, by a step "
        f"forward and back, η = {settings.eta:g}; CAA in its {form(found)} form",
        null=f"{ALONG:g}; random weight directions matched tensor by tensor, both ways; CAA of "
        f"permuted labels{'; unrelated tokens' if of == 'E1' else ''}",
        rule="blocks: largest effect of CAA on examples of its own, the middle one in the median "
        "third, the late one in the later half; supported: at the middle one the cosine, that "
        "without both answers' mean gradients of log p (the readout) and that in whitened "
        f"activations are above {ALONG:g}, each above its null, and the effect over CAA's, at "
        f"equal length and at equal KL, is within {least:g} to {most:g} (two one-sided t-tests on "
        f"the log ratio); and at the late one the cosine is above {ALONG:g} and its null; refuted: "
        f"one of the cosines, but for the whitened, is below {ALONG:g}, or a ratio outside; "
        f"{_units(settings)}",
        note="; ".join(_steps_note(found, of)) if estimate else why_not(found, of),
    )


def two_routes_agree(settings: Settings, found: Found) -> Rule:
    """Weights without labels (E1) and labels without weights (CAA) agree over the late blocks."""
    estimate = found.estimate(found.cosine("E1", names.LATE))
    return rule(
        settings,
        "E1 and CAA, late blocks",
        estimate,
        route_conditions(found) if estimate else (),
        id="two-routes-agree",
        statement="Two routes, a gradient step towards one answer and labels without weights, give "
        "one direction.",
        paper="aligned at late layers (Fig. 8)",
        measured="cos(Δh, CAA) of disjoint examples, mean over the later half of the blocks, η = "
        f"{settings.eta:g}; CAA in its {form(found)} form",
        null=f"{AGREE:g}; random weight directions matched tensor by tensor, both ways; unrelated "
        f"tokens; CAA of permuted labels; beyond the readout {ALONG:g}, and random directions",
        rule=f"supported: above {AGREE:g}, and above the same mean of every null; and without both "
        f"answers' mean gradients of log p (the readout) above {ALONG:g} and its null; refuted: "
        f"below {AGREE:g}, or beyond the readout below {ALONG:g}; {_units(settings)}",
        note="; ".join(_routes_note(found)) if estimate else why_not(found, "E1"),
    )


def search_steers(settings: Settings, found: Found) -> Rule:
    """The best of many random weight steps shift activations along a direction that steers."""
    estimate, winners = found.estimate(_search_ratio(found), "plain"), settings.winners
    return rule(
        settings,
        f"{winners} best of {settings.candidates}",
        estimate,
        search_conditions(found) if estimate else (),
        id="search-steers",
        statement="The best of many random weight steps shift activations along a direction that "
        "steers.",
        paper="steers (Fig. 9)",
        measured="slope of the search vector's effect over that of CAA, at equal length, at the "
        "middle block",
        null=f"{ALONG:g}; {winners} steps with scores permuted, {settings.chance} draws a run",
        rule="steps are scored, read and tested on three disjoint parts; the middle block is "
        "chosen apart; against the null slopes are of strengths −1 and 1; supported: above "
        f"{ALONG:g}, and above the null; refuted: below {ALONG:g}; means are of plain ratios, "
        f"which may be below 0; {_units(settings)}",
        note="; ".join(_search_note(found))
        if estimate
        else "CAA does not steer: there is no effect to compare with",
    )


def _units(settings: Settings) -> str:
    """What intervals are over."""
    if settings.models > 1:
        return "units are models; runs on one are parts of its examples"
    return "one model: units are its runs, parts of the examples that share no group"


def step_conditions(found: Found, of: Estimand) -> tuple[Condition, ...]:
    """What has to hold of a gradient step's shift: cosines, and effects."""
    tokens, middle, (least, most) = of == "E1", names.MIDDLE, names.SIMILAR
    beyond = found.cosine(of, middle, names.READOUT)
    white = found.cosine(of, middle, names.WHITENED)
    effects = (
        Within(
            name=f"effect over CAA's at {when}",
            values=whole(found.values(quantity, condition=of, at=middle)),
            low=least,
            high=most,
            scale="log",
        )
        for when, quantity in (("equal length", "slope_ratio"), ("equal KL", "kl_ratio"))
    )
    return (
        _cosine_above("middle cosine", found.cosine(of, middle)),
        *_above_nulls(found, of, middle, tokens=tokens),
        _cosine_above("beyond the readout", beyond),
        found.drawn("beyond the readout, random steps", beyond, of, names.BEYOND, middle),
        # whitening makes the noise of both vectors larger: a low cosine there refutes nothing
        _cosine_above("whitened", white, refutes=False),
        found.drawn("whitened, random steps", white, of, names.IN_WHITENED, middle),
        _cosine_above("late cosine", found.cosine(of, names.CHOSEN)),
        *_above_nulls(found, of, names.CHOSEN, tokens=tokens),
        *effects,
    )


def route_conditions(found: Found) -> tuple[Condition, ...]:
    """What has to hold of two routes: the readout alone gives a cosine, and has none beyond it."""
    cosine, late = found.cosine("E1", names.LATE), names.LATE
    beyond = found.cosine("E1", late, names.READOUT)
    return (
        Mean(name=f"cosine above {AGREE:g}", values=cosine, threshold=AGREE, scale="fisher"),
        *_above_nulls(found, "E1", late, tokens=True),
        _cosine_above("beyond the readout", beyond),
        found.drawn("beyond the readout, random steps", beyond, "E1", names.BEYOND, late),
    )


def search_conditions(found: Found) -> tuple[Condition, ...]:
    """What has to hold of the search vector."""
    ratio = whole(_search_ratio(found))
    above = Mean(name=f"ratio above {ALONG:g}", values=ratio, threshold=ALONG)
    return (above, Drawn(name="permuted scores", value=_above_chance(found)))


def _search_ratio(found: Found) -> Values:
    return found.values("slope_ratio", condition=names.SEARCH, at=names.MIDDLE)


def _cosine_above(name: str, values: Values, *, refutes: bool = True) -> Mean:
    name = f"{name} above {ALONG:g}"
    return Mean(name=name, values=values, threshold=ALONG, scale="fisher", refutes=refutes)


def _above_nulls(found: Found, of: Estimand, at: str, *, tokens: bool) -> list[Drawn]:
    nulls = [names.BY_TENSOR, names.CAA_RELABELLED, *([names.TOKENS] if tokens else [])]
    observed = found.cosine(of, at)
    return [found.drawn(f"{at}: {null}", observed, of, null, at) for null in nulls]


def _above_chance(found: Found) -> float:
    observed = found.values("ends_ratio", condition=names.SEARCH)
    return above_draws(observed, found.draws("chance_ratio"), 1, scale="plain")


def _named(conditions: Sequence[Condition], models: int) -> str:
    return "p: " + ", ".join(f"{c.name} {c.p(models):.2g}" for c in conditions)


def _steps_note(found: Found, of: Estimand) -> list[str]:
    middle, late = names.MIDDLE, names.CHOSEN
    return [
        f"beyond the readout {found.text(found.cosine(of, middle, names.READOUT))}",
        f"effect over CAA's {effects_beside(found, of, middle)}",
        _named(step_conditions(found, of), found.models),
        labels_say(found, of, middle),
        f"late block: cosine {found.text(found.cosine(of, late))}, beyond the readout "
        f"{found.text(found.cosine(of, late, names.READOUT))}, effect over CAA's "
        f"{effects_beside(found, of, late)}, where the readout alone would give "
        f"{readout_alone(found, of)}",
        chosen_layers(found),
        f"all blocks: {by_layer(found, of)}",
        *without(found, of, middle),
        f"disattenuated {found.mean('disattenuated_at', 'plain', of=of, at=middle)}",
    ]


def _routes_note(found: Found) -> list[str]:
    late = names.LATE
    highest = found.cosine("E1", names.HIGHEST)
    corrected = found.drawn("", highest, "E1", names.BY_TENSOR, names.HIGHEST).value
    return [
        beyond_readout(found, "E1", late),
        f"the logit gradient itself {found.text(found.cosine(names.LOGITS, late))}",
        f"all blocks: {by_layer(found, 'E1')}",
        f"largest over blocks {found.text(highest)}, p {corrected:.2g} against the largest of "
        "random directions",
        _named(route_conditions(found), found.models),
        labels_say(found, "E1", late),
        f"ceiling by reliability {found.mean('ceiling_at', of='E1', at=late)}, disattenuated "
        f"{found.mean('disattenuated_at', 'plain', of='E1', at=late)}",
        *without(found, "E1", late),
    ]


def _search_note(found: Found) -> list[str]:
    here = {"condition": names.SEARCH}
    late = found.mean("slope_ratio", "plain", **here, at=names.CHOSEN)
    kl = found.mean("kl_ratio", "plain", **here, at=names.MIDDLE)
    step = found.mean("cosine_with_step_at", of=names.SEARCH, at=names.MIDDLE)
    ends = found.mean("ends_ratio", "plain", **here)
    return [
        f"p: permuted scores {_above_chance(found):.2g} (by strengths −1 and 1 {ends})",
        f"at equal KL {kl}, at the late block {late}",
        f"cosine with CAA {found.text(found.cosine(names.SEARCH, names.MIDDLE))}, with E1 {step}",
        chosen_layers(found),
    ]
