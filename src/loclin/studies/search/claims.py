"""The claims about random search, decided by rules written here before any run (measures §10, §11,
§14).

Every rule needs an interval over runs clear of its threshold and a p-value below 0.05 after Holm's
correction over the study's claims. Where several things have to hold, p is the largest of theirs
(intersection-union test).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import (
    Estimate,
    mean_above,
    over_runs,
    permutation_p,
    permuted_rank_correlations,
    rank_correlation,
)
from loclin.studies.search import claims_names as names
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.relations import correlation, permuted_correlations
from loclin.studies.verdict import adjusted, figures, setting, verdict

PERMUTATIONS = 999
OFF = 0.25  # relative error from which the law is of no use: a quarter
DECIDES = 0.5  # mean rank correlation from which density says where to search
MODERATE = 0.3  # a correlation from which gain "follows" alignment: Cohen's (1988) moderate one
WEAK = 0.2  # one up to which overlap "does not predict": 4 % of the variance
Values = np.ndarray  # a number for each run, or for each candidate or subspace of one
DIGITS = 12  # of ranks and shares: runs that agree are then equal, not apart by round-off


def decide(settings: SearchClaimsSettings, rows: Sequence[Row]) -> list[Claim]:
    """All claims, p-values adjusted over them."""
    rules = (signal_density, alignment_predicts, plane_does_not, ensembles_help)
    laws = [best_of_n_law(settings, rows, point) for point in names.POINTS]
    return adjusted([*laws, *(rule(settings, rows) for rule in rules)])


def _claim(settings: SearchClaimsSettings, point: str, e: Estimate, **fields: Any) -> Claim:
    fields |= figures(e)
    return Claim(setting=setting(settings, names.POINTS[point]), p_holm=None, **fields)


def best_of_n_law(settings: SearchClaimsSettings, rows: Sequence[Row], point: str) -> Claim:
    """The best of N gains as the law says, over the σ of its domain and, at θ_D, over spaces."""
    over = [names.OVER_SIZES, *([names.OVER_SPACES] if point == "damaged" else [])]
    parts = {o: by_run(rows, "law_error", point=point, over=o) for o in over}
    nulls = {o: by_run(rows, "law_error", "null", point=point, over=o) for o in over}
    errors = {o: over_runs(values) for o, values in parts.items()}
    chance = {o: over_runs(values).value for o, values in nulls.items()}
    means = ", over σ and over spaces (means of the kinds: all, largest tensor, k dimensions)"
    notes = [*_law_notes(settings, rows, point, errors, chance), _edge_note(settings, rows, point)]
    return _claim(
        settings,
        point,
        errors[names.OVER_SIZES],
        id="best-of-n-law",
        statement="Random search gains as the Gaussian local-linear law says, whatever the "
        "dimension.",
        paper="formula (theorem)",
        measured=f"relative error |gain/law − 1| of the best of {settings.n} on the select "
        "examples, mean over the σ of the law's domain",
        null=f"{OFF}",
        p=max(mean_above(-values, -OFF) for values in parts.values()),
        rule="domain: σ up to a quarter of √2‖g‖/‖H‖_F and up to σ*; supported: upper limit of "
        f"the error below {OFF}{means if len(parts) > 1 else ''}; refuted: a lower limit above "
        f"{OFF} and what an exact law would be off by chance",
        verdict=verdict(
            all(e.high < OFF for e in errors.values()),
            any(e.low > OFF + chance[o] for o, e in errors.items()),
        ),
        note="; ".join(notes),
    )


def _law_notes(
    settings: SearchClaimsSettings,
    rows: Sequence[Row],
    point: str,
    errors: Mapping[str, Estimate],
    chance: Mapping[str, float],
) -> list[str]:
    """What an exact law and what the slope alone would be off by, and which way search is off."""
    notes = []
    for over, e in errors.items():
        bias, linear = (
            _text(by_run(rows, q, point=point, over=over)) for q in ("law_bias", "linear_error")
        )
        spaces = f"over spaces from {settings.k} dimensions to all off by {e}: "
        notes.append(
            (spaces if over == names.OVER_SPACES else "")
            + f"signed {bias} (above 0: search gains more); an exact law would be off by "
            f"{chance[over]:.2g} by chance, the slope alone, σ‖g‖m_N, is off by {linear}"
        )
    return notes


def _edge_note(settings: SearchClaimsSettings, rows: Sequence[Row], point: str) -> str:
    """Where curvature takes over, over where it was predicted to."""
    ratio = by_run(rows, "log10_edge_ratio", point=point)
    seen, edge = int((~np.isnan(ratio)).sum()), f"{settings.edge:.0%}"
    if not seen:
        return f"in no run the gain departs by {edge} from a straight line at a measured σ"
    e = over_runs(ratio)
    times = f"{10**e.value:.3g}" + (f" [{10**e.low:.3g}, {10**e.high:.3g}]" if seen > 1 else "")
    return (
        f"curvature takes over ({edge} off the straight line) at {times} times the predicted σ, "
        f"seen in {seen} of {len(ratio)} runs"
    )


def signal_density(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Claim:
    """Over subspaces of equal k, gain rises with the gradient's energy per dimension."""
    density, gain = (grouped(rows, q, "space") for q in ("signal_density", "equal_radius_gain"))
    per_run = {run: rank_correlation(density[run], gain[run]) for run in sorted(density)}
    kept = [run for run, r in per_run.items() if not math.isnan(r)]
    defined = [per_run[run] for run in kept]
    e, pairs = over_runs(defined), [(density[run], gain[run]) for run in kept]
    null = permuted_rank_correlations(pairs, draws=PERMUTATIONS, seed=settings.seed)
    by_law, by_density = (
        _text(_ranks(rows, q, "best_gain")) for q in ("best_gain_law", "signal_density")
    )
    return _claim(
        settings,
        "damaged",
        e,
        id="signal-density",
        statement="Which subspace to search in, at equal small radius, is decided by signal "
        "density, gradient energy per dimension.",
        paper="formula (proposition)",
        measured=f"Spearman's ρ of ‖P_S g‖²/k and the gain of the best of {settings.n} over "
        f"subspaces of k = {settings.k}, equal radius",
        null=f"{DECIDES}; and gains permuted among the subspaces of a run",
        p=max(permutation_p(e.value, null), mean_above(defined, DECIDES)),
        rule=f"equal radius: {settings.size:g} of the smallest reference σ of the subspaces, so "
        "that the law's domain holds them all; bases from examples that score no candidate; "
        f"supported: lower limit above {DECIDES}; refuted: upper limit below {DECIDES}",
        verdict=verdict(e.low > DECIDES, e.high < DECIDES),
        note="at so small a radius this is first order, and what could fail is its reach; gain "
        f"over R·m_N·√density, median over subspaces {_text(by_run(rows, 'density_ratio'))}; with "
        f"each subspace at its own reference σ, ρ of gain and density {by_density}, of gain and "
        f"the law's gain {by_law}{_lost(len(per_run) - len(kept), 'ρ')}",
    )


def _lost(runs: int, what: str) -> str:
    """How many runs an estimate leaves out."""
    return f"; in {runs} runs {what} is not defined" if runs else ""


def _text(values: Sequence[float] | Values, otherwise: str = "not defined") -> str:
    """The mean over runs with its interval, where it is defined in some run."""
    return otherwise if np.isnan(np.asarray(values, dtype=float)).all() else str(over_runs(values))


def _ranks(rows: Sequence[Row], one: str, other: str) -> list[float]:
    x, y = (grouped(rows, q, "space") for q in (one, other))
    return [round(rank_correlation(x[run], y[run]), DIGITS) for run in sorted(x)]


def grouped(rows: Sequence[Row], quantity: str, key: str) -> dict[int, Values]:
    """A quantity of every run over its subspaces or candidates, in one order."""
    runs: dict[int, dict[Any, float]] = {}
    for row in rows:
        if row.quantity == quantity and "run" in row.context:
            value = math.nan if row.value is None else row.value
            runs.setdefault(row.context["run"], {})[row.context[key]] = value
    return {run: np.array([of[name] for name in sorted(of)]) for run, of in runs.items()}


def alignment_predicts(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Claim:
    """Over the candidates of a run, gain goes with the cosine of δ and −∇ of the recovery loss."""
    r, e, null, lost = _correlated(settings, rows, "candidate_alignment")
    here: dict[str, Any] = {"point": "damaged", "of": "loss"}
    expected = _text(by_run(rows, "alignment_correlation", "null", size=1.0, **here))
    small, large = (
        f"{_text(by_run(rows, 'alignment_correlation', size=s, **here))} at {s:g}"
        for s in (settings.sizes[0], settings.sizes[-1])
    )
    return _claim(
        settings,
        "damaged",
        e,
        id="alignment-predicts-gain",
        statement="A candidate's gain follows its alignment with the recovery gradient.",
        paper="r ≈ 0.52, about 1,200 candidates, 6 runs (Fig. 3a)",
        measured=f"correlation of the loss's decrease with cos(δ, −g){_in_factors(settings)} over "
        f"{settings.candidates} candidates, mean over runs",
        null=f"{MODERATE}; and gains permuted among the candidates of a run",
        p=max(permutation_p(_mean(r), null), mean_above(np.arctanh(r), math.atanh(MODERATE))),
        rule="g of recovery examples, the gain of others; mean and interval on Fisher's scale; "
        "decided on the loss, at θ_D, at the reference σ; supported: lower limit above "
        f"{MODERATE}; refuted: upper limit below {MODERATE}",
        verdict=verdict(e.low > MODERATE, e.high < MODERATE),
        note=f"the law predicts r = {expected}; r depends on σ: {small} of the reference σ, "
        f"{large}; {_others(rows, 'alignment_correlation')}{_lost(lost, 'r')}",
    )


def plane_does_not(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Claim:
    """Over the candidates of a run, gain does not rise with the share of δ in the static plane."""
    r, e, null, lost = _correlated(settings, rows, "candidate_overlap")
    two_sided = permutation_p(abs(_mean(r)), np.abs(null))
    here: dict[str, Any] = {"point": "damaged", "of": "loss", "size": 1.0}
    expected, gradients, random = (
        _text(by_run(rows, "overlap_correlation", column, plane=plane, **here))
        for column, plane in zip(
            ("null", "value", "value"), (names.STATIC, names.GRADIENTS, names.RANDOM), strict=True
        )
    )
    return _claim(
        settings,
        "damaged",
        e,
        id="plane-overlap-does-not",
        statement="Overlap with the static task plane does not predict gain.",
        paper="r ≈ −0.40 (Fig. 3b)",
        measured=f"correlation of the loss's decrease with ‖Qᵀδ‖²/‖δ‖²{_in_factors(settings)} over "
        f"{settings.candidates} candidates, mean over runs; Q: task vectors and principal "
        f"gradients at θ₀, k = {settings.k}",
        null=f"{WEAK}",
        p=mean_above(-np.arctanh(r), -math.atanh(WEAK)),
        rule=f"supported: upper limit below {WEAK}; refuted: lower limit above {WEAK}; mean and "
        "interval on Fisher's scale; decided on the loss, at θ_D, at the reference σ",
        verdict=verdict(e.high < WEAK, e.low > WEAK),
        note="overlap is even in δ and the linear gain odd, so that to first order no plane's "
        "overlap goes with gain, not even that of one which holds g: only curvature in the plane "
        f"could make it, which predicts r = {expected}; controls: of the gradients at θ_D "
        f"{gradients}, of a random plane {random}; against 0 p = {two_sided:.2g} (two-sided, gains "
        f"permuted within runs); {_others(rows, 'overlap_correlation', plane=names.STATIC)}"
        f"{_lost(lost, 'r')}",
    )


def _in_factors(settings: SearchClaimsSettings) -> str:
    return " in the factors' coordinates" if settings.space == "lora" else ""


def _mean(values: Values) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _correlated(
    settings: SearchClaimsSettings, rows: Sequence[Row], quantity: str
) -> tuple[Values, Estimate, Values, int]:
    """Correlation with the gain in every run where it is defined, its mean on Fisher's scale, null
    draws of it, and the number of runs lost.
    """
    x, y = (grouped(rows, q, "candidate") for q in (quantity, "candidate_gain"))
    pairs = [(x[run], y[run]) for run in sorted(x)]
    kept = [pair for pair in pairs if not math.isnan(correlation(*pair))]
    r = np.clip([correlation(a, b) for a, b in kept], -0.999, 0.999)
    z = over_runs(np.arctanh(r))
    low, high = (math.tanh(z.low), math.tanh(z.high)) if z.n > 1 else (-math.inf, math.inf)
    e = Estimate(value=math.tanh(z.value), low=low, high=high, n=z.n)
    null = permuted_correlations(kept, draws=PERMUTATIONS, seed=settings.seed)
    return r, e, null, len(pairs) - len(kept)


def _others(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    """The same correlation for the gain in score, and at the halfway point."""
    texts = []
    for of, point in (("score", "damaged"), ("loss", "halfway"), ("score", "halfway")):
        values = by_run(rows, quantity, point=point, of=of, size=1.0, **context)
        text = _text(values, "not defined, it never changes")
        texts.append(f"with the {of} at {names.POINTS[point]} {text}")
    return "; ".join(texts)


def ensembles_help(settings: SearchClaimsSettings, rows: Sequence[Row]) -> Claim:
    """A vote of the k best beats the best one, the model, and as many samples of the model."""
    k = settings.votes[-1]

    def scores(condition: str, votes: int) -> Values:
        return by_run(rows, "table_score", arm=condition, votes=votes)

    vote = scores(names.BEST, k)

    def above(condition: str, votes: int) -> Values:
        return np.asarray(np.round(vote - scores(condition, votes), DIGITS))

    differences = [above(names.BEST, 1), above(names.MODEL, 1), above(names.SAMPLES, k)]
    single, model, samples = map(over_runs, differences)
    oracle = over_runs(scores(names.ORACLE, settings.tested))
    return _claim(
        settings,
        "halfway",
        single,
        id="ensembles-help",
        statement="An ensemble of the best candidates of a random search answers better than its "
        "best one and than the model.",
        paper="Table 7, not at hand",
        measured=f"share of test examples right by a vote of the {k} best of {settings.others}, "
        "less that of the best one",
        null="0; and against the model itself and a vote of as many samples of it",
        p=max(mean_above(values, 0.0) for values in differences),
        rule="σ and the best by the select examples, all compared on the same test examples; "
        "supported: the lower limits of all three differences above 0; refuted: an upper limit of "
        "those over the best candidate or over the model below 0",
        verdict=verdict(
            all(e.low > 0 for e in (single, model, samples)), single.high < 0 or model.high < 0
        ),
        note=f"score {over_runs(vote)}; over the model {model}; over a vote of {k} samples of the "
        f"model {samples}; over a vote of {k} drawn without selection "
        f"{over_runs(above(names.UNSELECTED, k))}; any of {settings.tested} candidates (an oracle, "
        f"not to be deployed) {oracle}",
    )
