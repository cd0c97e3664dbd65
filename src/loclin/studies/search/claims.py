"""The claims about random search, decided by rules written here before any run (measures §10, §11,
§14).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import (
    Estimate,
    Numbers,
    Scale,
    over_models,
    permutation_p,
    permuted_rank_correlations,
    rank_correlation,
)
from loclin.studies.search import claims_names as names
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.names import MODEL, RANDOM_VOTE, SAMPLED_VOTE, VOTE
from loclin.studies.search.relations import correlation, permuted_correlations
from loclin.studies.verdict import Condition, Drawn, Mean, Rule, Within, decided, setting, undecided

PERMUTATIONS = 999
MARGIN = 0.25  # of the signed bias, gain over the law's less 1: a law that is off by more is no law
DECIDES = 0.5  # mean rank correlation from which the law says where to search
MODERATE = 0.3  # a correlation from which gain "follows" alignment: Cohen's (1988) moderate one
Values = np.ndarray  # a number for each run, or for each candidate or subspace of one
Pairs = Sequence[tuple[Values, Values]]
DIGITS = 12  # of differences of shares: runs that agree are then equal, not apart by round-off


def decide(settings: SearchClaimsSettings, rows: Sequence[Row]) -> list[Claim]:
    """All claims, p-values adjusted over both directions of them."""
    rules = (signal_density, equal_radius, alignment_predicts, plane_does_not, ensembles_help)
    laws = [best_of_n_law(settings, rows, point) for point in names.POINTS]
    return decided([*laws, *(rule(settings, rows) for rule in rules)])


def _rule(
    settings: SearchClaimsSettings,
    of: str,
    estimate: Estimate | None,
    conditions: Sequence[Condition] = (),
    **words: str,
) -> Rule:
    """A claim with its conditions, which decide nothing where there is no estimate."""
    claim = undecided(estimate, setting=setting(settings, of), **words)
    holding = () if estimate is None else tuple(conditions)
    return Rule(claim=claim, conditions=holding, models=settings.models)


def _mean(
    settings: SearchClaimsSettings, values: Numbers, scale: Scale = "plain"
) -> Estimate | None:
    """The mean over models; None where it is defined in no run."""
    if np.isnan(np.asarray(values, dtype=float)).all():
        return None
    return over_models(values, settings.models, scale)


def _text(
    settings: SearchClaimsSettings,
    values: Numbers,
    scale: Scale = "plain",
    otherwise: str = "not defined",
) -> str:
    e = _mean(settings, values, scale)
    return otherwise if e is None else str(e)


_SPACES = (
    ", over σ and over spaces, each at the end of its domain (means of the kinds: all, largest "
    "tensor, k dimensions)"
)


def best_of_n_law(settings: SearchClaimsSettings, rows: Sequence[Row], point: str) -> Rule:
    """The best of N gains as the law says, over the σ of its domain and, at θ_D, over spaces: more
    nearly than the slope alone, and without a bias that matters.
    """
    overs = {names.OVER_SIZES: "over σ"}
    if point == "damaged":
        overs[names.OVER_SPACES] = f"over spaces, from {settings.k} dimensions to all"
    conditions, notes, better = list[Condition](), list[str](), list[Values]()
    for over, where in overs.items():
        law, slope, second, bias = (
            by_run(rows, q, point=point, over=over)
            for q in ("law_error", "linear_error", "second_order_error", "law_bias")
        )
        better.append(law - slope)
        name = f"error of the law less that of the slope, {where}"  # probes may put it above 0
        difference = Mean(name=name, values=law - slope, threshold=0.0, below=True, refutes=False)
        conditions.append(difference)
        name = f"gain/law − 1, {where}"
        conditions.append(Within(name=name, values=bias, low=-MARGIN, high=MARGIN))
        of_law, alone, of_second, signed = (_text(settings, v) for v in (law, slope, second, bias))
        notes.append(
            f"{where} the law is off by {of_law}, the slope alone by {alone}, the second-order "
            f"form by {of_second}; gain/law − 1 is {signed}"
        )
    everywhere = (
        _text(settings, by_run(rows, q, point=point, over=names.OVER_ALL))
        for q in ("law_error", "second_order_error")
    )
    notes.append(
        "up to the reference σ, beyond the domain, the law is off by {}, the second-order form by "
        "{}".format(*everywhere)
    )
    return _rule(
        settings,
        names.POINTS[point],
        _mean(settings, better[0]),
        conditions,
        id="best-of-n-law",
        statement="Random search gains as the Gaussian local-linear law says, whatever the "
        "dimension.",
        paper="formula (theorem)",
        measured=f"|gain − predicted|/σ‖g‖m_N of the best of {settings.n} on the select examples, "
        "mean over the σ of the law's domain: predicted by the law, less by the slope alone, "
        "σ‖g‖m_N",
        null=f"0; and gain/law − 1 beyond ±{MARGIN}",
        rule="domain: σ up to a quarter of √2‖g‖/‖H‖_F and up to σ*; gains less what the luck of "
        "the candidates adds to the slope's part (a control variate); supported: the law's error "
        f"less the slope's below 0, paired by run, and gain/law − 1 within ±{MARGIN} (equivalence)"
        f"{_SPACES if len(overs) > 1 else ''}; refuted: gain/law − 1 beyond ±{MARGIN} (an error "
        "above the slope's may be that of the probes behind tr H)",
        note="; ".join([*notes, _edge_note(settings, rows, point)]),
    )


def _edge_note(settings: SearchClaimsSettings, rows: Sequence[Row], point: str) -> str:
    """Where curvature takes over, over where it was predicted to."""
    ratio = 10 ** by_run(rows, "log10_edge_ratio", point=point)
    seen, edge = int((~np.isnan(ratio)).sum()), f"{settings.edge:.0%}"
    if not seen:
        return f"in no run the gain departs by {edge} from a straight line at a measured σ"
    return (
        f"curvature takes over ({edge} off the straight line) at {_text(settings, ratio, 'log')} "
        f"times the predicted σ, seen in {seen} of {len(ratio)} runs"
    )


def grouped(rows: Sequence[Row], quantity: str, key: str) -> dict[int, Values]:
    """A quantity of every run over its subspaces or candidates, in one order."""
    runs: dict[int, dict[Any, float]] = {}
    for row in rows:
        if row.quantity == quantity and "run" in row.context:
            value = math.nan if row.value is None else row.value
            runs.setdefault(row.context["run"], {})[row.context[key]] = value
    return {run: np.array([of[name] for name in sorted(of)]) for run, of in runs.items()}


def _paired(rows: Sequence[Row], x: str, y: str, key: str) -> Pairs:
    """Two quantities of every run, in the order of the runs."""
    one, other = (grouped(rows, q, key) for q in (x, y))
    return [(one[run], other[run]) for run in sorted(one)]


def _ranks(pairs: Pairs) -> list[float]:
    """Spearman's ρ over the subspaces of every run, not beyond half a swap of two neighbours: on
    Fisher's scale a perfect order would be far away from one that is nearly so.
    """
    ends = [1 - 6 / (len(x) * (len(x) ** 2 - 1)) for x, _ in pairs]
    found = [rank_correlation(*pair) for pair in pairs]
    return [float(np.clip(r, -end, end)) for r, end in zip(found, ends, strict=True)]


def _drawn(
    settings: SearchClaimsSettings,
    name: str,
    pairs: Pairs,
    of: Callable[[Values, Values], float],
    null: Callable[..., Values],
) -> Drawn:
    """The mean over runs of a correlation against the same with one side permuted."""
    kept = [pair for pair in pairs if not math.isnan(of(*pair))]
    if not kept:
        return Drawn(name=name, value=1.0)
    observed = float(np.mean([of(*pair) for pair in kept]))
    draws = null(kept, draws=PERMUTATIONS, seed=settings.seed)
    return Drawn(name=name, value=permutation_p(observed, draws))


def _lost(values: Numbers, what: str) -> str:
    """How many runs an estimate leaves out."""
    runs = int(np.isnan(np.asarray(values, dtype=float)).sum())
    return f"; in {runs} runs {what} is not defined" if runs else ""


def signal_density(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """Over subspaces of equal k, each at its own best σ, gain goes with what the law expects."""
    pairs = _paired(rows, "best_gain_law", "best_gain", "space")
    ranks = _ranks(pairs)
    drawn = _drawn(settings, "gains permuted", pairs, rank_correlation, permuted_rank_correlations)
    by_density = _text(
        settings, _ranks(_paired(rows, "signal_density", "best_gain", "space")), "fisher"
    )
    return _rule(
        settings,
        names.POINTS["damaged"],
        _mean(settings, ranks, "fisher"),
        [Mean(name="ρ", values=ranks, threshold=DECIDES, scale="fisher"), drawn],
        id="signal-density",
        statement="Which subspace to search in is decided by gradient energy and curvature there: "
        "at its own best σ each gains ‖P_S g‖²m_N²/(2 tr(P_S H)).",
        paper="formula (proposition)",
        measured="Spearman's ρ of the law's gain and the observed one, of the best of "
        f"{settings.n}, over subspaces of k = {settings.k}, each at its own best σ",
        null=f"{DECIDES}; and gains permuted among the subspaces, alike in all runs",
        rule="best σ: σ*, or √2‖g‖/‖H‖_F in the subspace where that is smaller or tr(P_S H) is not "
        "above 0, and the law's gain at that σ; bases from examples that score no candidate; mean "
        f"and interval on Fisher's scale; supported: ρ above {DECIDES} and above that of permuted "
        f"gains; refuted: ρ below {DECIDES}",
        note=f"with signal density alone, ‖P_S g‖²/k, ρ is {by_density}{_lost(ranks, 'ρ')}",
    )


def equal_radius(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """At equal small radius gain goes with signal density, as for any smooth loss: measured."""
    ranks = _ranks(_paired(rows, "signal_density", "equal_radius_gain", "space"))
    ratio = _text(settings, by_run(rows, "density_ratio"))
    return _rule(
        settings,
        f"{names.POINTS['damaged']}, equal radius",
        _mean(settings, ranks, "fisher"),
        id="signal-density",
        statement="At equal small radius a subspace gains by its signal density, gradient energy "
        "per dimension.",
        paper="formula (proposition)",
        measured=f"Spearman's ρ of ‖P_S g‖²/k and the gain of the best of {settings.n} over "
        f"subspaces of k = {settings.k}, at equal radius",
        null="none: true to first order of any smooth loss",
        rule=f"none; radius: {settings.size:g} of the smallest reference σ of the subspaces, so "
        "that the law's domain holds them all",
        verdict="measurement",
        note=f"gain over R·m_N·√density, median over subspaces {ratio}{_lost(ranks, 'ρ')}",
    )


def alignment_predicts(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """Over the candidates of a run, gain goes with the cosine of δ and −∇ of the recovery loss."""
    pairs = _paired(rows, "candidate_alignment", "candidate_gain", "candidate")
    r = [correlation(*pair) for pair in pairs]
    here: dict[str, Any] = {"point": "damaged", "of": "loss"}

    def mean(size: float, column: str = "value") -> str:
        values = by_run(rows, "alignment_correlation", column, size=size, **here)
        return _text(settings, values, "fisher")

    small, large = (f"{mean(s)} at {s:g}" for s in (settings.sizes[0], settings.sizes[-1]))
    drawn = _drawn(settings, "gains permuted", pairs, correlation, permuted_correlations)
    return _rule(
        settings,
        names.POINTS["damaged"],
        _mean(settings, r, "fisher"),
        [Mean(name="r", values=r, threshold=MODERATE, scale="fisher"), drawn],
        id="alignment-predicts-gain",
        statement="A candidate's gain follows its alignment with the recovery gradient.",
        paper="r ≈ 0.52, about 1,200 candidates, 6 runs (Fig. 3a)",
        measured=f"correlation of the loss's decrease with cos(δ, −g){_in_factors(settings)} over "
        f"{settings.candidates} candidates, mean over runs",
        null=f"{MODERATE}; and gains permuted among the candidates of a run",
        rule="g of recovery examples, the gain of others; mean and interval on Fisher's scale; "
        "decided on the loss, at θ_D, at the reference σ; supported: r above "
        f"{MODERATE} and above that of permuted gains; refuted: r below {MODERATE}",
        note="at the reference σ curvature alone leaves r at 0.7 or more: what can fail is that "
        "gradients of different examples agree, or the law; the law predicts "
        "r² = σ²‖g‖²/(σ²‖g‖² + σ⁴‖H‖_F²/2 + τ²), τ = 0 as all candidates "
        f"answer the same examples, times the cosine of both gradients: r = {mean(1.0, 'null')}; r "
        f"depends on σ: {small} of the reference σ, {large}; "
        f"{_others(settings, rows, 'alignment_correlation')}{_lost(r, 'r')}",
    )


def plane_does_not(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """Over the candidates of a run, gain with the share of δ in the static plane: by parity no
    plane's overlap goes with it to first order, so that it is measured alone.
    """
    pairs = _paired(rows, "candidate_overlap", "candidate_gain", "candidate")
    r = [correlation(*pair) for pair in pairs]
    here: dict[str, Any] = {"point": "damaged", "of": "loss", "size": 1.0}

    def mean(plane: str, column: str = "value") -> str:
        values = by_run(rows, "overlap_correlation", column, plane=plane, **here)
        return _text(settings, values, "fisher")

    return _rule(
        settings,
        names.POINTS["damaged"],
        _mean(settings, r, "fisher"),
        id="plane-overlap-does-not",
        statement="Overlap with the static task plane does not predict gain.",
        paper="r ≈ −0.40 (Fig. 3b)",
        measured=f"correlation of the loss's decrease with ‖Qᵀδ‖²/‖δ‖²{_in_factors(settings)} over "
        f"{settings.candidates} candidates, mean over runs; Q: task vectors and principal "
        f"gradients at θ₀, k = {settings.k}",
        null="none: overlap is even in δ and the linear gain odd, so that to first order no "
        "plane's overlap goes with gain, not even that of one which holds g",
        rule="none; mean and interval on Fisher's scale, on the loss, at θ_D, at the reference σ",
        verdict="measurement",
        note=f"curvature in the plane predicts r = {mean(names.STATIC, 'null')}; controls: of the "
        f"gradients at θ_D {mean(names.GRADIENTS)}, of a random plane {mean(names.RANDOM)}; "
        f"{_others(settings, rows, 'overlap_correlation', plane=names.STATIC)}{_lost(r, 'r')}",
    )


def _in_factors(settings: SearchClaimsSettings) -> str:
    return " in the factors' coordinates" if settings.space == "lora" else ""


def _others(
    settings: SearchClaimsSettings, rows: Sequence[Row], quantity: str, **context: Any
) -> str:
    """The same correlation for the gain in score, and at the halfway point."""
    texts = []
    for of, point in (("score", "damaged"), ("loss", "halfway"), ("score", "halfway")):
        values = by_run(rows, quantity, point=point, of=of, size=1.0, **context)
        text = _text(settings, values, "fisher", "not defined, it never changes")
        texts.append(f"with the {of} at {names.POINTS[point]} {text}")
    return "; ".join(texts)


def ensembles_help(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """A vote of the k best beats the best one, the model, and as many samples of the model."""
    k = settings.votes[-1]

    def scores(condition: str, votes: int) -> Values:
        return by_run(rows, "table_score", arm=condition, votes=votes)

    vote = scores(VOTE, k)

    def above(condition: str, votes: int) -> Values:
        return np.asarray(np.round(vote - scores(condition, votes), DIGITS))

    single, model, samples, unselected = (
        above(*way) for way in ((VOTE, 1), (MODEL, 1), (SAMPLED_VOTE, k), (RANDOM_VOTE, k))
    )
    texts = [_text(settings, values) for values in (model, samples, unselected)]
    own, oracle = (
        _text(settings, values, "score") for values in (vote, scores(names.ORACLE, settings.tested))
    )
    return _rule(
        settings,
        names.POINTS["halfway"],
        _mean(settings, single),
        [
            Mean(name="over the best candidate", values=single, threshold=0.0),
            Mean(name="over the model", values=model, threshold=0.0),
            Mean(name="over samples", values=samples, threshold=0.0, refutes=False),
        ],
        id="ensembles-help",
        statement="An ensemble of the best candidates of a random search answers better than its "
        "best one and than the model.",
        paper="Table 7, not at hand",
        measured=f"share of test examples right by a vote of the {k} best of {settings.others}, "
        "less that of the best one",
        null="0; and against the model itself and a vote of as many samples of it",
        rule="σ and the best by the select examples, all compared on the same test examples; "
        "supported: all three differences above 0; refuted: that over the best candidate or over "
        "the model below 0",
        note=f"score {own}; over the model {texts[0]}; over a vote of {k} samples of the model "
        f"{texts[1]}; over a vote of {k} drawn without selection {texts[2]}; any of "
        f"{settings.tested} candidates (an oracle, not to be deployed) {oracle}",
    )
