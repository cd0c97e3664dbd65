"""Real runs of the claims about random search."""

from dataclasses import replace

import numpy as np
import pytest

from loclin.errors import LoclinError
from loclin.law import expected_maximum
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.search import claims_measure
from tests.studies.search.claims_small import TINY, value


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_a_run_measures_everything(kind: str, request: pytest.FixtureRequest) -> None:
    rows = list(request.getfixturevalue(kind).rows)
    for point in ("damaged", "halfway"):
        for size in (0.05, 0.2, 1.0):
            here = {"point": point, "space": "all", "noise": "gaussian", "size": size}
            assert value(rows, "finite", **here) == 1
            assert value(rows, "sigma", **here) == pytest.approx(
                size * value(rows, "reference_sigma", point=point)
            )
        small = {"point": point, "space": "all", "noise": "gaussian", "size": 0.05}
        ratio = value(rows, "gain_ratio", **small)
        assert ratio == pytest.approx(
            value(rows, "gain", best_of=2, **small) / value(rows, "gain_law", best_of=2, **small)
        )
        assert value(rows, "gain_per_slope", **small) == pytest.approx(
            ratio * expected_maximum(2), rel=0.2
        )
        assert value(rows, "law_error", point=point, over="sizes") >= abs(
            value(rows, "law_bias", point=point, over="sizes")
        )
    spaces = {r.context["space"] for r in rows if r.quantity == "gain_ratio"}
    subspaces_ = {r.context["space"] for r in rows if r.quantity == "signal_density"}
    assert spaces == subspaces_ | {"all", "largest tensor"}
    assert len(subspaces_) == 6
    radius = value(rows, "equal_radius")
    for space in subspaces_:
        density = value(rows, "signal_density", space=space)
        linear = value(rows, "equal_radius_law", space=space)
        assert linear == pytest.approx(radius * expected_maximum(2) * np.sqrt(density))
    assert len([r for r in rows if r.quantity == "candidate_gain"]) == 8
    assert {r.context["noise"] for r in rows if r.quantity == "gain_ratio"} == {
        "gaussian",
        "lowrank:1",
        "tied",
    }


def test_the_same_run_gives_the_same_record(part: Part) -> None:
    assert list(claims_measure.measure(TINY, 0, Session()).rows) == list(part.rows)


def test_unknown_noise_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(LoclinError, match="found 'uniform': change --noise"):
        claims_measure.measure(replace(TINY, noises=("uniform",)), 0, Session())
