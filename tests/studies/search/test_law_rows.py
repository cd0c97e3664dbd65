from typing import Any

import numpy as np
import pytest

from loclin.search.ensemble import best_of
from loclin.studies.search.claims_settings import SearchClaimsSettings
from loclin.studies.search.law_rows import bend, chance_error
from tests.studies.search.claims_small import value


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_errors_are_means_over_the_domain_and_over_kinds_of_spaces(
    kind: str, request: pytest.FixtureRequest
) -> None:
    rows = list(request.getfixturevalue(kind).rows)
    here: dict[str, Any] = {"point": "damaged", "noise": "gaussian"}

    def off(quantity: str, **context: Any) -> float:
        (found,) = (
            r
            for r in rows
            if r.quantity == quantity and {**here, **context}.items() <= r.context.items()
        )
        assert found.value is not None
        return found.value / (found.null or 1.0) - 1

    domain = [
        r.context["size"]
        for r in rows
        if r.quantity == "in_domain" and r.value == 1 and r.context["point"] == "damaged"
    ]
    assert 0.05 in domain
    assert 1.0 not in domain
    subspaces_ = {r.context["space"] for r in rows if r.quantity == "signal_density"}
    for quantity, mean in (("gain_ratio", "law_error"), ("gain_per_slope", "linear_error")):
        sizes = [abs(off(quantity, space="all", size=size)) for size in domain]
        assert value(rows, mean, point="damaged", over="sizes") == pytest.approx(np.mean(sizes))
        many = np.mean([abs(off(quantity, space=space, size=0.2)) for space in subspaces_])
        kinds = [
            many,
            *(abs(off(quantity, space=space, size=0.2)) for space in ("all", "largest tensor")),
        ]
        assert value(rows, mean, point="damaged", over="spaces") == pytest.approx(np.mean(kinds))
    planes = {
        r.context["plane"]: r
        for r in rows
        if r.quantity == "overlap_correlation" and r.context["point"] == "damaged"
    }
    assert list(planes) == ["static plane", "gradients at θ_D", "random"]
    told = [
        r.null
        for r in rows
        if r.quantity == "overlap_correlation"
        and r.context["point"] == "damaged"
        and r.context["of"] == "loss"
    ]
    assert all(t is not None and abs(t) < 1 for t in told)


def test_the_chance_error_is_that_of_fresh_searches() -> None:
    rng = np.random.default_rng(5)
    found = np.array([best_of(rng.standard_normal(60), [10])[0] for _ in range(2000)])
    assert chance_error(10, 60) == pytest.approx(np.abs(found / 1.5388 - 1).mean(), rel=0.1)


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
