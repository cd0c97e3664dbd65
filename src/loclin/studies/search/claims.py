"""The claims that the search study decides, by rules written here before any run (measures §10,
§11, §14).

Every rule needs an interval over runs clear of its threshold and a p-value below 0.05 after Holm's
correction over the study's claims. Where several things have to hold, p is the largest of theirs
(intersection-union test).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loclin.record import Claim, Row
from loclin.stats import (
    Estimate,
    mean_above,
    over_runs,
    permutation_p,
    permuted_rank_correlations,
    rank_correlation,
)
from loclin.studies.search.config import Config
from loclin.studies.search.ladder import correlation, permuted_correlations
from loclin.studies.table import by_run
from loclin.studies.verdict import adjusted, figures, setting, verdict

POINT = {"damaged": "θ_D", "halfway": "θ_H"}
PERMUTATIONS = 999
OFF = 0.25  # relative error from which the law is of no use: a quarter
DECIDES = 0.5  # mean rank correlation from which density says where to search
# a correlation from which gain "follows" alignment: Cohen's (1988) moderate one, a tenth of the
# variance
MODERATE = 0.3
DIGITS = 12  # of ranks and shares: runs that agree are then equal, not apart by round-off
WEAK = 0.2  # one up to which overlap "does not predict": 4 % of the variance

Values = np.ndarray  # a number for each run, or for each candidate or subspace of one


def decide(config: Config, rows: Sequence[Row]) -> list[Claim]:
    """All claims, p-values adjusted over them."""
    laws = [best_of_n_law(config, rows, point) for point in POINT]
    rest = [
        rule(config, rows)
        for rule in (signal_density, alignment_predicts, plane_does_not, ensembles_help)
    ]
    return adjusted([*laws, *rest])


def best_of_n_law(config: Config, rows: Sequence[Row], point: str) -> Claim:
    """The gain of the best of N is within a quarter of the law's: over the σ of its domain and, at
    θ_D, over spaces.
    """
    names = ("sizes", "spaces") if point == "damaged" else ("sizes",)
    parts = {over: by_run(rows, "law_error", point=point, over=over) for over in names}
    found = {over: over_runs(values) for over, values in parts.items()}
    chance = {
        over: over_runs(by_run(rows, "law_error", column="null", point=point, over=over)).value
        for over in names
    }
    return Claim(
        id="best-of-n-law",
        statement="Random search gains as the Gaussian local-linear law says, whatever the "
        "dimension.",
        setting=setting(config, POINT[point]),
        paper="formula (theorem)",
        measured=f"relative error |gain/law − 1| of the best of {config.n} on the select examples, "
        "mean over the σ of the law's domain",
        null=f"{OFF}",
        p=max(mean_above(-values, -OFF) for values in parts.values()),
        p_holm=None,
        rule="domain: σ up to a quarter of √2‖g‖/‖H‖_F and up to σ*; supported: upper limit of "
        f"the error below {OFF}"
        + (
            ", over σ and over spaces (means of the kinds: all, largest tensor, k dimensions)"
            if len(parts) > 1
            else ""
        )
        + f"; refuted: a lower limit above {OFF} and what an exact law would be off by chance",
        verdict=verdict(
            all(e.high < OFF for e in found.values()),
            any(e.low > OFF + chance[over] for over, e in found.items()),
        ),
        note="; ".join(
            [*_law_notes(config, rows, point, found, chance), *_edge(config, rows, point)]
        ),
        **figures(found["sizes"]),  # type: ignore[arg-type]
    )


def _law_notes(
    config: Config,
    rows: Sequence[Row],
    point: str,
    found: Mapping[str, Estimate],
    chance: Mapping[str, float],
) -> list[str]:
    """What an exact law and what the slope alone would be off by, and which way search is off."""
    notes = []
    for over, e in found.items():
        bias, linear = (
            _text(by_run(rows, q, point=point, over=over)) for q in ("law_bias", "linear_error")
        )
        where = (
            "" if over == "sizes" else f"over spaces from {config.k} dimensions to all off by {e}: "
        )
        notes.append(
            f"{where}signed {bias} (above 0: search gains more); an exact law would be off by "
            f"{chance[over]:.2g} by chance, the slope "
            f"alone, σ‖g‖m_N, is off by {linear}"
        )
    return notes


def _edge(config: Config, rows: Sequence[Row], point: str) -> list[str]:
    """Where curvature takes over, over where it was predicted to."""
    ratio = by_run(rows, "log10_edge_ratio", point=point)
    there = int((~np.isnan(ratio)).sum())
    if not there:
        return [
            f"in no run the gain departs by {config.edge:.0%} from a straight line at a measured σ"
        ]
    e = over_runs(ratio)
    times = f"{10**e.value:.3g}" + (f" [{10**e.low:.3g}, {10**e.high:.3g}]" if there > 1 else "")
    return [
        f"curvature takes over ({config.edge:.0%} off the straight line) at {times} times the "
        f"predicted σ, seen in {there} of "
        f"{len(ratio)} runs"
    ]


def signal_density(config: Config, rows: Sequence[Row]) -> Claim:
    """Over subspaces of equal k, the gain of a search rises with the gradient's energy per
    dimension.
    """
    density, gain = (by_space(rows, q) for q in ("signal_density", "equal_radius_gain"))
    per_run = {run: rank_correlation(density[run], gain[run]) for run in sorted(density)}
    kept = [run for run, r in per_run.items() if not math.isnan(r)]
    e = over_runs([per_run[run] for run in kept])
    null = permuted_rank_correlations(
        [(density[run], gain[run]) for run in kept], draws=PERMUTATIONS, seed=config.seed
    )
    best = _text(_ranks(rows, "best_gain_law", "best_gain"))
    at_best = _text(_ranks(rows, "signal_density", "best_gain"))
    ratio = _text(by_run(rows, "density_ratio"))
    return Claim(
        id="signal-density",
        statement="Which subspace to search in, at equal small radius, is decided by signal "
        "density, gradient energy per dimension.",
        setting=setting(config, POINT["damaged"]),
        paper="formula (proposition)",
        measured=f"Spearman's ρ of ‖P_S g‖²/k and the gain of the best of {config.n} over "
        f"subspaces of k = {config.k}, equal radius",
        null=f"{DECIDES}; and gains permuted among the subspaces of a run",
        p=max(permutation_p(e.value, null), mean_above([per_run[run] for run in kept], DECIDES)),
        p_holm=None,
        rule=f"equal radius: {config.size:g} of the smallest reference σ of the subspaces, so that "
        "the law's domain holds them all; "
        f"bases from examples that score no candidate; supported: lower limit above {DECIDES}; "
        f"refuted: upper limit below {DECIDES}",
        verdict=verdict(e.low > DECIDES, e.high < DECIDES),
        note="at so small a radius this is first order, and what could fail is its reach; gain "
        "over R·m_N·√density, median over "
        f"subspaces {ratio}; with each subspace at its own reference σ, ρ of gain and density "
        f"{at_best}, of gain and the law's gain "
        f"{best}" + _lost(len(per_run) - len(kept), "ρ"),
        **figures(e),  # type: ignore[arg-type]
    )


def _lost(runs: int, what: str) -> str:
    """How many runs an estimate leaves out."""
    return f"; in {runs} runs {what} is not defined" if runs else ""


def _text(values: Sequence[float] | Values, otherwise: str = "not defined") -> str:
    """The mean over runs with its interval, where it is defined in some run."""
    return otherwise if np.isnan(np.asarray(values, dtype=float)).all() else str(over_runs(values))


def _ranks(rows: Sequence[Row], one: str, other: str) -> list[float]:
    x, y = by_space(rows, one), by_space(rows, other)
    return [round(rank_correlation(x[run], y[run]), DIGITS) for run in sorted(x)]


def by_space(rows: Sequence[Row], quantity: str) -> dict[int, Values]:
    """A quantity over the subspaces of every run, the subspaces in one order."""
    return _grouped(rows, quantity, "space")


def by_candidate(rows: Sequence[Row], quantity: str) -> dict[int, Values]:
    """A quantity over the candidates of every run, in order."""
    return _grouped(rows, quantity, "candidate")


def _grouped(rows: Sequence[Row], quantity: str, key: str) -> dict[int, Values]:
    found: dict[int, dict[Any, float]] = {}
    for row in rows:
        if row.quantity == quantity and "run" in row.context:
            value = math.nan if row.value is None else row.value
            found.setdefault(row.context["run"], {})[row.context[key]] = value
    return {run: np.array([of[name] for name in sorted(of)]) for run, of in found.items()}


def alignment_predicts(config: Config, rows: Sequence[Row]) -> Claim:
    """Over the candidates of a run, gain is correlated with the cosine between δ and −∇ of the
    recovery loss.
    """
    r, e, null, lost = _correlated(config, rows, "candidate_alignment")
    here: dict[str, Any] = {"point": "damaged", "of": "loss"}
    expected = _text(by_run(rows, "alignment_correlation", column="null", size=1.0, **here))
    small, large = (
        _text(by_run(rows, "alignment_correlation", size=s, **here)) for s in _ends(config)
    )
    return Claim(
        id="alignment-predicts-gain",
        statement="A candidate's gain follows its alignment with the recovery gradient.",
        setting=setting(config, POINT["damaged"]),
        paper="r ≈ 0.52, about 1,200 candidates, 6 runs (Fig. 3a)",
        measured=f"correlation of the loss's decrease with cos(δ, −g){_in_factors(config)} over "
        f"{config.candidates} candidates, mean "
        "over runs",
        null=f"{MODERATE}; and gains permuted among the candidates of a run",
        p=max(permutation_p(_mean(r), null), mean_above(np.arctanh(r), math.atanh(MODERATE))),
        p_holm=None,
        rule="g of recovery examples, the gain of others; mean and interval on Fisher's scale; "
        "decided on the loss, at θ_D, at the "
        f"reference σ; supported: lower limit above {MODERATE}; refuted: upper limit below "
        f"{MODERATE}",
        verdict=verdict(e.low > MODERATE, e.high < MODERATE),
        note=f"the law predicts r = {expected}; r depends on σ: {small} at {_ends(config)[0]:g} of "
        f"the reference σ, {large} at "
        f"{_ends(config)[1]:g}; " + _others(rows, "alignment_correlation") + _lost(lost, "r"),
        **figures(e),  # type: ignore[arg-type]
    )


def plane_does_not(config: Config, rows: Sequence[Row]) -> Claim:
    """Over the candidates of a run, gain does not rise with the share of δ inside the static plane."""
    r, e, null, lost = _correlated(config, rows, "candidate_overlap")
    two_sided = permutation_p(abs(_mean(r)), np.abs(null))
    here: dict[str, Any] = {"point": "damaged", "of": "loss", "size": 1.0}
    expected = _text(
        by_run(rows, "overlap_correlation", column="null", plane="static plane", **here)
    )
    controls = ", ".join(
        f"of {name} {_text(by_run(rows, 'overlap_correlation', plane=plane, **here))}"
        for name, plane in (
            ("the gradients at θ_D", "gradients at θ_D"),
            ("a random plane", "random"),
        )
    )
    return Claim(
        id="plane-overlap-does-not",
        statement="Overlap with the static task plane does not predict gain.",
        setting=setting(config, POINT["damaged"]),
        paper="r ≈ −0.40 (Fig. 3b)",
        measured=f"correlation of the loss's decrease with ‖Qᵀδ‖²/‖δ‖²{_in_factors(config)} over "
        f"{config.candidates} candidates, mean "
        f"over runs; Q: task vectors and principal gradients at θ₀, k = {config.k}",
        null=f"{WEAK}",
        p=mean_above(-np.arctanh(r), -math.atanh(WEAK)),
        p_holm=None,
        rule=f"supported: upper limit below {WEAK}; refuted: lower limit above {WEAK}; mean and "
        "interval on Fisher's scale; decided on "
        "the loss, at θ_D, at the reference σ",
        verdict=verdict(e.high < WEAK, e.low > WEAK),
        note="overlap is even in δ and the linear gain odd, so that to first order no plane's "
        "overlap goes with gain, not even that of "
        "one which holds g: only curvature in the plane could make it, which predicts r = "
        f"{expected}; controls: {controls}; against 0 "
        f"p = {two_sided:.2g} (two-sided, gains permuted within runs); "
        + _others(rows, "overlap_correlation", plane="static plane")
        + _lost(lost, "r"),
        **figures(e),  # type: ignore[arg-type]
    )


def _in_factors(config: Config) -> str:
    return " in the factors' coordinates" if config.space == "lora" else ""


def _ends(config: Config) -> tuple[float, float]:
    return config.sizes[0], config.sizes[-1]


def _mean(values: Values) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _correlated(
    config: Config, rows: Sequence[Row], quantity: str
) -> tuple[Values, Estimate, Values, int]:
    """Correlation with the gain in every run where it is defined, its mean, null draws of it, and
    the number of runs lost.
    """
    x, y = by_candidate(rows, quantity), by_candidate(rows, "candidate_gain")
    pairs = [(x[run], y[run]) for run in sorted(x)]
    kept = [pair for pair in pairs if not math.isnan(correlation(*pair))]
    r = np.clip([correlation(a, b) for a, b in kept], -0.999, 0.999)
    z = over_runs(np.arctanh(r))
    e = Estimate(value=math.tanh(z.value), low=math.tanh(z.low), high=math.tanh(z.high), n=z.n)
    if not math.isfinite(z.low):
        e = Estimate(value=e.value, low=-math.inf, high=math.inf, n=e.n)
    return (
        r,
        e,
        permuted_correlations(kept, draws=PERMUTATIONS, seed=config.seed),
        len(pairs) - len(kept),
    )


def _others(rows: Sequence[Row], quantity: str, **context: Any) -> str:
    """The same correlation for the gain in score, and at the halfway point."""
    texts = []
    for of, point in (("score", "damaged"), ("loss", "halfway"), ("score", "halfway")):
        found = by_run(rows, quantity, point=point, of=of, size=1.0, **context)
        texts.append(
            f"with the {of} at {POINT[point]} {_text(found, 'not defined, it never changes')}"
        )
    return "; ".join(texts)


def ensembles_help(config: Config, rows: Sequence[Row]) -> Claim:
    """A vote of the k best answers more test examples than the best one, than the model, than as
    many samples of the model.
    """
    k = config.votes[-1]

    def scored(arm: str, votes: int) -> Values:
        return by_run(rows, "table_score", arm=arm, votes=votes)

    def above(arm: str, votes: int) -> Values:
        over: Values = np.round(vote - scored(arm, votes), DIGITS)
        return over

    vote = scored("vote of the best", k)
    differences = {
        "the best candidate": above("vote of the best", 1),
        "the model": above("the model", 1),
        f"a vote of {k} samples of the model": above("vote of samples", k),
    }
    found = {name: over_runs(values) for name, values in differences.items()}
    single = found["the best candidate"]
    oracle = over_runs(scored("any of them (oracle)", config.asked))
    return Claim(
        id="ensembles-help",
        statement="An ensemble of the best candidates of a random search answers better than its "
        "best one and than the model.",
        setting=setting(config, POINT["halfway"]),
        paper="Table 7, not at hand",
        measured=f"share of test examples right by a vote of the {k} best of {config.others}, less "
        "that of the best one",
        null="0; and against the model itself and a vote of as many samples of it",
        p=max(mean_above(values, 0.0) for values in differences.values()),
        p_holm=None,
        rule="σ and the best by the select examples, all compared on the same test examples; "
        "supported: the lower limits of all three "
        "differences above 0; refuted: an upper limit of those over the best candidate or over the "
        "model below 0",
        verdict=verdict(
            all(e.low > 0 for e in found.values()), single.high < 0 or found["the model"].high < 0
        ),
        note="; ".join(
            [
                f"score {over_runs(vote)}",
                *(f"over {name} {e}" for name, e in list(found.items())[1:]),
                f"over a vote of {k} drawn without selection "
                f"{over_runs(above('vote without selection', k))}",
                f"any of {config.asked} candidates (an oracle, not to be deployed) {oracle}",
            ]
        ),
        **figures(single),  # type: ignore[arg-type]
    )
