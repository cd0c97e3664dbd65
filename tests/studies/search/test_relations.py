import math

import numpy as np
import pytest

from loclin.run.rows import Part
from loclin.search.local_law import LocalLaw
from loclin.studies.search import claims
from loclin.studies.search.relations import (
    correlation,
    overlap_correlation,
    permuted_correlations,
)
from tests.studies.search.claims_small import TINY, value


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


def test_correlations_leave_out_what_is_not_finite() -> None:
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0, np.nan, 8.0])
    assert correlation(x, y) == pytest.approx(1)
    assert math.isnan(correlation(x, np.ones(4)))
    assert math.isnan(correlation(x, np.array([1.0, np.nan, np.nan, 2.0])))
    null = permuted_correlations([(x, y), (x, x**2)], draws=2000, seed=0)
    assert abs(null.mean()) < 0.05
    assert null.std() == pytest.approx(math.sqrt((1 / 2 + 1 / 3) / 4), rel=0.1)
