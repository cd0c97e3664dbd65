"""Calibration of the rules on planted studies: on nulls each verdict in at most 5 %, its
Monte-Carlo error allowed; on planted structure the right one in at least 95 %.

Where a rule has a threshold, the null lies on it, not far away.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from loclin.run.rows import Row
from loclin.studies.search import claims
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.names import MODEL, RANDOM_VOTE, SAMPLED_VOTE, VOTE
from loclin.studies.verdict import Rule, decided
from tests.properties import assert_rarely_decided
from tests.studies.search.planted_claims import (
    FEWER,
    SETTINGS,
    World,
    candidate_rows,
    law_rows,
    row,
    space_rows,
    study,
    verdicts,
    vote_rows,
)

NULL_DRAWS, DRAWS = 200, 200
BOTH = pytest.mark.parametrize("settings", [SETTINGS, FEWER], ids=["12 on 6", "8 on 4"])
Gain = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PERMUTATIONS", 199)


def law_world(point: str, gain: Gain, *, bent: float = 0.18, spaces: float = 1.0) -> World:
    return lambda rng, run, luck: law_rows(
        rng, run, point=point, gain=gain, bent=bent, spaces=spaces
    )


def law_rule(point: str) -> Callable[..., Rule]:
    return lambda settings, rows: claims.best_of_n_law(settings, rows, point)


@BOTH
@pytest.mark.parametrize(
    ("point", "bent"), [("damaged", 0.18), ("halfway", 0.18), ("halfway", 0.03)]
)
def test_an_exact_law_is_supported(settings: SearchClaimsSettings, point: str, bent: float) -> None:
    """Also where curvature takes 3 % of the gain."""
    world = law_world(point, lambda law: law, bent=bent)
    assert verdicts(world, law_rule(point), settings, DRAWS)["supported"] >= 0.95


@BOTH
@pytest.mark.parametrize(("bent", "least"), [(0.25, 0.95), (0.01, 0.0)])
def test_gains_by_the_slope_alone_are_not_the_law(
    settings: SearchClaimsSettings, bent: float, least: float
) -> None:
    """The old rule was passed by them; where curvature matters, they are refuted."""
    world = law_world("halfway", np.ones_like, bent=bent)
    shares = verdicts(world, law_rule("halfway"), settings, DRAWS)
    assert shares.get("supported", 0.0) <= 0.05
    assert shares.get("refuted", 0.0) >= least


@BOTH
def test_noise_of_the_probes_decides_nothing(settings: SearchClaimsSettings) -> None:
    """tr H is 0, its probes say 5 % of the slope's gain: the slope alone is nearer, and the law
    exact.
    """

    def world(rng: np.random.Generator, run: int, luck: float) -> list[Row]:
        seen = 0.05 * rng.standard_normal()
        return law_rows(
            rng, run, point="halfway", gain=lambda law: np.ones_like(law), bent=0.4 * seen
        )

    shares = verdicts(world, law_rule("halfway"), settings, NULL_DRAWS)
    assert_rarely_decided(shares, NULL_DRAWS)


@BOTH
@pytest.mark.parametrize(
    ("point", "gain", "spaces"),
    [
        ("halfway", lambda law: (1 + law) / 2, 1.0),  # as far from the law as from the slope
        ("halfway", lambda law: 0.75 * law, 1.0),  # on the margin
        ("halfway", lambda law: 1.25 * law, 1.0),
        ("damaged", lambda law: law, 0.75),  # on the margin in subspaces alone
    ],
    ids=["between", "below", "above", "subspaces"],
)
def test_on_its_thresholds_the_law_is_rarely_decided(
    settings: SearchClaimsSettings, point: str, gain: Gain, spaces: float
) -> None:
    world = law_world(point, gain, spaces=spaces)
    shares = verdicts(world, law_rule(point), settings, NULL_DRAWS)
    assert_rarely_decided(shares, NULL_DRAWS)


def test_an_exact_law_without_curvature_is_never_refuted() -> None:
    """There it says what the slope says."""
    shares = verdicts(law_world("damaged", lambda x: x, bent=0.005), law_rule("damaged"))
    assert_rarely_decided(shares, NULL_DRAWS)


@BOTH
@pytest.mark.parametrize("mean", [0.75, 1.25])
def test_runs_on_one_model_are_one_unit(settings: SearchClaimsSettings, mean: float) -> None:
    """Each model has a bias of its own, about one on the margin."""

    def world(rng: np.random.Generator, run: int, luck: float) -> list[Row]:
        return law_rows(rng, run, point="halfway", gain=lambda law: (mean + 0.15 * luck) * law)

    shares = verdicts(world, law_rule("halfway"), settings, NULL_DRAWS)
    assert_rarely_decided(shares, NULL_DRAWS)


def spaces_of(gains: Callable[..., np.ndarray]) -> World:
    return lambda rng, run, luck: space_rows(rng, run, lambda law: gains(rng, law))


@BOTH
def test_subspaces_that_gain_by_the_law_are_found(settings: SearchClaimsSettings) -> None:
    world = spaces_of(lambda rng, law: law + 0.3 * rng.standard_normal(7))
    assert verdicts(world, claims.signal_density, settings, DRAWS)["supported"] >= 0.95


@BOTH
def test_subspaces_whose_gains_are_exchanged_are_not(settings: SearchClaimsSettings) -> None:
    """The same exchange in every run: seven types of subspace are not seven times twelve."""
    order = list[int]()

    def world(rng: np.random.Generator, run: int, luck: float) -> list[Row]:
        if run == 0:
            order[:] = rng.permutation(7).tolist()
        return space_rows(rng, run, lambda law: law[order])

    shares = verdicts(world, claims.signal_density, settings, NULL_DRAWS)
    assert shares.get("supported", 0.0) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / NULL_DRAWS)


@BOTH
def test_on_its_threshold_the_rank_correlation_is_rarely_decided(
    settings: SearchClaimsSettings,
) -> None:
    world = spaces_of(lambda rng, law: law + 2.5 * rng.standard_normal(7))  # mean ρ is 0.50
    shares = verdicts(world, claims.signal_density, settings, NULL_DRAWS)
    assert_rarely_decided(shares, NULL_DRAWS)


def candidates_of(r: float, *, by_model: float) -> World:
    """r differs by model and by run, on Fisher's scale."""

    def world(rng: np.random.Generator, run: int, luck: float) -> list[Row]:
        true = math.tanh(math.atanh(r) + by_model * luck + 0.03 * rng.standard_normal())
        return candidate_rows(rng, run, "candidate_alignment", true)

    return world


@pytest.mark.parametrize(("settings", "by_model"), [(SETTINGS, 0.1), (FEWER, 0.03)])
def test_gain_that_follows_alignment_is_found(
    settings: SearchClaimsSettings, by_model: float
) -> None:
    world = candidates_of(0.55, by_model=by_model)
    assert verdicts(world, claims.alignment_predicts, settings, DRAWS)["supported"] >= 0.95


@BOTH
@pytest.mark.parametrize("by_model", [0.0, 0.15])
def test_on_its_threshold_the_correlation_is_rarely_decided(
    settings: SearchClaimsSettings, by_model: float
) -> None:
    world = candidates_of(0.3, by_model=by_model)
    assert_rarely_decided(
        verdicts(world, claims.alignment_predicts, settings, NULL_DRAWS), NULL_DRAWS
    )


def test_gain_that_does_not_follow_alignment_refutes() -> None:
    world = candidates_of(0.0, by_model=0.05)
    assert verdicts(world, claims.alignment_predicts, SETTINGS, DRAWS)["refuted"] >= 0.95


def votes_of(single: float, model: float, samples: float, vote: float, *, level: float) -> World:
    """Scores of the ways to answer; a model's own level is added to all of them."""
    scores = {
        (VOTE, 1): single,
        (MODEL, 1): model,
        (SAMPLED_VOTE, 10): samples,
        (VOTE, 10): vote,
        (RANDOM_VOTE, 10): single,
        ("any of them (oracle)", SETTINGS.tested): 0.99,
    }
    return lambda rng, run, luck: vote_rows(
        rng, run, scores, level * luck + 0.02 * rng.standard_normal()
    )


@pytest.mark.parametrize(("settings", "vote"), [(SETTINGS, 0.6), (FEWER, 0.66)])
def test_votes_that_help_are_found(settings: SearchClaimsSettings, vote: float) -> None:
    world = votes_of(0.5, 0.5, 0.5, vote, level=0.05)
    assert verdicts(world, claims.ensembles_help, settings, DRAWS)["supported"] >= 0.95


@BOTH
@pytest.mark.parametrize(
    "scores",
    [
        (0.5, 0.5, 0.5, 0.5),
        (0.5, 0.6, 0.5, 0.6),  # better than the best candidate, but no better than the model
        (0.5, 0.5, 0.6, 0.6),  # no better than as many samples of the model
        (0.6, 0.5, 0.5, 0.6),  # the best candidate is as good alone
        (0.97, 0.97, 0.9, 0.97),  # shares near their end are skewed
    ],
)
def test_votes_that_do_not_help_are_rarely_decided(
    settings: SearchClaimsSettings, scores: tuple[float, float, float, float]
) -> None:
    world = votes_of(*scores, level=0.02)
    assert_rarely_decided(verdicts(world, claims.ensembles_help, settings, NULL_DRAWS), NULL_DRAWS)


@BOTH
def test_votes_that_help_some_models_and_hurt_others_are_rarely_decided(
    settings: SearchClaimsSettings,
) -> None:
    """Runs nested in models: the effect is a model's own, about none."""

    def world(rng: np.random.Generator, run: int, luck: float) -> list[Row]:
        return votes_of(0.5, 0.45, 0.4, 0.5 + 0.06 * luck, level=0.0)(rng, run, luck)

    assert_rarely_decided(verdicts(world, claims.ensembles_help, settings, NULL_DRAWS), NULL_DRAWS)


def whole(rng: np.random.Generator, run: int, luck: float) -> list[Row]:
    """A run of all claims, in a world where all hold."""
    rows = law_rows(rng, run, point="damaged", gain=lambda law: law)
    rows += law_rows(rng, run, point="halfway", gain=lambda law: law)
    rows += space_rows(rng, run, lambda law: law)
    rows += candidate_rows(rng, run, "candidate_alignment", 0.55)
    rows += [row("candidate_overlap", rng.uniform(), run=run, candidate=i) for i in range(100)]
    return rows + votes_of(0.5, 0.5, 0.5, 0.7, level=0.02)(rng, run, luck)


@BOTH
def test_the_whole_family_is_found_after_holm(
    settings: SearchClaimsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PERMUTATIONS", 999)
    found = [c for d in range(40) for c in claims.decide(settings, study(whole, settings, d))]
    by_claim: dict[str, list[str]] = {}
    for claim in found:
        by_claim.setdefault(f"{claim.id} {claim.setting}", []).append(claim.verdict)
    assert len(by_claim) == 7
    for name, words in by_claim.items():
        sure = "plane" in name or "equal radius" in name
        assert words.count("measurement" if sure else "supported") >= 0.9 * len(words), name


def test_a_run_without_a_correlation_is_counted_and_helps_no_p() -> None:
    rng = np.random.default_rng(0)
    rows = [r for run in range(5) for r in candidate_rows(rng, run, "candidate_alignment", 0.0)]
    still = [
        replace(r, value=0.0) if r.quantity == "candidate_gain" else r
        for r in candidate_rows(rng, 5, "candidate_alignment", 0.0)
    ]
    settings = replace(SETTINGS, seeds=6)
    (claim,) = decided([claims.alignment_predicts(settings, [*rows, *still])])
    assert claim.n == 5
    assert claim.note.endswith("in 1 runs r is not defined")
    assert claim.p is not None
    assert claim.p > 0.05


def test_a_single_run_decides_nothing_and_none_is_not_run() -> None:
    rng = np.random.default_rng(0)
    settings = replace(SETTINGS, seeds=1)
    rows = candidate_rows(rng, 0, "candidate_alignment", 0.9)
    (claim,) = decided([claims.alignment_predicts(settings, rows)])
    assert (claim.verdict, claim.low, claim.n) == ("inconclusive", None, 1)
    lost = [replace(r, value=None) for r in rows]
    (claim,) = decided([claims.alignment_predicts(settings, lost)])
    assert (claim.verdict, claim.value, claim.p) == ("not run", None, None)


def test_where_curvature_takes_over_is_in_the_note() -> None:
    rows = study(law_world("damaged", lambda law: law), SETTINGS, 0)
    claim = claims.best_of_n_law(SETTINGS, rows, "damaged").claim
    assert "curvature takes over (20% off the straight line) at" in claim.note
    assert "over spaces, from 10 dimensions to all the law is off by" in claim.note
    nowhere = [r if r.quantity != "log10_edge_ratio" else replace(r, value=None) for r in rows]
    claim = claims.best_of_n_law(SETTINGS, nowhere, "damaged").claim
    assert "in no run the gain departs" in claim.note
