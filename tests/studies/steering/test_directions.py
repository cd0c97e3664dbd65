"""Directions of every route: those of the library, all of one length, with their angles."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from loclin.models import Problem
from loclin.steering import from_labels
from loclin.steering.compare import cosines
from loclin.studies.steering.directions import Directions, SteerContext, make_directions
from loclin.studies.steering.settings import SteerSettings
from loclin.studies.steering.splits import split_examples

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
def context(speaking: Problem) -> SteerContext:
    splits, stages = split_examples(speaking, SETTINGS), []
    return SteerContext(
        settings=SETTINGS,
        problem=speaking,
        splits=splits,
        layers=(0, 1),
        progress=lambda stage, share: stages.append((stage, share)),
    )


@pytest.fixture(scope="module")
def made(context: SteerContext) -> Directions:
    return make_directions(context)


def test_all_routes_are_as_long_as_the_difference_that_labels_make(
    context: SteerContext, made: Directions
) -> None:
    problem, examples = context.problem, context.splits.labels.examples
    labels = from_labels(problem.model, problem.tokenizer, examples)
    assert list(made.raw) == ["gradient", "labels", "logits", "search"]
    for layer in (0, 1):
        assert torch.allclose(made.raw["labels"][layer], labels.directions[layer], atol=1e-4)
        length = float(labels.directions[layer].norm())
        assert made.lengths[layer] == pytest.approx(length, rel=1e-4)
        for scaled in made.scaled.values():
            assert float(scaled[layer].norm()) == pytest.approx(length, rel=1e-4)
    for route, raw in made.raw.items():
        assert torch.allclose(cosines(raw, made.scaled[route]), torch.ones(2), atol=1e-5)


def test_every_pair_has_its_angle_and_the_gradient_step_a_null_beside_labels(
    made: Directions,
) -> None:
    pairs = [r for r in made.rows if r.quantity == "cosine"]
    assert len(pairs) == 6 * 2
    for row in pairs:
        a, b, layer = row.context["route"], row.context["with"], row.context["layer"]
        expected = float(cosines(made.raw[a], made.raw[b])[layer])
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


def test_labels_alone_need_no_step(context: SteerContext) -> None:
    alone = replace(context, settings=replace(SETTINGS, route="labels", compare=()))
    found = make_directions(alone)
    assert list(found.raw) == ["labels"]
    assert list(found.rows) == []
    assert np.isfinite(found.raw["labels"].numpy()).all()
