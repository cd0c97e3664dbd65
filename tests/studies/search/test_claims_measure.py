"""Real runs of the claims about random search, their examples, and the point halfway back."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from loclin.errors import LoclinError
from loclin.law import expected_maximum
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.search import claims, claims_measure
from loclin.studies.search.claims_measure import (
    SearchData,
    divided,
    recover,
    score_of,
    search_data,
)
from loclin.studies.search.point import SearchRun
from loclin.tasks.example import Example
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


def test_no_group_is_in_two_parts() -> None:
    pool = [Example(prompt=f"{i}", answer=" x", group=f"{i // 3}") for i in range(30)]
    some, others = divided(pool, 7, seed=1)
    assert len(some) == 7
    assert not {e.group for e in some} & {e.group for e in others}
    assert divided(pool, 7, seed=1)[0] == some != divided(pool, 7, seed=2)[0]
    assert divided(pool, 100, seed=1) == (sorted(pool, key=divided(pool, 100, seed=1)[0].index), [])


def test_too_few_groups_are_refused(ctx: SearchRun) -> None:
    with pytest.raises(
        LoclinError, match=r"expected 16 \+ 4000 examples of swap in the gradients split in groups"
    ):
        search_data(replace(ctx, settings=replace(TINY, gradients=1000)))


def test_halfway_is_half_of_the_score_and_on_the_recorded_way(
    ctx: SearchRun, data: SearchData, damaged: Tensor
) -> None:
    longer = replace(ctx, settings=replace(TINY, steps=40, halfway_every=2))
    known = score_of(data.validate)
    path = recover(longer, data.validate, known, damaged)
    assert path.step is not None
    assert path.step % 2 == 0
    with ctx.space.restored():
        ctx.space.write(damaged)
        lost = score_of(data.validate)
        ctx.space.write(path.halfway)
        assert score_of(data.validate) >= (known + lost) / 2 > lost
    assert path.prefix.shape == (TINY.k, ctx.space.dimension)
    short = replace(ctx, settings=replace(TINY, steps=3, k=2))
    end = recover(short, data.validate, 2.0, damaged)  # never half of 2
    assert end.step is None
    assert torch.allclose(
        end.halfway,
        damaged
        + recover(
            replace(short, settings=replace(short.settings, k=3)), data.validate, 2.0, damaged
        ).prefix.sum(0),
        atol=1e-6,
    )
