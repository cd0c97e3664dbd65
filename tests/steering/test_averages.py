"""Averages over prompts: reweighted, of other lengths, and a planted direction that all find."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.steering.averages import (
    Averaged,
    as_long_as,
    class_contrast,
    labels_averaged,
    logits_averaged,
    paired_differences,
    step_averaged,
)
from loclin.steering.compare import cosines
from loclin.steering.gradient import step_direction
from loclin.steering.prompts import PromptSet, prompt_set
from tests.conftest import FAMILIES
from tests.planted import truth_world
from tests.steering.test_prompts import LETTERS


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


Models = dict[str, PreTrainedModel]
Tokenizers = dict[str, PreTrainedTokenizerBase]


def asked_statements(problem: Problem, count: int = 24, *, part: str = "test") -> PromptSet:
    """Of all tasks, half of them true."""
    examples = [e for task in problem.tasks for e in problem.examples[part][task]]
    sides = ([e for e in examples if e.answer == side] for side in (" yes", " no"))
    some = [e for side in sides for e in side[:: 2 * len(side) // count][: count // 2]]
    return prompt_set(some, problem.tokenizer, device=problem.model.device)


def test_class_contrast_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    h, labels = rng.standard_normal((3, 11, 5)) + 7, rng.random(11) < 0.4
    expected = np.zeros((3, 5))
    for layer in range(3):
        for i in range(11):
            share = 1 / labels.sum() if labels[i] else -1 / (~labels).sum()
            expected[layer] += share * h[layer, i]
    assert np.allclose(class_contrast(torch.from_numpy(h), labels).numpy(), expected, atol=1e-12)


def test_class_contrast_survives_a_large_common_mean() -> None:
    h = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0))
    labels = np.arange(64) % 2 == 0
    far = (h.double() + 1e4).float()
    expected = class_contrast(far.double(), labels)
    assert torch.allclose(class_contrast(far, labels).double(), expected, atol=1e-6)


@pytest.mark.parametrize("labels", [np.ones(4, bool), np.zeros(4, bool)])
def test_one_class_has_no_contrast(labels: np.ndarray) -> None:
    with pytest.raises(LoclinError, match="prompts of both classes, found 4 with"):
        class_contrast(torch.zeros(1, 4, 2), labels)


@pytest.mark.parametrize("family", FAMILIES)
def test_paired_differences_equal_two_plain_passes(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    model, asked = families[family], prompt_set(LETTERS, tokenizers[family], device="cpu")
    found = paired_differences(model, asked, layers=[0])
    for i in range(len(asked)):
        prompt = asked.batch.input_ids[i][asked.batch.attention_mask[i] > 0].tolist()
        ends = []
        for token in (int(asked.toward[i]), int(asked.away[i])):
            with torch.no_grad():
                states = model(
                    input_ids=torch.tensor([[*prompt, token]]), output_hidden_states=True
                ).hidden_states
            ends.append(states[1][0, -1])  # the output of the first block
        assert torch.allclose(found[0, i], ends[0] - ends[1], rtol=1e-4, atol=1e-4)


def test_paired_form_works_on_statements_of_both_classes(speaking: Problem) -> None:
    asked = asked_statements(speaking)
    before = {n: p.detach().clone() for n, p in speaking.model.named_parameters()}
    found = paired_differences(speaking.model, asked, layers=[-1])
    assert found.shape == (1, 24, speaking.model.config.n_embd)
    assert found.norm(dim=-1).min() > 0
    assert all(torch.equal(p, before[n]) for n, p in speaking.model.named_parameters())


def test_planted_truth_is_the_class_contrast() -> None:
    model, asked, a = truth_world(layers=3, width=12, facts=8, seed=0)
    assert asked.labels is not None
    h = activations(model, asked.batch, layers=[0, 1, 2])
    contrast = class_contrast(h, asked.labels)
    assert torch.allclose(cosines(contrast, a.expand(3, -1)), torch.ones(3).double(), atol=1e-12)
