"""The claims that the steering study decides, by rules written here before any run (measures §13,
§14).

Every rule needs an interval over runs clear of its threshold and a p-value below 0.05 after Holm's
correction over the study's claims. Where several things have to hold, p is the largest of theirs
(intersection-union test).

Null draws are means over runs, as the estimates are. Random weight directions and unrelated tokens
are the same in every run: the runs share one model, and a mean over directions drawn anew in each
would be too narrow a null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from loclin.record import Claim, Row
from loclin.stats import Estimate, equivalence, mean_above, over_runs, permutation_p
from loclin.studies.steering.config import Config
from loclin.studies.table import by_run
from loclin.studies.verdict import LEVEL, adjusted, figures, setting, verdict

# a cosine, or a share of CAA's effect, below which the claim is refuted, as the paper's 0.58 would
# be
ALONG = 0.2
AGREE = 0.5  # a mean cosine from which two routes "agree"
SIMILAR = (0.8, 1.25)  # ratio of effects that counts as similar: the margins of bioequivalence
BY_TENSOR, TOKENS, RELABELLED = "weights by tensor", "unrelated tokens", "permuted labels"
# the same directions, held against what is left of the cosine without it
LEFT = "weights by tensor, without the readout"
#: The estimands, what each is, and what its second null is.
ESTIMANDS: Mapping[str, tuple[str, str]] = {
    "E1": ("mean shift, loss −log p(fixed answer)", TOKENS),
    "E2": ("mean shift, loss of the gold answers", RELABELLED),
    "E3": ("class contrast of the shift, loss of the gold answers", RELABELLED),
}
#: What is taken out of both vectors before their cosine, and how it is told.
REMOVED: Mapping[str, str] = {
    "logit gradient": "without the logit gradient g",
    "readout": "without both answers' gradients of log p (the readout)",
    "common mean": "without the common mean activation",
    "outliers": "without the largest coordinates",
}

#: What every interval of the study is over.
RUNS = "runs are parts of the examples of one model that share no group (for statements: facts may be shared, in other phrasings)"

Values = np.ndarray  # one number for each run


def decide(config: Config, rows: Sequence[Row]) -> list[Claim]:
    """All claims, p-values adjusted over them."""
    steps = [gradient_step_steers(config, rows, of) for of in ESTIMANDS]
    return adjusted([*steps, two_routes_agree(config, rows), search_steers(config, rows)])


def gradient_step_steers(config: Config, rows: Sequence[Row], of: str) -> Claim:
    """The shift by one gradient step lies along CAA, more than chance gives, and steers as well as
    CAA.
    """
    what, second = ESTIMANDS[of]
    cosine, ratio = (
        by_run(rows, "cosine_at", of=of, removed="nothing", at="chosen"),
        by_run(rows, "slope_ratio", arm=of),
    )
    e, share = _over(cosine), _over(ratio)
    blank = Claim(
        id="gradient-step-steers",
        statement="One gradient step on the loss of an answer shifts activations along the vector "
        "from labels, and steers as well.",
        setting=setting(config, f"{of}: {what}, layer chosen apart"),
        paper="cosine ≈ 0.58, similar effect (Fig. 7); not said which estimand",
        measured="cos(Δh, CAA) at the chosen layer, Δh by a step forward and back, η = "
        f"{config.eta:g}; CAA in its {_form(rows)} form",
        null=f"{ALONG:g}; random weight directions matched tensor by tensor, both ways; {second}",
        p=None,
        p_holm=None,
        rule="layer: largest effect of CAA on examples of its own, later half of the blocks; "
        f"supported: lower limit above {ALONG:g}, "
        "above both nulls, and the effect over CAA's, at equal length and at equal KL, equivalent "
        f"within {SIMILAR[0]:g} to "
        f"{SIMILAR[1]:g} (two one-sided t-tests on the log ratio); refuted: upper limit below "
        f"{ALONG:g}, or the interval of the "
        f"ratio at equal length wholly outside these; {RUNS}",
        verdict="not run",
        **figures(e),  # type: ignore[arg-type]
    )
    if e is None:
        return _noted(blank, _not_run(rows, of))
    p = [
        mean_above(cosine, ALONG),
        _above_draws(rows, e.value, of, BY_TENSOR, "chosen"),
        _above_draws(rows, e.value, of, second, "chosen"),
        _similar(ratio),
        _similar(by_run(rows, "kl_ratio", arm=of)),
    ]
    other = share is not None and (share.high < SIMILAR[0] or share.low > SIMILAR[1])
    decided = verdict(e.low > ALONG and max(p) < LEVEL, e.high < ALONG or other)
    return _with(
        blank,
        max(p),
        decided,
        "; ".join([*_effect_notes(rows, of, share, p), *_cosine_notes(rows, of)]),
    )


def _effect_notes(
    rows: Sequence[Row], of: str, share: Estimate | None, p: Sequence[float]
) -> list[str]:
    """The ratio of effects, at equal length and at equal damage, and the p of every part of the
    rule.
    """
    names = (
        f"cosine above {ALONG:g}",
        BY_TENSOR,
        ESTIMANDS[of][1],
        "equivalence at equal length",
        "at equal KL",
    )
    return [
        f"slope over CAA's {'not defined (CAA does not steer)' if share is None else share} at "
        "equal length, "
        f"{_text(by_run(rows, 'kl_ratio', arm=of))} at equal KL",
        "p: " + ", ".join(f"{name} {value:.2g}" for name, value in zip(names, p, strict=True)),
        *_unlearnt(rows, of),
        f"chosen layers {_layers(rows)}",
    ]


def _cosine_notes(rows: Sequence[Row], of: str) -> list[str]:
    """Layer by layer, and without what could make a cosine by itself."""
    without = [
        f"{told} {_text(by_run(rows, 'cosine_at', of=of, removed=name, at='chosen'))}"
        for name, told in REMOVED.items()
    ]
    late = [
        f"layer {layer} {_text(by_run(rows, 'cosine', of=of, removed='nothing', layer=layer))}"
        for layer in _late(rows)
    ]
    corrected = _text(by_run(rows, "disattenuated_at", of=of, at="chosen"))
    caa = _text(by_run(rows, "null_at", of=of, null="permuted labels of CAA", at="chosen"))
    axis = f"97.5 % of CAA with permuted labels {caa} (the axis between the classes stays in the activations)"
    return [
        _beyond(rows, of, "chosen"),
        f"late layers: {', '.join(late)}",
        *without,
        f"disattenuated {corrected}",
        axis,
    ]


def _unlearnt(rows: Sequence[Row], of: str) -> list[str]:
    """What the draws of permuted labels are, where they are a null."""
    if ESTIMANDS[of][1] != RELABELLED:
        return []
    middle = _text(by_run(rows, "null_median", of=of, null=RELABELLED, at="chosen"))
    return [
        f"a step towards permuted labels un-learns the answers, median cosine {middle}: no chance "
        "level"
    ]


def _beyond(rows: Sequence[Row], of: str, at: str) -> str:
    """What is left of a cosine without the readout, and how much random steps have left: what the
    verdict does not ask.
    """
    left = by_run(rows, "cosine_at", of=of, removed="readout", at=at)
    e = _over(left)
    if e is None:
        return "beyond the readout not defined"
    p = _above_draws(rows, e.value, of, LEFT, at)
    level = _text(by_run(rows, "null_at", of=of, null=LEFT, at=at))
    return f"beyond the readout, which the verdict does not ask: {e}, p {p:.2g} against random directions (97.5 % of them {level})"


def two_routes_agree(config: Config, rows: Sequence[Row]) -> Claim:
    """Weights without label contrast (E1) and labels without weights (CAA), from different
    examples, agree over the late layers.
    """
    cosine = by_run(rows, "cosine_at", of="E1", removed="nothing", at="late")
    e = _over(cosine)
    blank = Claim(
        id="two-routes-agree",
        statement="Two routes, a gradient step towards one answer and labels without weights, give "
        "one direction.",
        setting=setting(config, "E1 against CAA, late layers, disjoint examples"),
        paper="aligned at late layers (Fig. 8)",
        measured=f"cos(Δh, CAA), mean over the later half of the blocks, η = {config.eta:g}; CAA "
        f"in its {_form(rows)} form",
        null=f"{AGREE:g}; random weight directions matched tensor by tensor, both ways; unrelated "
        "tokens; neither is a "
        "step that raises the answer's probability and nothing else, which the note holds it "
        "against",
        p=None,
        p_holm=None,
        rule=f"supported: lower limit above {AGREE:g}, and above the same mean of both nulls; "
        f"refuted: upper limit below {AGREE:g}; "
        f"{RUNS}",
        verdict="not run",
        **figures(e),  # type: ignore[arg-type]
    )
    if e is None:
        return _noted(blank, _not_run(rows, "E1"))
    nulls = {null: _above_draws(rows, e.value, "E1", null, "late") for null in (BY_TENSOR, TOKENS)}
    highest = by_run(rows, "cosine_at", of="E1", removed="nothing", at="highest")
    corrected = _above_draws(rows, float(np.mean(highest)), "E1", BY_TENSOR, "highest")
    every = [
        f"{layer}: {_text(by_run(rows, 'cosine', of='E1', removed='nothing', layer=layer))}"
        for layer in _all_layers(rows)
    ]
    without = [
        f"{told} {_text(by_run(rows, 'cosine_at', of='E1', removed=name, at='late'))}"
        for name, told in REMOVED.items()
    ]
    notes = [
        _beyond(rows, "E1", "late"),
        "the logit gradient itself "
        f"{_text(by_run(rows, 'cosine_at', of='logit gradient', removed='nothing', at='late'))}",
        f"layer by layer {', '.join(every)}",
        f"largest over layers {_text(highest)}, p {corrected:.2g} against the largest of random "
        "directions",
        f"p: {', '.join(f'{name} {value:.2g}' for name, value in nulls.items())}",
        f"ceiling by reliability {_text(by_run(rows, 'ceiling_at', of='E1', at='late'))}, "
        "disattenuated "
        f"{_text(by_run(rows, 'disattenuated_at', of='E1', at='late'))}",
        *without,
    ]
    return _with(
        blank,
        max(mean_above(cosine, AGREE), *nulls.values()),
        verdict(e.low > AGREE, e.high < AGREE),
        "; ".join(notes),
    )


def search_steers(config: Config, rows: Sequence[Row]) -> Claim:
    """The mean shift of the best of many random weight steps steers, more than that of as many
    steps drawn without selection.
    """
    ratio = by_run(rows, "slope_ratio", arm="search")
    e = _over(ratio)
    blank = Claim(
        id="search-steers",
        statement="The best of many random weight steps shift activations along a direction that "
        "steers.",
        setting=setting(
            config, f"{config.winners} best of {config.candidates}, layer chosen apart"
        ),
        paper="steers (Fig. 9)",
        measured="slope of the search vector's effect over that of CAA, at equal length, at the "
        "chosen layer",
        null=f"{ALONG:g}; {config.winners} steps with scores permuted, {config.chance} draws",
        p=None,
        p_holm=None,
        rule="steps are scored, read and tested on three disjoint parts; against the null slopes "
        "are of strengths −1 and 1; "
        f"supported: lower limit above {ALONG:g}, and above the null; refuted: upper limit below "
        f"{ALONG:g}; {RUNS}",
        verdict="not run",
        **figures(e),  # type: ignore[arg-type]
    )
    if e is None:
        return _noted(blank, "CAA does not steer: there is no effect to compare with")
    observed = float(np.mean(by_run(rows, "ends_ratio", arm="search")))
    chance = permutation_p(observed, _draws(rows, "chance_ratio"))
    notes = [
        f"p: ratio above {ALONG:g} {mean_above(ratio, ALONG):.2g}, permuted scores {chance:.2g}",
        f"at equal KL {_text(by_run(rows, 'kl_ratio', arm='search'))}",
        "cosine with CAA "
        f"{_text(by_run(rows, 'cosine_at', of='search', removed='nothing', at='chosen'))}, with E1 "
        f"{_text(by_run(rows, 'cosine_with_step_at', of='search', at='chosen'))}",
        f"chosen layers {_layers(rows)}",
    ]
    return _with(
        blank,
        max(mean_above(ratio, ALONG), chance),
        verdict(e.low > ALONG, e.high < ALONG),
        "; ".join(notes),
    )


def _similar(ratio: Values) -> float:
    """p of "the effects are not similar": 1 where some run's ratio has no logarithm."""
    if np.isnan(ratio).any() or (ratio <= 0).any():
        return 1.0
    return equivalence(np.log(ratio), math.log(SIMILAR[0]), math.log(SIMILAR[1])).p


def _above_draws(rows: Sequence[Row], observed: float, of: str, null: str, at: str) -> float:
    """p of a mean over runs against null draws of it; 1 where nothing was drawn."""
    return permutation_p(observed, _draws(rows, "null_draw", of=of, null=null, at=at))


def _draws(rows: Sequence[Row], quantity: str, **context: str) -> Values:
    """Draw i of every run, averaged over runs; NaN, which no observation is above, where a run has
    none.
    """
    found: dict[int, list[float]] = {}
    for row in rows:
        if (
            row.quantity == quantity
            and "run" in row.context
            and all(row.context.get(k) == v for k, v in context.items())
        ):
            found.setdefault(row.context["draw"], []).append(
                math.nan if row.value is None else row.value
            )
    return np.array([np.mean(values) for _, values in sorted(found.items())])


def _over(values: Values) -> Estimate | None:
    return None if not len(values) or np.isnan(values).all() else over_runs(values)


def _text(values: Values) -> str:
    """The mean over runs with its interval, where it is defined in some run."""
    e = _over(values)
    return "not defined" if e is None else str(e)


def _late(rows: Sequence[Row]) -> list[int]:
    layers = _all_layers(rows)
    return layers[len(layers) // 2 :]


def _all_layers(rows: Sequence[Row]) -> list[int]:
    return sorted(
        {
            r.context["layer"]
            for r in rows
            if r.quantity == "cosine" and r.context["removed"] == "nothing"
        }
    )


def _layers(rows: Sequence[Row]) -> str:
    """The layers chosen, and in how many runs each."""
    chosen = by_run(rows, "layer")
    return ", ".join(
        f"{int(layer)} ({int((chosen == layer).sum())} of {len(chosen)} runs)"
        for layer in np.unique(chosen)
    )


def _form(rows: Sequence[Row]) -> str:
    """Of CAA: what there is depends on the data."""
    return "class" if (by_run(rows, "class_form") == 1).all() else "paired"


def _not_run(rows: Sequence[Row], of: str) -> str:
    if _form(rows) == "class":
        return "not measured"
    return (
        "the right answer counts as + in every example: E2 is E1"
        if of == "E2"
        else "examples have no classes"
    )


def _noted(claim: Claim, note: str) -> Claim:
    return _with(claim, None, "not run", note)


def _with(claim: Claim, p: float | None, decided: str, note: str) -> Claim:
    return replace(claim, p=p, verdict=decided, note=note)
