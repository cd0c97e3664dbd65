"""The claims about random search, decided by rules written here before any run (measures §10, §11,
§14).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from loclin.correlation import (
    correlation,
    permuted_correlations,
    permuted_rank_correlations,
    rank_correlation,
)
from loclin.run.rows import Claim, Row, by_run
from loclin.stats import Numbers, Scale, permutation_p
from loclin.studies.search import names
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.names import MODEL, RANDOM_VOTE, SAMPLED_VOTE, VOTE
from loclin.studies.verdict import Condition, Drawn, Mean, Rule, Within, decided, mean, rule

PERMUTATIONS = 999
MARGIN = 0.25  # of the signed bias, gain over the law's less 1: a law that is off by more is no law
DECIDES = 0.5  # mean rank correlation from which the law says where to search
MODERATE = 0.3  # a correlation from which gain "follows" alignment: Cohen's (1988) moderate one
Values = np.ndarray  # a number for each run, or for each candidate or subspace of one
Pairs = Sequence[tuple[Values, Values]]
DIGITS = 12  # of differences of shares: runs that agree are then equal, not apart by round-off


def decide(settings: SearchClaimsSettings, rows: Sequence[Row]) -> list[Claim]:
    """All claims, p-values adjusted over both directions of them."""
    others = (signal_density, equal_radius, alignment_predicts, plane_does_not, ensembles_help)
    laws = [best_of_n_law(settings, rows, point) for point in names.POINTS]
    return decided([*laws, *(of(settings, rows) for of in others)])


def _text(settings: SearchClaimsSettings, values: Numbers, scale: Scale = "plain") -> str:
    return str(mean(settings, values, scale) or "not defined")


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
    text, of = partial(_text, settings), partial(by_run, rows, point=point)
    for over, where in overs.items():
        law, slope, second, bias = (
            of(q, over=over)
            for q in ("law_error", "linear_error", "second_order_error", "law_bias")
        )
        better.append(law - slope)
        name = f"error of the law less that of the slope, {where}"  # probes may put it above 0
        conditions += [
            Mean(name=name, values=law - slope, threshold=0.0, below=True, refutes=False),
            Within(name=f"gain/law − 1, {where}", values=bias, low=-MARGIN, high=MARGIN),
        ]
        notes.append(
            f"{where} the law is off by {text(law)}, the slope alone by {text(slope)}, the "
            f"second-order form by {text(second)}; gain/law − 1 is {text(bias)}"
        )
    beyond, curved = (text(of(q, over=names.OVER_ALL)) for q in ("law_error", "second_order_error"))
    notes.append(
        f"up to the reference σ, beyond the domain, the law is off by {beyond}, the second-order "
        f"form by {curved}"
    )
    return rule(
        settings,
        names.POINTS[point],
        mean(settings, better[0]),
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
        note="; ".join([*notes, _edge_note(settings, of("log10_edge_ratio"))]),
    )


def _edge_note(settings: SearchClaimsSettings, logarithms: Values) -> str:
    """Where curvature takes over, over where it was predicted to."""
    seen, edge = int((~np.isnan(logarithms)).sum()), f"{settings.edge:.0%}"
    if not seen:
        return f"in no run the gain departs by {edge} from a straight line at a measured σ"
    return (
        f"curvature takes over ({edge} off the straight line) at "
        f"{_text(settings, 10**logarithms, 'log')} times the predicted σ, seen in {seen} of "
        f"{len(logarithms)} runs"
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
    pairs: Pairs,
    of: Callable[[Values, Values], float],
    null: Callable[..., Values],
) -> Drawn:
    """The mean over runs of a correlation against the same with one side permuted."""
    known = [(pair, r) for pair in pairs if not math.isnan(r := of(*pair))]
    if not known:
        return Drawn(name="gains permuted", value=1.0)
    kept, found = zip(*known, strict=True)
    draws = null(kept, draws=PERMUTATIONS, seed=settings.seed)
    return Drawn(name="gains permuted", value=permutation_p(float(np.mean(found)), draws))


def _lost(values: Numbers, what: str) -> str:
    """How many runs an estimate leaves out."""
    runs = int(np.isnan(np.asarray(values, dtype=float)).sum())
    return f"; in {runs} runs {what} is not defined" if runs else ""


def signal_density(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """Over subspaces of equal k, each at its own best σ, gain goes with what the law expects."""
    pairs = _paired(rows, "best_gain_law", "best_gain", "space")
    ranks = _ranks(pairs)
    by_density = _ranks(_paired(rows, "signal_density", "best_gain", "space"))
    return rule(
        settings,
        names.POINTS["damaged"],
        mean(settings, ranks, "fisher"),
        [
            Mean(name="ρ", values=ranks, threshold=DECIDES, scale="fisher"),
            _drawn(settings, pairs, rank_correlation, permuted_rank_correlations),
        ],
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
        note="with signal density alone, ‖P_S g‖²/k, ρ is "
        f"{_text(settings, by_density, 'fisher')}{_lost(ranks, 'ρ')}",
    )


def equal_radius(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """At equal small radius gain goes with signal density, as for any smooth loss: measured."""
    ranks = _ranks(_paired(rows, "signal_density", "equal_radius_gain", "space"))
    return rule(
        settings,
        f"{names.POINTS['damaged']}, equal radius",
        mean(settings, ranks, "fisher"),
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
        note="gain over R·m_N·√density, median over subspaces "
        f"{_text(settings, by_run(rows, 'density_ratio'))}{_lost(ranks, 'ρ')}",
    )


def alignment_predicts(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """Over the candidates of a run, gain goes with the cosine of δ and −∇ of the recovery loss."""
    pairs = _paired(rows, "candidate_alignment", "candidate_gain", "candidate")
    r = [correlation(*pair) for pair in pairs]
    at = partial(_correlation, settings, rows, "alignment_correlation")
    small, large = (f"{at(size=s)} at {s:g}" for s in (settings.sizes[0], settings.sizes[-1]))
    return rule(
        settings,
        names.POINTS["damaged"],
        mean(settings, r, "fisher"),
        [
            Mean(name="r", values=r, threshold=MODERATE, scale="fisher"),
            _drawn(settings, pairs, correlation, permuted_correlations),
        ],
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
        f"answer the same examples, times the cosine of both gradients: r = {at('null')}; r "
        f"depends on σ: {small} of the reference σ, {large}; "
        f"{_others(at)}{_lost(r, 'r')}",
    )


def plane_does_not(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """Over the candidates of a run, gain with the share of δ in the static plane: by parity no
    plane's overlap goes with it to first order, so that it is measured alone.
    """
    pairs = _paired(rows, "candidate_overlap", "candidate_gain", "candidate")
    r = [correlation(*pair) for pair in pairs]
    static, gradients, random = (
        partial(_correlation, settings, rows, "overlap_correlation", plane=plane)
        for plane in (names.STATIC, names.GRADIENTS, names.RANDOM)
    )
    return rule(
        settings,
        names.POINTS["damaged"],
        mean(settings, r, "fisher"),
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
        note=f"curvature in the plane predicts r = {static('null')}; controls: of the "
        f"gradients at θ_D {gradients()}, of a random plane {random()}; "
        f"{_others(static)}{_lost(r, 'r')}",
    )


def _in_factors(settings: SearchClaimsSettings) -> str:
    return " in the factors' coordinates" if settings.space == "lora" else ""


def _correlation(
    settings: SearchClaimsSettings,
    rows: Sequence[Row],
    quantity: str,
    column: str = "value",
    otherwise: str = "not defined",
    **context: Any,
) -> str:
    """Of the gain in loss at θ_D and the reference σ, unless the context says otherwise."""
    here = {"point": "damaged", "of": "loss", "size": 1.0, **context}
    return str(mean(settings, by_run(rows, quantity, column, **here), "fisher") or otherwise)


def _others(at: Callable[..., str]) -> str:
    """The same correlation for the gain in score, and at the halfway point."""
    return "; ".join(
        f"with the {of} at {names.POINTS[point]} "
        + at(point=point, of=of, otherwise="not defined, it never changes")
        for of, point in (("score", "damaged"), ("loss", "halfway"), ("score", "halfway"))
    )


def ensembles_help(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Rule:
    """A vote of the k best beats the best one, the model, and as many samples of the model."""
    k, text = settings.votes[-1], partial(_text, settings)

    def scores(condition: str, votes: int) -> Values:
        return by_run(rows, "table_score", arm=condition, votes=votes)

    vote = scores(VOTE, k)
    single, model, samples, unselected = (
        np.asarray(np.round(vote - scores(*way), DIGITS))
        for way in ((VOTE, 1), (MODEL, 1), (SAMPLED_VOTE, k), (RANDOM_VOTE, k))
    )
    return rule(
        settings,
        names.POINTS["halfway"],
        mean(settings, single),
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
        note=f"score {text(vote, 'score')}; over the model {text(model)}; over a vote of {k} "
        f"samples of the model {text(samples)}; over a vote of {k} drawn without selection "
        f"{text(unselected)}; any of {settings.tested} candidates (an oracle, not to be deployed) "
        f"{text(scores(names.ORACLE, settings.tested), 'score')}",
    )
