"""The claims that the recovery study decides, each by a rule written here before any run (measures
§14).

With LoRA captures are taken in ΔW space, which the choice of factors does not change; the note
beside the verdict gives those of the factors. Gradient bases, their drift and their rank are those
of the trained coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.correlation import (
    permuted_over_runs,
    permuted_rank_correlations,
    rank_correlation,
    rank_correlation_over_runs,
)
from loclin.run.rows import Claim, Row, by_run
from loclin.stats import Estimate, by_model, over_models
from loclin.studies.names import DRIFT, FROM_REST, OPTIMISERS, PREFIX, displacement
from loclin.studies.recovery.names import FULL, STATIC
from loclin.studies.recovery.settings import RecoverySettings
from loclin.studies.verdict import Condition, Mean, Rule, decided, drawn, mean, rule

MOST = 0.5  # "span most of", "drifts substantially": half
#: Of the score between damaged and unconfined training: what counts as worse than the prefix.
MARGIN = 0.05
#: By how much a future-only capture has to differ from that of a drift: the null is right to 0.005
#: where its premises hold, and to 0.012 with Adam's moving preconditioner (planted runs).
BEYOND = 0.02
#: What unconfined training has to regain for a share of it to mean something.
REGAINED = 0.1
PERMUTATIONS = 1999

Values = Float[np.ndarray, " S"]


def decide(settings: RecoverySettings, rows: Sequence[Row]) -> list[Claim]:
    """All claims, p-values adjusted over both directions of the whole family."""
    each = (
        static_bases_miss,
        basis_drifts,
        prefix_holds_most,
        prefix_beyond_drift,
        prefix_predicts_recovery,
    )
    rules = [of(settings, rows, o) for o in settings.learning_rates() for of in each]
    return decided([*rules, prefix_predicts_over_runs(settings, rows)])


def shares_behind(rows: Sequence[Row], optimiser: str, k: int) -> dict[str, Values]:
    """How much less than the prefix of k every fixed basis regains, and the prefix less than
    unconfined training, as shares of what unconfined training regains (measures §4).

    Not defined in a run whose unconfined training regains less than `REGAINED`.
    """
    here: dict[str, Any] = {"optimiser": optimiser, "k": k}
    full = by_run(rows, "regained_score", optimiser=optimiser, basis=FULL)
    prefix = by_run(rows, "regained_score", basis=PREFIX, **here)
    own = [r for r in rows if r.context.get("on", "") == r.context.get("task")]
    regained = full - by_run(own, "score", point="damaged")
    whole = np.where(regained >= REGAINED, regained, np.nan)
    behind = {b: prefix - by_run(rows, "regained_score", basis=b, **here) for b in STATIC}
    return {name: gap / whole for name, gap in {**behind, FULL: full - prefix}.items()}


def static_bases_miss(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> Rule:
    """Confined to any basis fixed beforehand, training regains less than within the prefix of the
    same size, by more than a margin.
    """
    k, behind = settings.k, shares_behind(rows, optimiser, settings.k)
    of_prefix = mean(settings, behind.pop(FULL))
    gaps = {b: e for b, values in behind.items() if (e := mean(settings, values))}
    nearest = min(gaps, key=lambda b: gaps[b].value, default=None)
    here: dict[str, Any] = {"optimiser": optimiser, "k": k, "space": settings.spaces[0]}
    held = {b: by_run(rows, "basis_capture", basis=b, of="displacement", **here) for b in STATIC}
    held[PREFIX] = by_run(rows, "prefix_capture", **here)
    captures = {b: over_models(v, settings.models, "logit").value for b, v in held.items()}
    runs = np.sum(~np.isnan(behind[STATIC[0]]))
    return rule(
        settings,
        OPTIMISERS[optimiser],
        gaps[nearest] if nearest else None,
        [Mean(name=f"{b} behind the prefix", values=behind[b], threshold=MARGIN) for b in gaps],
        id="static-bases-miss",
        statement=f"Confined to any of {len(STATIC)} bases fixed beforehand, training regains less "
        "than within the first updates.",
        paper="misses (Fig. 1, 3b)",
        measured=f"score regained within the first {k} updates less that within the nearest of "
        f"{len(STATIC)} fixed bases of {k} ({nearest}), as a share of what unconfined training "
        "regains; the interval is of that basis, and knows nothing of the choice",
        null=f"{MARGIN}: a fixed basis that regains as much as the prefix, within the margin",
        rule=f"supported: every fixed basis is behind by more than {MARGIN}; refuted: one is not "
        f"(times {len(STATIC)})",
        note=f"{'; '.join(f'behind within {b} {e}' for b, e in gaps.items())}; the prefix behind "
        f"unconfined training {of_prefix}; capture of {displacement(settings)} "
        + ", ".join(f"{b} {v:.3g}" for b, v in captures.items())
        + f"; unconfined training regains {REGAINED} or more in {runs} of {settings.runs} runs",
    )


def basis_drifts(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> Rule:
    """ρ(t) at the last measured t ≤ 100 below one half."""
    t = max(t for t in settings.times if t <= 100)
    here: dict[str, Any] = {"optimiser": optimiser, "t": t}

    def of(quantity: str, **context: Any) -> Estimate:
        return over_models(by_run(rows, quantity, **context, **here), settings.models, "logit")

    rho = by_run(rows, "rho", **here)
    floors = [of("overlap_floor", point=p) for p in ("damaged", "recovery")]
    overlaps = [of("overlap", batches=b) for b in ("independent", "same")]
    return rule(
        settings,
        OPTIMISERS[optimiser],
        mean(settings, rho),
        [Mean(name=f"ρ({t})", values=rho, threshold=MOST, below=True)],
        id="basis-drifts",
        statement="The useful basis moves substantially within 100 steps.",
        paper="within 100 steps (Fig. 1)",
        measured=f"ρ({t}): overlap of top-{settings.k} gradient bases at θ_D and θ_{t}, over the "
        "mean of what two sets of batches agree to at each of the two points",
        null=f"{MOST} (1: the basis stays, and only minibatch noise moves it)",
        rule=f"supported: ρ({t}) below {MOST}; refuted: above; not defined in a run where two sets "
        "of batches hardly agree at one of the points",
        note=f"two sets of batches agree to {floors[0]} at θ_D and {floors[1]} at θ_{t}; overlap "
        f"of θ_D and θ_{t} from independent batches {overlaps[0]}, from the same {overlaps[1]}; ρ "
        f"defined in {np.sum(~np.isnan(rho))} of {len(rho)} runs",
    )


def prefix_holds_most(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> Rule:
    """The prefix holds most of d, whatever the reason."""
    here: dict[str, Any] = {"optimiser": optimiser, "k": settings.k, "space": settings.spaces[0]}
    prefix = by_run(rows, "prefix_capture", **here)
    nulls = {
        null: over_models(by_run(rows, "prefix_capture_null", null=null, **here), settings.models)
        for null in _drifts(optimiser)
    }
    white = over_models(by_run(rows, "prefix_capture", column="null", **here), settings.models)
    return rule(
        settings,
        OPTIMISERS[optimiser],
        over_models(prefix, settings.models, "logit"),
        [Mean(name="prefix capture", values=prefix, threshold=MOST, scale="logit")],
        id="prefix-holds-most",
        statement="The first updates span most of the recovery.",
        paper="0.77 (Fig. 2)",
        measured=f"capture(Q_k, {displacement(settings)}), k = {settings.k} of T = "
        f"{settings.steps}",
        null=f"{MOST}",
        rule=f"supported: above {MOST}; refuted: below. It says nothing about why: the next claim "
        "does",
        note="; ".join(f"{null} with the same norms {e}" for null, e in nulls.items())
        + f"; white steps with the same norms {white}"
        + _elsewhere(settings, rows, optimiser),
    )


def _drifts(optimiser: str) -> tuple[str, ...]:
    """The drifts that a capture is held against; without momentum both are the same."""
    return (DRIFT,) if optimiser == "sgd" else (DRIFT, FROM_REST)


def prefix_beyond_drift(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> Rule:
    """The prefix holds more of the future than a constant drift would through the same optimiser,
    or less.

    With momentum two drifts bound what is expected (`theory.drift_gramian`): one that has its share
    from the first step, and one that comes through empty moments. More is more than both in every
    run, less is less than both.
    """
    here: dict[str, Any] = {"optimiser": optimiser, "k": settings.k, "space": settings.spaces[0]}
    future, drifts = by_run(rows, "future_capture", **here), _drifts(optimiser)
    above = {d: future - by_run(rows, "future_capture_null", null=d, **here) for d in drifts}
    excess = {d: over_models(values, settings.models) for d, values in above.items()}
    least, most = (extreme(list(above.values()), axis=0) for extreme in (np.min, np.max))
    less = Mean(
        name="excess over the smaller drift", values=most, threshold=BEYOND, refuted_at=-BEYOND
    )
    plain = len(drifts) == 1
    more = replace(less, name="excess over the drift", values=least, refutes=plain)
    memory = "SGD without momentum: no memory"
    if not plain:
        memory = "AdamW's moving average; its preconditioner, where it changes, is not in the null"
    return rule(
        settings,
        OPTIMISERS[optimiser],
        excess[DRIFT],
        (more, less)[: len(drifts)],
        id="prefix-beyond-drift",
        statement="The first updates hold more of the way still to come than a constant drift "
        "would.",
        paper="no such null",
        measured=f"capture(Q_k, f_k) in {settings.spaces[0]}, k = {settings.k} of T = "
        f"{settings.steps}, less that of a constant drift with the run's own norms",
        null="0: constant drift and white noise through the optimiser, with the run's own norms",
        rule=f"supported: above {BEYOND}; refuted: below −{BEYOND}"
        + ("" if plain else "; in each case for both drifts")
        + ". The drift's share of a step is one for all steps: more may mean that the basis is "
        "special, or that signal fades below the noise along the way"
        + ("" if plain else ", or a slow turn that momentum hides")
        + "; less that the direction turns, or that signal grows",
        note=f"future-only capture {over_models(future, settings.models, 'logit')}; "
        + "; ".join(f"less the {d} {e}" for d, e in excess.items())
        + f"; {memory}",
    )


def _elsewhere(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> str:
    """Prefix capture in the space that does not decide, and whether the two spaces disagree."""
    if len(settings.spaces) < 2:
        return ""
    here, there = (
        by_run(rows, "prefix_capture", optimiser=optimiser, k=settings.k, space=s)
        for s in settings.spaces
    )
    gap = over_models(there - here, settings.models)
    apart = "they disagree" if gap.low > 0 or gap.high < 0 else "they do not disagree"
    factors = over_models(there, settings.models, "logit")
    return f"; in the factors {factors}, {gap} more than in ΔW: {apart}"


def prefix_predicts_recovery(
    settings: RecoverySettings, rows: Sequence[Row], optimiser: str
) -> Rule:
    """Among bases of equal size, those that hold more of d bring back more of the task.

    At equal k, because a larger k raises capture and score alike whatever the basis. A type of
    basis is the same thing in every run: scores are exchanged among types, in all runs alike.
    """
    found = captures_and_scores(rows, optimiser, settings.k, settings.spaces[0])
    runs = sorted({run for run, _ in found})
    of_runs = ([both for (r, _), both in found.items() if r == run] for run in runs)
    pairs = [(x, y) for x, y in (np.array(of).T for of in of_runs)]
    per_run = np.array([rank_correlation(*pair) for pair in pairs])
    defined = [pair for pair, r in zip(pairs, per_run, strict=True) if not math.isnan(r)]
    e, conditions = mean(settings, per_run, "fisher"), list[Condition]()
    if e:
        null = permuted_rank_correlations(defined, draws=PERMUTATIONS, seed=settings.seed)
        name = "rank correlation over bases"
        conditions = [
            drawn(name, float(np.nanmean(per_run)), null),
            Mean(name=name, values=per_run, threshold=0.0, scale="fisher", refutes=False),
        ]
    return rule(
        settings,
        OPTIMISERS[optimiser],
        e,
        conditions,
        id="prefix-predicts-recovery",
        statement="The captured share predicts how much of the task comes back.",
        paper="positive relation (Fig. 2)",
        measured="Spearman's ρ of capture and regained score over bases of k = "
        f"{settings.k}, mean over models",
        null="0: scores exchanged among the types of basis, in all runs alike",
        rule="supported: above 0, over models and against exchanged types; refuted: below what "
        "exchanged types give",
        note=f"{len(pairs[0][0]) if pairs else 0} bases a run; defined in {len(defined)} of "
        f"{len(pairs)} runs",
    )


def captures_and_scores(
    rows: Sequence[Row], optimiser: str, k: int, space: str
) -> dict[tuple[int, str], tuple[float, float]]:
    """(capture of d, regained score) of every run and basis of size k."""
    found: dict[tuple[int, str], dict[str, float]] = {}
    here = {"optimiser": optimiser, "k": k, "space": space}
    for row in rows:
        c = {"space": space, **row.context}
        if row.quantity.startswith("regained_") and "run" in c and c | here == c:
            value = np.nan if row.value is None else row.value
            found.setdefault((c["run"], c["basis"]), {})[row.quantity] = value
    return {at: (p["regained_by_capture"], p["regained_score"]) for at, p in found.items()}


def prefix_predicts_over_runs(settings: RecoverySettings, rows: Sequence[Row]) -> Rule:
    """Models whose prefix holds more of d regain more when confined to it (Fig. 2, right).

    Runs of one model are averaged first (with one model, its runs are the units). The rank
    correlation is taken for each optimiser apart, since optimisers differ in both numbers for
    reasons of their own, and averaged. The interval is `rank_correlation_over_runs`'s, the null
    exchanges the scores of whole units.
    """
    k, optimisers, space = settings.k, settings.learning_rates(), settings.spaces[0]
    here: dict[str, Any] = {"basis": PREFIX, "k": k}
    held = [
        by_run(rows, "regained_by_capture", optimiser=o, space=space, **here) for o in optimisers
    ]
    regained = [by_run(rows, "regained_score", optimiser=o, **here) for o in optimisers]
    captures = np.array([by_model(x, settings.models, "logit") for x in held])
    scores = np.array([by_model(y, settings.models, "score") for y in regained])
    e, conditions = rank_correlation_over_runs(captures, scores), list[Condition]()
    if e:
        null = permuted_over_runs(captures, scores, draws=PERMUTATIONS, seed=settings.seed)
        conditions = [drawn("rank correlation over units", e.value, null)]
    ranks = list(settings.ranks) if settings.space == "lora" else "none"
    return rule(
        settings,
        "over runs",
        e,
        conditions,
        id="prefix-predicts-recovery",
        statement="Models (runs, where there is one model) whose first updates hold more of the "
        "way regain more when confined to them.",
        paper="positive relation (Fig. 2)",
        measured=f"Spearman's ρ over units of capture of {displacement(settings)} by the first "
        f"{k} updates and score regained within them, mean over optimisers",
        null="0: scores exchanged among units",
        rule="supported: above what exchanged scores give; refuted: below; five units are needed",
        note=f"{captures.shape[1]} units of {settings.runs} runs over ranks {ranks}, learning "
        f"rates × {list(settings.lr_factors)}",
    )
