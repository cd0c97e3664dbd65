"""Directions of every route: those of the library, all of one length, with their angles."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from loclin.models import Problem
from loclin.run.rows import Part
from loclin.steering import from_labels
from loclin.steering.compare import cosines
from loclin.studies.steering.context import SteeringContext, split_examples
from loclin.studies.steering.directions import Context, make_directions, opened
from loclin.studies.steering.settings import SteerSettings

SETTINGS = SteerSettings(
    model="statements-small",
    route="gradient",
    compare=("labels", "logits", "search"),
    labels=24,
    gradient=24,
    shift=16,
    choose=12,
    test=24,
    null=9,
    n=6,
    k=2,
)


@pytest.fixture(scope="module")
def context(speaking: Problem) -> Context:
    parts, stages = split_examples(speaking, SETTINGS), []
    return SteeringContext(
        settings=SETTINGS,
        problem=speaking,
        parts=parts,
        layers=(0, 1),
        progress=lambda stage, share: stages.append((stage, share)),
    )


@pytest.fixture(scope="module")
def made(context: Context) -> Part:
    return make_directions(context)


def test_all_routes_are_as_long_as_the_difference_that_labels_make(
    context: Context, made: Part
) -> None:
    problem, examples = context.problem, context.parts["labels"].examples
    labels = from_labels(problem.model, problem.tokenizer, examples)
    raw, scaled, lengths = opened(made, context)
    assert list(raw) == ["gradient", "labels", "logits", "search"]
    for layer in (0, 1):
        assert torch.allclose(raw["labels"][layer], labels.directions[layer], atol=1e-4)
        length = float(labels.directions[layer].norm())
        assert lengths[layer] == pytest.approx(length, rel=1e-4)
        for each in scaled.values():
            assert float(each[layer].norm()) == pytest.approx(length, rel=1e-4)
        for route, each in raw.items():
            assert float(cosines(each[layer], scaled[route][layer])) == pytest.approx(1, abs=1e-5)


def test_every_pair_has_its_angle_and_the_gradient_step_a_null_beside_labels(
    context: Context, made: Part
) -> None:
    raw, _, _ = opened(made, context)
    pairs = [r for r in made.rows if r.quantity == "cosine"]
    assert len(pairs) == 6 * 2
    for row in pairs:
        a, b, layer = row.context["route"], row.context["with"], row.context["layer"]
        expected = float(cosines(raw[a], raw[b])[layer])
        assert row.value == pytest.approx(expected, abs=1e-6)
        if "search" in (a, b):
            assert (row.low, row.p) == (None, None)
        else:
            assert row.low is not None
            assert row.low < expected < (row.high or 0.0)
        if (a, b) == ("gradient", "labels"):
            assert row.p is not None
            assert row.p >= 1 / 19
        else:
            assert row.null is None
    assert [r.n for r in made.rows if r.quantity == "random_cosine"] == [18, 18]


def test_labels_alone_need_no_step(context: Context) -> None:
    alone = replace(context, settings=replace(SETTINGS, route="labels", compare=()))
    found = make_directions(alone)
    assert list(found.rows) == []
    raw, _, _ = opened(found, alone)
    assert np.isfinite(raw["labels"].numpy()).all()
    assert not any("gradient" in key for key in found.arrays)
