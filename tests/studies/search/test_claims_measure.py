"""Real runs of the claims about random search."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest

from loclin.errors import LoclinError
from loclin.law import expected_maximum
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.search import claims, claims_measure
from tests.recompute import search
from tests.studies.search.claims_small import LORA, TINY, value


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
            ratio * value(rows, "law_per_slope", **small)
        )
        assert value(rows, "second_order_per_slope", **small) == pytest.approx(
            value(rows, "law_per_slope", **small), abs=0.02
        )
    spaces = {r.context["space"] for r in rows if r.quantity == "gain_ratio"}
    subspaces_ = {r.context["space"] for r in rows if r.quantity == "signal_density"}
    assert spaces == subspaces_ | {"all", "largest tensor"}
    assert len(subspaces_) == 7
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


@pytest.mark.parametrize("runs", [1, 2])
def test_estimates_can_be_recomputed_from_arrays_alone(
    runs: int, part: Part, lora_part: Part
) -> None:
    """Of one run by LoRA, and of two on one model; settings as JSON has them."""
    settings = replace(LORA if runs == 1 else TINY, seeds=runs, models_per_claim=1)
    parts = [lora_part]
    if runs == 2:
        parts = [part, claims_measure.measure(settings, 1, Session())]
    arrays = {k: v for p in parts for k, v in p.arrays.items()}
    again = search.estimates(json.loads(json.dumps(dataclasses.asdict(settings))), arrays)
    decided = claims.decide(settings, [row for p in parts for row in p.rows])
    assert len(again) == len(decided) == 7
    for c in decided:
        (found,) = [v for (i, end), v in again.items() if i == c.id and c.setting.endswith(end)]
        assert c.value == pytest.approx(found[0], abs=1e-9), c.id
        if runs > 1:
            assert (c.low, c.high) == pytest.approx(found[1:], abs=1e-9), c.id


def test_what_a_record_keeps_has_one_array_for_every_search(part: Part) -> None:
    gains = {k: v for k, v in part.arrays.items() if k.startswith("gains/")}
    assert {v.shape[0] for k, v in gains.items() if "/gaussian/" in k} == {3}
    assert gains["gains/damaged/gaussian/all/1.0/0"].shape == (3, TINY.candidates)
    assert gains["gains/damaged/tied/all/0.2/0"].shape == (2, TINY.inside)
    assert all(key.endswith("/0") for key in part.arrays)
    assert part.arrays["answers/vote of the best/0"].shape == (3, TINY.test_examples)
