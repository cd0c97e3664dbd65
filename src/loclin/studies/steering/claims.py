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
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import Estimate, equivalence, mean_above, over_runs, permutation_p
from loclin.steering.estimands import Estimand
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_settings import SteeringClaimsSettings as Settings
from loclin.studies.verdict import LEVEL, adjusted, figures, setting, verdict

ALONG = 0.2  # a cosine, or a share of CAA's effect, below which a claim is refuted
AGREE = 0.5  # a mean cosine from which two routes "agree"
#: What every interval of the study is over.
RUNS = (
    "runs are parts of the examples of one model that share no group (for statements: facts may be "
    "shared, in other phrasings)"
)

Values = Float[np.ndarray, " S"]


def decide(settings: Settings, rows: Sequence[Row]) -> list[Claim]:
    """All claims, p-values adjusted over them."""
    steps = [gradient_step_steers(settings, rows, of) for of in names.ESTIMANDS]
    return adjusted([*steps, two_routes_agree(settings, rows), search_steers(settings, rows)])


def gradient_step_steers(settings: Settings, rows: Sequence[Row], of: Estimand) -> Claim:
    """The shift by a gradient step lies along CAA, more than chance gives, and steers as well."""
    second, (least, most) = names.SECOND_NULL[of], names.SIMILAR
    cosine, e = _cosine(rows, of), _estimate(_cosine(rows, of))
    ratio, at_kl = (by_run(rows, name, condition=of) for name in ("slope_ratio", "kl_ratio"))
    claim = _claim(
        e,
        id="gradient-step-steers",
        statement="One gradient step on the loss of an answer shifts activations along the vector "
        "from labels, and steers as well.",
        setting=setting(settings, f"{of}: {names.ESTIMANDS[of]}, layer chosen apart"),
        paper="cosine ≈ 0.58, similar effect (Fig. 7); not said which estimand",
        measured="cos(Δh, CAA) at the chosen layer, Δh by a step forward and back, η = "
        f"{settings.eta:g}; CAA in its {_form(rows)} form",
        null=f"{ALONG:g}; random weight directions matched tensor by tensor, both ways; {second}",
        rule="layer: largest effect of CAA on examples of its own, later half of the blocks; "
        f"supported: lower limit above {ALONG:g}, above both nulls, and the effect over CAA's, at "
        f"equal length and at equal KL, equivalent within {least:g} to {most:g} (two one-sided "
        f"t-tests on the log ratio); refuted: upper limit below {ALONG:g}, or the interval of the "
        "ratio at equal length wholly outside these",
    )
    if e is None:
        return replace(claim, note=_why_not(rows, of))
    p = {
        f"cosine above {ALONG:g}": mean_above(cosine, ALONG),
        names.BY_TENSOR: _above_draws(rows, e.value, of, names.BY_TENSOR, "chosen"),
        second: _above_draws(rows, e.value, of, second, "chosen"),
        "equivalence at equal length": _similar(ratio),
        "at equal KL": _similar(at_kl),
    }
    share = _estimate(ratio)
    other = share is not None and (share.high < least or share.low > most)
    layers, here = _layers(rows), {"of": of, "at": "chosen"}
    return _decided(
        claim,
        max(p.values()),
        e.low > ALONG and max(p.values()) < LEVEL,
        e.high < ALONG or other,
        f"slope over CAA's {share or 'not defined (CAA does not steer)'} at equal length, "
        f"{_text(at_kl)} at equal KL",
        _named(p),
        *_unlearnt(rows, of),
        _chosen_layers(rows),
        _beyond(rows, of, "chosen"),
        f"late layers: {_by_layer(rows, of, layers[len(layers) // 2 :], 'layer {} ')}",
        *_without(rows, of, "chosen"),
        f"disattenuated {_mean(rows, 'disattenuated_at', **here)}",
        "97.5 % of CAA with permuted labels "
        f"{_mean(rows, 'null_at', null=names.CAA_RELABELLED, **here)} (the axis between the "
        "classes stays in the activations)",
    )


def two_routes_agree(settings: Settings, rows: Sequence[Row]) -> Claim:
    """Weights without labels (E1) and labels without weights (CAA) agree over the late layers."""
    cosine, e = _cosine(rows, "E1", at="late"), _estimate(_cosine(rows, "E1", at="late"))
    claim = _claim(
        e,
        id="two-routes-agree",
        statement="Two routes, a gradient step towards one answer and labels without weights, give "
        "one direction.",
        setting=setting(settings, "E1 against CAA, late layers, disjoint examples"),
        paper="aligned at late layers (Fig. 8)",
        measured=f"cos(Δh, CAA), mean over the later half of the blocks, η = {settings.eta:g}; CAA "
        f"in its {_form(rows)} form",
        null=f"{AGREE:g}; random weight directions matched tensor by tensor, both ways; unrelated "
        "tokens; neither is a step that raises the answer's probability and nothing else, which "
        "the note holds it against",
        rule=f"supported: lower limit above {AGREE:g}, and above the same mean of both nulls; "
        f"refuted: upper limit below {AGREE:g}",
    )
    if e is None:
        return replace(claim, note=_why_not(rows, "E1"))
    both, highest = (names.BY_TENSOR, names.TOKENS), _cosine(rows, "E1", at="highest")
    nulls = {null: _above_draws(rows, e.value, "E1", null, "late") for null in both}
    corrected = _above_draws(rows, float(np.mean(highest)), "E1", names.BY_TENSOR, "highest")
    late = {"of": "E1", "at": "late"}
    return _decided(
        claim,
        max(mean_above(cosine, AGREE), *nulls.values()),
        e.low > AGREE,
        e.high < AGREE,
        _beyond(rows, "E1", "late"),
        f"the logit gradient itself {_text(_cosine(rows, names.LOGITS, at='late'))}",
        f"layer by layer {_by_layer(rows, 'E1', _layers(rows), '{}: ')}",
        f"largest over layers {_text(highest)}, p {corrected:.2g} against the largest of random "
        "directions",
        _named(nulls),
        f"ceiling by reliability {_mean(rows, 'ceiling_at', **late)}, disattenuated "
        f"{_mean(rows, 'disattenuated_at', **late)}",
        *_without(rows, "E1", "late"),
    )


def search_steers(settings: Settings, rows: Sequence[Row]) -> Claim:
    """The best of many random weight steps shift activations along a direction that steers."""
    ratio = by_run(rows, "slope_ratio", condition=names.SEARCH)
    e, winners = _estimate(ratio), settings.winners
    claim = _claim(
        e,
        id="search-steers",
        statement="The best of many random weight steps shift activations along a direction that "
        "steers.",
        setting=setting(settings, f"{winners} best of {settings.candidates}, layer chosen apart"),
        paper="steers (Fig. 9)",
        measured="slope of the search vector's effect over that of CAA, at equal length, at the "
        "chosen layer",
        null=f"{ALONG:g}; {winners} steps with scores permuted, {settings.chance} draws",
        rule="steps are scored, read and tested on three disjoint parts; against the null slopes "
        f"are of strengths −1 and 1; supported: lower limit above {ALONG:g}, and above the null; "
        f"refuted: upper limit below {ALONG:g}",
    )
    if e is None:
        return replace(claim, note="CAA does not steer: there is no effect to compare with")
    observed = float(np.mean(by_run(rows, "ends_ratio", condition=names.SEARCH)))
    p = {
        f"ratio above {ALONG:g}": mean_above(ratio, ALONG),
        "permuted scores": permutation_p(observed, _draws(rows, "chance_ratio")),
    }
    with_step = _mean(rows, "cosine_with_step_at", of=names.SEARCH, at="chosen")
    return _decided(
        claim,
        max(p.values()),
        e.low > ALONG,
        e.high < ALONG,
        _named(p),
        f"at equal KL {_mean(rows, 'kl_ratio', condition=names.SEARCH)}",
        f"cosine with CAA {_text(_cosine(rows, names.SEARCH))}, with E1 {with_step}",
        _chosen_layers(rows),
    )


def _claim(e: Estimate | None, *, rule: str, **words: str) -> Claim:
    """A claim that is not decided yet."""
    measured: dict[str, Any] = {**words, **figures(e)}
    return Claim(p=None, p_holm=None, rule=f"{rule}; {RUNS}", verdict="not run", **measured)


def _decided(claim: Claim, p: float, supported: bool, refuted: bool, *notes: str) -> Claim:
    return replace(claim, p=p, verdict=verdict(supported, refuted), note="; ".join(notes))


def _cosine(rows: Sequence[Row], of: str, removed: str = "", at: str = "chosen") -> Values:
    return by_run(rows, "cosine_at", of=of, removed=removed or names.NOTHING, at=at)


def _named(p: Mapping[str, float]) -> str:
    return "p: " + ", ".join(f"{name} {value:.2g}" for name, value in p.items())


def _by_layer(rows: Sequence[Row], of: str, layers: Sequence[int], label: str) -> str:
    found = {n: by_run(rows, "cosine", of=of, removed=names.NOTHING, layer=n) for n in layers}
    return ", ".join(label.format(n) + _text(values) for n, values in found.items())


def _without(rows: Sequence[Row], of: str, at: str) -> list[str]:
    """The cosine without what could make one by itself."""
    return [
        f"{label} {_text(_cosine(rows, of, name, at))}" for name, label in names.REMOVED.items()
    ]


def _unlearnt(rows: Sequence[Row], of: Estimand) -> list[str]:
    """What the draws of permuted labels are, where they are a null."""
    if names.SECOND_NULL[of] != names.RELABELLED:
        return []
    middle = _mean(rows, "null_median", of=of, null=names.RELABELLED, at="chosen")
    unlearns = "a step towards permuted labels un-learns the answers, median cosine"
    return [f"{unlearns} {middle}: no chance level"]


def _beyond(rows: Sequence[Row], of: str, at: str) -> str:
    """What is left of a cosine without the readout, and how much random steps have left."""
    e = _estimate(_cosine(rows, of, names.READOUT, at))
    if e is None:
        return "beyond the readout not defined"
    p = _above_draws(rows, e.value, of, names.BEYOND, at)
    level = _mean(rows, "null_at", of=of, null=names.BEYOND, at=at)
    return (
        f"beyond the readout, which the verdict does not ask: {e}, p {p:.2g} against random "
        f"directions (97.5 % of them {level})"
    )


def _similar(ratio: Values) -> float:
    """p of "the effects are not similar": 1 where some run's ratio has no logarithm."""
    if np.isnan(ratio).any() or (ratio <= 0).any():
        return 1.0
    return equivalence(np.log(ratio), *map(math.log, names.SIMILAR)).p


def _above_draws(rows: Sequence[Row], observed: float, of: str, null: str, at: str) -> float:
    """p of a mean over runs against null draws of it; 1 where nothing was drawn."""
    return permutation_p(observed, _draws(rows, "null_draw", of=of, null=null, at=at))


def _draws(rows: Sequence[Row], quantity: str, **context: str) -> Float[np.ndarray, " m"]:
    """Draw i averaged over runs; NaN, which no observation is above, where a run has none."""
    found: dict[int, list[float]] = {}
    for row in rows:
        here = row.context
        if row.quantity == quantity and "run" in here and context.items() <= here.items():
            value = math.nan if row.value is None else row.value
            found.setdefault(here["draw"], []).append(value)
    return np.array([np.mean(values) for _, values in sorted(found.items())])


def _estimate(values: Values) -> Estimate | None:
    return None if not len(values) or np.isnan(values).all() else over_runs(values)


def _text(values: Values) -> str:
    return str(_estimate(values) or "not defined")


def _mean(rows: Sequence[Row], quantity: str, **context: str) -> str:
    """Over runs with its interval, where it is defined in some run."""
    return _text(by_run(rows, quantity, **context))


def _layers(rows: Sequence[Row]) -> list[int]:
    cosines = (r.context for r in rows if r.quantity == "cosine")
    return sorted({c["layer"] for c in cosines if c["removed"] == names.NOTHING})


def _chosen_layers(rows: Sequence[Row]) -> str:
    """The layers chosen, and in how many runs each."""
    chosen = by_run(rows, "layer")
    counts = zip(*np.unique(chosen, return_counts=True), strict=True)
    found = ", ".join(f"{int(layer)} ({n} of {len(chosen)} runs)" for layer, n in counts)
    return f"chosen layers {found}"


def _form(rows: Sequence[Row]) -> str:
    """Of CAA: what there is depends on the data."""
    return "class" if (by_run(rows, "class_form") == 1).all() else "paired"


def _why_not(rows: Sequence[Row], of: Estimand) -> str:
    if _form(rows) == "class":
        return "not measured"
    if of == "E2":
        return "the right answer counts as + in every example: E2 is E1"
    return "examples have no classes"
