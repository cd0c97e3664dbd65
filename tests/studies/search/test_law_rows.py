import math
from typing import Any

import numpy as np
import pytest

from loclin.correlation import correlation
from loclin.run.rows import Part
from loclin.search.local_law import LocalLaw
from loclin.studies.search import claims, names
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.law_rows import PREDICTIONS, bend, overlap_correlation
from tests.studies.search.claims_small import TINY, value


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_errors_are_means_over_the_domain_and_over_kinds_of_spaces(
    kind: str, request: pytest.FixtureRequest
) -> None:
    rows = list(request.getfixturevalue(kind).rows)
    here: dict[str, Any] = {"point": "damaged", "noise": "gaussian"}

    def off(predicted: str | None, **context: Any) -> float:
        gain = value(rows, "gain_per_slope", **here, **context)
        expected = value(rows, predicted, **here, **context) if predicted else 1.0
        return abs(gain - expected)

    domain = [
        r.context["size"]
        for r in rows
        if r.quantity == "in_domain" and r.value == 1 and r.context["point"] == "damaged"
    ]
    assert 0.05 in domain
    assert 1.0 not in domain
    subspaces_ = {r.context["space"] for r in rows if r.quantity == "signal_density"}
    end = {"at": names.DOMAIN_END}
    for mean, predicted in PREDICTIONS.items():
        sizes = [off(predicted, space="all", size=size) for size in domain]
        assert value(rows, mean, point="damaged", over="sizes") == pytest.approx(np.mean(sizes))
        many = np.mean([off(predicted, space=space, **end) for space in subspaces_])
        alone = [off(predicted, space=space, **end) for space in ("all", "largest tensor")]
        expected = np.mean([many, *alone])
        assert value(rows, mean, point="damaged", over="spaces") == pytest.approx(expected)
    largest = value(rows, "gain_per_slope", **here, space="all", size=domain[-1])
    assert value(rows, "gain_per_slope", **here, space="all", **end) == largest
    signed = [value(rows, "gain_ratio", **here, space="all", size=s) - 1 for s in domain]
    bias = value(rows, "law_bias", point="damaged", over="sizes")
    assert bias == pytest.approx(np.mean(signed))
    planes = {
        r.context["plane"]: r
        for r in rows
        if r.quantity == "overlap_correlation" and r.context["point"] == "damaged"
    }
    assert list(planes) == ["static plane", "gradients at θ_D", "random"]
    predicted = [
        r.null
        for r in rows
        if r.quantity == "overlap_correlation"
        and r.context["point"] == "damaged"
        and r.context["of"] == "loss"
    ]
    assert all(r is not None and abs(r) < 1 for r in predicted)


def test_the_bend_is_where_a_quadratic_bends() -> None:
    sigmas = np.geomspace(1e-3, 1, 40)
    gains = sigmas - 2 * sigmas**2  # slope 1 − 2σ: 20 % off at 0.1
    assert bend(list(sigmas), list(gains), 0.2) == pytest.approx(0.1, rel=0.02)
    assert bend(list(sigmas), list(sigmas + 2 * sigmas**2), 0.2) == pytest.approx(
        0.1, rel=0.02
    )  # upwards too
    for grid in (SearchClaimsSettings().sizes, (0.03, 0.2, 1.0, 3.0)):  # as coarse as the study's
        on = np.array(grid)
        for bent in (0.4, 1.0):
            first = 1 - bent * on[0] / 2
            there = 2 * (1 - 0.8 * first) / bent  # where gain/σ is 20 % below that of the first σ
            assert bend(list(on), list(on - bent * on**2 / 2), 0.2) == pytest.approx(there)
    assert bend([0.1, 1.0], [0.1, 1.0], 0.2) is None
    assert bend([0.1, 1.0], [-0.1, 1.0], 0.2) is None


def test_correlations_are_those_of_the_candidates(part: Part) -> None:
    rows = list(part.rows)
    of = {
        q: claims.grouped(rows, f"candidate_{q}", "candidate")[0]
        for q in ("gain", "alignment", "overlap")
    }
    r = np.corrcoef(of["gain"], of["alignment"])[0, 1]
    assert value(
        rows, "alignment_correlation", point="damaged", of="loss", size=1.0
    ) == pytest.approx(r)
    assert of["overlap"].mean() == pytest.approx(TINY.k / 26336, rel=1.5)
    assert np.abs(of["alignment"]).max() < 6 / np.sqrt(26336)


@pytest.mark.parametrize(("sigma", "curvature"), [(0.05, 0.0), (0.3, 4.0), (0.3, -4.0)])
def test_overlap_with_a_plane_goes_with_gain_by_its_curvature_alone(
    sigma: float, curvature: float
) -> None:
    """A quadratic whose gradient lies wholly in the plane."""
    rng, k, dimension, n = np.random.default_rng(1), 4, 300, 20_000
    z = rng.standard_normal((n, dimension))
    g = np.zeros(dimension)
    g[0] = 2.0
    h = np.zeros(dimension)
    h[:k] = curvature
    gain = -sigma * z @ g - sigma**2 / 2 * (z**2 @ h)
    inside = (z[:, :k] ** 2).sum(1) / (z**2).sum(1)
    norm = math.sqrt(k) * abs(curvature)
    local = LocalLaw(gradient=2.0, trace=k * curvature, along=curvature, frobenius=norm)
    expected = overlap_correlation(local, sigma=sigma, trace=k * curvature, k=k)
    assert correlation(inside, gain) == pytest.approx(expected, abs=4 / math.sqrt(n))
    assert correlation(z[:, 0], gain) < -0.7  # alignment tells
