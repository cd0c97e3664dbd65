"""Averages over prompts: reweighted, of other lengths, and a planted direction that all find."""

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.steering.averages import (
    Averaged,
    as_long_as,
    labels_averaged,
    logits_averaged,
    step_averaged,
)
from loclin.steering.compare import cosines
from loclin.steering.gradient import step_direction
from tests.planted import truth_world


def test_all_routes_find_a_planted_direction() -> None:
    """Cosine 1 by closed form: labels, logits, and one step in each estimand that is defined by the
    common shift or the contrast.
    """
    model, prompts, a = truth_world(layers=3, width=12, facts=40, seed=3)
    layers = [0, 1, 2]
    planted = a.expand(3, -1)
    # the same facts in both classes: their means differ by the planted direction alone
    labels = labels_averaged(model, prompts, form="auto", layers=layers, path=None)
    logits = logits_averaged(model, prompts, layers=layers, path=None)
    assert cosines(labels.direction().double(), planted).min() > 0.999
    assert cosines(logits.direction().double(), planted).min() > 0.999
    space = ParameterSpace(model, "layers*")
    step = step_direction(model, space, prompts, loss="fixed")
    moved = step_averaged(
        model, space, step, prompts, estimand="E1", eta=1e-3, layers=layers, path=None
    )
    assert (moved.direction().double() @ a).min() > 0


def test_an_average_with_other_weights_is_that_of_repeated_prompts() -> None:
    rng = np.random.default_rng(0)
    each, labels = (
        torch.from_numpy(rng.standard_normal((2, 7, 3))),
        np.array([1, 0, 0, 1, 1, 0, 1], bool),
    )
    counts = np.array([[1, 1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 1, 1, 0], [1, 0, 0, 2, 1, 0, 3]], float)
    for given in (labels, None):
        made = Averaged(each=each, labels=given, groups=tuple("abcdefg"))
        for layer in range(2):
            found = made.weighted(layer, counts)
            assert np.allclose(found[0], made.direction()[layer].numpy())
            again = np.repeat(np.arange(7), counts[1].astype(int))
            twice = Averaged(
                each=each[:, again],
                labels=None if given is None else given[again],
                groups=("",) * len(again),
            )
            assert np.allclose(found[1], twice.direction()[layer].numpy())
            assert np.isnan(found[2]).all() == (
                given is not None
            )  # no prompt of the other class is left


def test_lengths_are_set_layer_by_layer_and_nothing_has_none() -> None:
    v = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    found = as_long_as(v, torch.tensor([10.0, 1.0], dtype=torch.float64), [4, 7])
    assert torch.allclose(found, torch.tensor([[6.0, 8.0], [0.0, 1.0]]))
    with pytest.raises(LoclinError, match="found lengths of 0 and 1 at block 7"):
        as_long_as(
            torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.ones(2, dtype=torch.float64), [4, 7]
        )
