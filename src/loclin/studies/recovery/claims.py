"""The four claims that the recovery study decides, each by a rule written here before any run
(measures §14).

With LoRA captures are taken in ΔW space, which the choice of factors does not change; the note
beside the verdict gives those of the factors. Gradient bases, their drift and their rank are those
of the trained coordinates.

Where two things have to hold, p is the larger of the two (intersection-union test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import (
    mean_above,
    over_runs,
    permutation_p,
    permuted_over_runs,
    permuted_rank_correlations,
    rank_correlation,
    rank_correlation_over_runs,
)
from loclin.studies.names import OPTIMISERS, PREFIX, displacement
from loclin.studies.recovery.names import FULL, STATIC
from loclin.studies.recovery.settings import RecoverySettings
from loclin.studies.verdict import adjusted, figures, setting, verdict

MOST = 0.5  # "span most of", "drifts substantially": half
REGAINED = 0.9  # share of unconfined training's score that counts as regained
PERMUTATIONS = 1999

Values = Float[np.ndarray, " S"]


def decide(settings: RecoverySettings, rows: Sequence[Row]) -> list[Claim]:
    """All claims, p-values adjusted over the whole family."""
    claims = []
    for optimiser in settings.learning_rates():
        claims += [
            static_bases_miss(settings, rows, optimiser),
            basis_drifts(settings, rows, optimiser),
            prefix_captures(settings, rows, optimiser),
            prefix_predicts_recovery(settings, rows, optimiser),
        ]
    return adjusted([*claims, prefix_predicts_over_runs(settings, rows)])


def required_capture(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> Values:
    """Capture of d that a basis needs for the task to come back, one per run (measures §4).

    That of the smallest prefix to which training can be confined and still regain 90 % of what
    unconfined training regains, from the damaged score up; of the longest tested prefix where none
    does, which understates the need.
    """
    ks, space = settings.project_ks, settings.spaces[0]
    here: dict[str, Any] = {"optimiser": optimiser, "basis": PREFIX}
    captures = np.array([by_run(rows, "regained_by_capture", k=k, space=space, **here) for k in ks])
    scores = np.array([by_run(rows, "regained_score", k=k, **here) for k in ks])
    full = by_run(rows, "regained_score", optimiser=optimiser, basis=FULL)
    lost = _damaged_scores(rows)
    enough = scores - lost >= REGAINED * (full - lost)
    first = np.where(enough.any(0), enough.argmax(0), len(ks) - 1)
    return captures[first, np.arange(captures.shape[1])]


def _damaged_scores(rows: Sequence[Row]) -> Values:
    """Every run's score on its destroyed task right after the damage."""
    scores = [r for r in rows if r.quantity == "score" and r.context["point"] == "damaged"]
    own = [r for r in scores if "run" in r.context and r.context["on"] == r.context["task"]]
    return np.array([r.value for r in sorted(own, key=lambda r: r.context["run"])], dtype=float)


def static_bases_miss(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> Claim:
    """The best fixed basis holds less of d than recovery needs, and less of the future than the
    prefix of the same size.
    """
    here: dict[str, Any] = {"optimiser": optimiser, "k": settings.k, "space": settings.spaces[0]}
    of_way, of_future = (
        np.max([by_run(rows, "basis_capture", basis=b, of=of, **here) for b in STATIC], axis=0)
        for of in ("displacement", "future")
    )
    needed = required_capture(settings, rows, optimiser)
    short, behind = needed - of_way, by_run(rows, "future_capture", **here) - of_future
    s, b = over_runs(short), over_runs(behind)
    return Claim(
        id="static-bases-miss",
        statement="No basis fixed beforehand spans the recovery direction.",
        setting=setting(settings, OPTIMISERS[optimiser]),
        paper="misses (Fig. 1, 3b)",
        measured=f"capture of {displacement(settings)} by the best of {len(STATIC)} fixed bases, "
        f"k = {settings.k}",
        null="the capture at which confined training regains 90 % of the score; the prefix's "
        "future-only capture",
        p=max(mean_above(short, 0.0), mean_above(behind, 0.0)),
        p_holm=None,
        rule="supported: lower limits of (needed capture − best fixed basis) and of (prefix − best "
        "fixed basis, both on the future) above 0; refuted: upper limit of either below 0",
        verdict=verdict(s.low > 0 and b.low > 0, s.high < 0 or b.high < 0),
        note=f"needed capture {over_runs(needed)}; shortfall {s}; behind the prefix on the future "
        f"{b}",
        **figures(over_runs(of_way)),  # type: ignore[arg-type]
    )


def basis_drifts(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> Claim:
    """ρ(t) at the last measured t ≤ 100 below one half."""
    t = max(t for t in settings.times if t <= 100)
    rho = by_run(rows, "rho", optimiser=optimiser, t=t)
    floor = over_runs(by_run(rows, "overlap_floor", optimiser=optimiser))
    e = None if np.isnan(rho).all() else over_runs(rho)
    return Claim(
        id="basis-drifts",
        statement="The useful basis moves substantially within 100 steps.",
        setting=setting(settings, OPTIMISERS[optimiser]),
        paper="within 100 steps (Fig. 1)",
        measured=f"ρ({t}): overlap of top-{settings.k} gradient bases at θ_D and θ_{t}, over that "
        "of two batch sets at θ_D",
        null="1: the basis stays, and only minibatch noise moves it",
        p=None if e is None else mean_above(-rho, -MOST),
        p_holm=None,
        rule=f"supported: upper limit below {MOST}; refuted: lower limit above {MOST}; "
        "not defined where the floor is near k/D",
        verdict="inconclusive" if e is None else verdict(e.high < MOST, e.low > MOST),
        note=f"noise floor O(θ_D, θ_D′) {floor}; ρ defined in {0 if e is None else e.n} runs",
        **figures(e),  # type: ignore[arg-type]
    )


def prefix_captures(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> Claim:
    """The prefix spans most of d, and more of the future than a stationary drift explains."""
    here: dict[str, Any] = {"optimiser": optimiser, "k": settings.k, "space": settings.spaces[0]}
    prefix, future = by_run(rows, "prefix_capture", **here), by_run(rows, "future_capture", **here)
    excess = future - by_run(rows, "future_capture", column="null", **here)
    e, x = over_runs(prefix), over_runs(excess)
    white = over_runs(by_run(rows, "prefix_capture", column="null", **here))
    return Claim(
        id="prefix-captures",
        statement="The first updates span most of the recovery, beyond what a constant drift "
        "explains.",
        setting=setting(settings, OPTIMISERS[optimiser]),
        paper="0.77 (Fig. 2)",
        measured=f"capture(Q_k, {displacement(settings)}), k = {settings.k} of T = "
        f"{settings.steps}",
        null=f"{MOST}; and on the future alone, the stationary drift fitted to the same updates",
        p=max(mean_above(prefix, MOST), mean_above(excess, 0.0)),
        p_holm=None,
        rule=f"supported: prefix capture's lower limit above {MOST} and lower limit of "
        "(future-only capture − fitted drift) above 0; refuted: prefix capture's upper limit below "
        f"{MOST}, or upper limit of the excess below 0",
        verdict=verdict(e.low > MOST and x.low > 0, e.high < MOST or x.high < 0),
        note=f"future-only capture {over_runs(future)}; its excess over the fitted drift {x}; "
        f"white steps with the same norms {white}" + _elsewhere(settings, rows, optimiser),
        **figures(e),  # type: ignore[arg-type]
    )


def _elsewhere(settings: RecoverySettings, rows: Sequence[Row], optimiser: str) -> str:
    """Prefix capture in the space that does not decide, and whether the two spaces disagree."""
    if len(settings.spaces) < 2:
        return ""
    here, there = (
        by_run(rows, "prefix_capture", optimiser=optimiser, k=settings.k, space=s)
        for s in settings.spaces
    )
    gap = over_runs(there - here)
    apart = "they disagree" if gap.low > 0 or gap.high < 0 else "they do not disagree"
    return f"; in the factors {over_runs(there)}, {gap} more than in ΔW: {apart}"


def prefix_predicts_recovery(
    settings: RecoverySettings, rows: Sequence[Row], optimiser: str
) -> Claim:
    """Among bases of equal size, those that hold more of d bring back more of the task.

    At equal k, because a larger k raises capture and score alike whatever the basis.
    """
    pairs = _pairs_at_equal_k(settings, rows, optimiser)
    per_run = [rank_correlation(x, y) for x, y in pairs]
    defined = [pair for pair, r in zip(pairs, per_run, strict=True) if not math.isnan(r)]
    e = p = None
    if defined:
        null = permuted_rank_correlations(defined, draws=PERMUTATIONS, seed=settings.seed)
        e = over_runs(per_run)
        p = permutation_p(e.value, null)
    return Claim(
        id="prefix-predicts-recovery",
        statement="The captured share predicts how much of the task comes back.",
        setting=setting(settings, OPTIMISERS[optimiser]),
        paper="positive relation (Fig. 2)",
        measured="Spearman's ρ of capture and regained exact match over bases of k = "
        f"{settings.k}, mean over runs",
        null="0: scores permuted among the bases of a run",
        p=p,
        p_holm=None,
        rule="supported: lower limit above 0; refuted: upper limit below 0",
        verdict=verdict(e.low > 0, e.high < 0) if e else "inconclusive",
        note=f"{len(pairs[0][0]) if pairs else 0} bases a run; defined in {len(defined)} of "
        f"{len(pairs)} runs",
        **figures(e),  # type: ignore[arg-type]
    )


def _pairs_at_equal_k(
    settings: RecoverySettings, rows: Sequence[Row], optimiser: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(captures, scores) over the bases of size k, for each run."""
    here = {"optimiser": optimiser, "k": settings.k, "space": settings.spaces[0]}
    table: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        c = {"space": settings.spaces[0], **row.context}
        of_run = "run" in c and c | here == c
        if row.quantity.startswith("regained_") and of_run:
            found = table.setdefault(c["run"], {"regained_by_capture": [], "regained_score": []})
            found[row.quantity].append(float(row.value or 0.0))
    return [
        (np.array(r["regained_by_capture"]), np.array(r["regained_score"]))
        for _, r in sorted(table.items())
    ]


def prefix_predicts_over_runs(settings: RecoverySettings, rows: Sequence[Row]) -> Claim:
    """Runs (ranks, tasks, learning rates) whose prefix holds more of d regain more when confined to
    it (Fig. 2, right).

    The rank correlation is taken over runs for each optimiser apart, since optimisers differ in
    both numbers for reasons of their own, and averaged. A run is one unit: the interval is
    `rank_correlation_over_runs`'s, the null exchanges the scores of whole runs.
    """
    k, optimisers, space = settings.k, settings.learning_rates(), settings.spaces[0]
    here: dict[str, Any] = {"basis": PREFIX, "k": k}
    captures = np.array(
        [by_run(rows, "regained_by_capture", optimiser=o, space=space, **here) for o in optimisers]
    )
    scores = np.array([by_run(rows, "regained_score", optimiser=o, **here) for o in optimisers])
    e, p = rank_correlation_over_runs(captures, scores), None
    if e:
        null = permuted_over_runs(captures, scores, draws=PERMUTATIONS, seed=settings.seed)
        p = permutation_p(e.value, null)
    ranks = list(settings.ranks) if settings.space == "lora" else "none"
    return Claim(
        id="prefix-predicts-recovery",
        statement="Runs whose first updates hold more of the way regain more when confined to "
        "them.",
        setting=setting(settings, "over runs"),
        paper="positive relation (Fig. 2)",
        measured=f"Spearman's ρ over runs of capture of {displacement(settings)} by the first {k} "
        "updates and score regained within them, mean over optimisers",
        null="0: scores exchanged among runs",
        p=p,
        p_holm=None,
        rule="supported: lower limit above 0; refuted: upper limit below 0",
        verdict=verdict(e.low > 0, e.high < 0) if e else "inconclusive",
        note=f"{captures.shape[1]} runs over ranks {ranks}, learning rates × "
        f"{list(settings.lr_factors)}",
        **figures(e),  # type: ignore[arg-type]
    )
