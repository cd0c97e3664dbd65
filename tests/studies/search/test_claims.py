"""Calibration of the rules: at most 5 % supported on planted nulls, at least 95 % on planted
structure.

Where a rule has a threshold, the null lies on it or beyond it, not far away.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loclin.law import expected_maximum
from loclin.run.rows import Row
from loclin.search.ensemble import best_of
from loclin.studies.search import claims
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.law_rows import chance_error
from tests.properties import share_supported

SETTINGS = SearchClaimsSettings(seeds=6)
NULL_DRAWS, DRAWS = 200, 60


def row(quantity: str, value: float, null: float | None = None, **context: Any) -> Row:
    return Row(quantity=quantity, value=value, null=null, context=context)


def law_rows(
    rng: np.random.Generator, run: int, *, point: str, scale: float, spaces: float = 1.0
) -> list[Row]:
    """Errors of the study's own size where search gains `scale` times what the law says, in
    subspaces `spaces` times that.
    """
    here: dict[str, Any] = {"run": run, "point": point}

    def off(times: float, searches: int, candidates: int) -> np.ndarray:
        found = [best_of(rng.standard_normal(candidates), [SETTINGS.n])[0] for _ in range(searches)]
        return times * np.array(found) / expected_maximum(SETTINGS.n) - 1

    one = np.repeat(
        off(scale, 1, SETTINGS.others), 3
    )  # the candidates of all σ have the same directions
    many = off(scale * spaces, 8, SETTINGS.inside)
    rows = []
    for over, error in (("sizes", one), ("spaces", many)):
        rows.append(row("law_error", float(np.abs(error).mean()), 0.09, over=over, **here))
        rows.append(row("law_bias", float(error.mean()), 0.0, over=over, **here))
        rows.append(row("linear_error", 0.3, over=over, **here))
    return [*rows, row("log10_edge_ratio", 0.1 * rng.standard_normal(), **here)]


@pytest.mark.parametrize(
    ("point", "scale", "spaces", "holds"),
    [
        ("damaged", 1.0, 1.0, True),
        ("halfway", 1.0, 0.5, True),  # no spaces are compared there
        ("damaged", 1.25, 1.0, False),
        ("damaged", 0.75, 1.0, False),
        ("halfway", 0.75, 1.0, False),
        ("damaged", 1.0, 0.75, False),  # right in all coordinates, wrong in subspaces
    ],
)
def test_best_of_n_law(point: str, scale: float, spaces: float, holds: bool) -> None:
    def world(rng: np.random.Generator, run: int) -> list[Row]:
        return law_rows(rng, run, point=point, scale=scale, spaces=spaces)

    share = share_supported(
        world,
        lambda rows: claims.best_of_n_law(SETTINGS, rows, point),
        DRAWS if holds else NULL_DRAWS,
    )
    assert share >= 0.95 if holds else share <= 0.05


def test_an_exact_law_is_not_refuted_however_few_the_candidates() -> None:
    few = replace(SETTINGS, n=5, others=12, inside=8)
    chance = {
        "sizes": chance_error(5, 12),
        "spaces": (2 * chance_error(5, 12) + chance_error(5, 8)) / 3,
    }

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        rows = []
        for over, count in (("sizes", 12), ("spaces", 8)):
            off = best_of(rng.standard_normal(count), [5])[0] / expected_maximum(5) - 1
            for quantity, value, null in (
                ("law_error", abs(off), chance[over]),
                ("law_bias", off, 0.0),
                ("linear_error", 0.3, None),
            ):
                rows.append(row(quantity, float(value), null, over=over, run=run, point="damaged"))
        return [*rows, row("log10_edge_ratio", 0.0, run=run, point="damaged")]

    refuted = 0
    for draw in range(200):
        rng = np.random.default_rng(draw)
        rows = [r for run in range(3) for r in world(rng, run)]
        refuted += claims.best_of_n_law(few, rows, "damaged").verdict == "refuted"
    assert refuted <= 10


def test_a_run_without_a_correlation_is_counted_and_helps_no_p() -> None:
    rng = np.random.default_rng(0)
    rows = [r for run in range(5) for r in candidate_rows(rng, run, "candidate_alignment", 0.0)]
    still = [
        replace(r, value=0.0) if r.quantity == "candidate_gain" else r
        for r in candidate_rows(rng, 5, "candidate_alignment", 0.0)
    ]
    claim = claims.alignment_predicts(SETTINGS, [*rows, *still])
    assert claim.n == 5
    assert claim.note.endswith("in 1 runs r is not defined")
    assert claim.p is not None
    assert claim.p > 0.05


@pytest.mark.parametrize(
    ("follows", "holds"), [("density", True), ("nothing", False), ("halves", False)]
)
def test_signal_density(follows: str, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gains that follow the density with the scatter of 60 candidates; that do not; that follow it
    in half of the subspaces.
    """
    monkeypatch.setattr(claims, "PERMUTATIONS", 99)

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        density = np.exp(rng.uniform(-6, 0, 6))
        other = np.exp(rng.uniform(-6, 0, 6))
        decides = {
            "density": density,
            "nothing": other,
            "halves": np.where(np.arange(6) < 3, density, other),
        }[follows]
        gain = np.sqrt(decides) * (1 + 0.14 * rng.standard_normal(6))
        rows = [row("density_ratio", 1.0, run=run)]
        for i in range(6):
            for quantity, value in (("signal_density", density[i]), ("equal_radius_gain", gain[i])):
                rows.append(row(quantity, float(value), run=run, space=str(i)))
            rows.append(row("best_gain", float(gain[i]), run=run, space=str(i)))
            rows.append(row("best_gain_law", float(density[i]), run=run, space=str(i)))
        return rows

    share = share_supported(
        world, lambda rows: claims.signal_density(SETTINGS, rows), DRAWS if holds else NULL_DRAWS
    )
    assert share >= 0.95 if holds else share <= 0.05


def candidate_rows(rng: np.random.Generator, run: int, quantity: str, r: float) -> list[Row]:
    true = math.tanh(math.atanh(r) + 0.03 * rng.standard_normal())
    x = rng.standard_normal(200)
    gain = true * x + math.sqrt(1 - true**2) * rng.standard_normal(200)
    rows = [row("alignment_correlation", 0.9, 0.9, run=run, point="damaged", of="loss", size=1.0)]
    for i in range(200):
        rows.append(row(quantity, float(x[i]), run=run, candidate=i))
        rows.append(row("candidate_gain", float(gain[i]), run=run, candidate=i))
    return rows


@pytest.mark.parametrize(("r", "holds"), [(0.52, True), (0.0, False), (0.3, False)])
def test_alignment_predicts_gain(r: float, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PERMUTATIONS", 99)

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        return candidate_rows(rng, run, "candidate_alignment", r)

    share = share_supported(
        world, lambda rows: claims.alignment_predicts(SETTINGS, rows), DRAWS if holds else 100
    )
    assert share >= 0.95 if holds else share <= 0.05


@pytest.mark.parametrize(("r", "holds"), [(-0.4, True), (0.0, True), (0.2, False), (0.4, False)])
def test_plane_overlap_does_not(r: float, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PERMUTATIONS", 19)

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        return candidate_rows(rng, run, "candidate_overlap", r)

    share = share_supported(
        world, lambda rows: claims.plane_does_not(SETTINGS, rows), DRAWS if holds else 100
    )
    assert share >= 0.95 if holds else share <= 0.05


@pytest.mark.parametrize(
    ("single", "model", "samples", "vote", "holds"),
    [
        (0.5, 0.5, 0.5, 0.62, True),
        (0.5, 0.5, 0.5, 0.5, False),
        (0.5, 0.6, 0.5, 0.6, False),  # better than the best candidate, but no better than the model
        (0.5, 0.5, 0.6, 0.6, False),  # no better than as many samples of the model
        (0.6, 0.5, 0.5, 0.6, False),  # the best candidate is as good alone
    ],
)
def test_ensembles_help(
    single: float, model: float, samples: float, vote: float, holds: bool
) -> None:
    def world(rng: np.random.Generator, run: int) -> list[Row]:
        level = 0.05 * rng.standard_normal()  # of the run: all arms share it
        hard = rng.uniform(
            size=128
        )  # and how hard each example is, but for 30 % of them, on which every arm has its own luck
        rows = []
        for (arm, k), p in {
            ("vote of the best", 1): single,
            ("the model", 1): model,
            ("vote of samples", 10): samples,
            ("vote of the best", 10): vote,
            ("vote without selection", 10): 0.5,
            ("any of them (oracle)", SETTINGS.tested): 0.8,
        }.items():
            met = np.where(rng.uniform(size=128) < 0.3, rng.uniform(size=128), hard)
            rows.append(
                row("table_score", float(np.mean(met < p + level)), run=run, arm=arm, votes=k)
            )
        return rows

    share = share_supported(
        world, lambda rows: claims.ensembles_help(SETTINGS, rows), DRAWS if holds else NULL_DRAWS
    )
    assert share >= 0.95 if holds else share <= 0.05


def test_a_single_run_decides_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = candidate_rows(rng, 0, "candidate_alignment", 0.9)
    claim = claims.alignment_predicts(SETTINGS, rows)
    assert (claim.verdict, claim.low, claim.n) == ("inconclusive", None, 1)
    assert (
        claims.best_of_n_law(
            SETTINGS, law_rows(rng, 0, point="halfway", scale=1.0), "halfway"
        ).verdict
        == "inconclusive"
    )


def test_refuted_where_the_law_is_far_off() -> None:
    rng = np.random.default_rng(0)
    rows = [r for run in range(6) for r in law_rows(rng, run, point="damaged", scale=2.0)]
    claim = claims.best_of_n_law(SETTINGS, rows, "damaged")
    assert claim.verdict == "refuted"
    assert "curvature takes over (20% off the straight line)" in claim.note
    nowhere = [r if r.quantity != "log10_edge_ratio" else replace(r, value=None) for r in rows]
    assert "in no run the gain departs" in claims.best_of_n_law(SETTINGS, nowhere, "damaged").note
