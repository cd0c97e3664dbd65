"""The logit gradient against finite differences of states moved by hand, and against a planted
readout.
"""

import copy

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.adding import added
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.steering.compare import cosines
from loclin.steering.prompts import PromptSet, next_logits, prompt_set
from loclin.steering.readout import answer_gradient, logit_gradient
from tests.activations.odd import hooks
from tests.conftest import FAMILIES
from tests.planted import truth_world
from tests.steering.test_averages import asked_statements
from tests.steering.test_prompts import CLASSES, LETTERS, in_passes_of

Models = dict[str, PreTrainedModel]
Tokenizers = dict[str, PreTrainedTokenizerBase]


def differences(model: PreTrainedModel, asked: PromptSet) -> torch.Tensor:
    with torch.no_grad():
        logits = next_logits(model, asked.batch)
    return (
        logits.gather(1, asked.toward[:, None]) - logits.gather(1, asked.away[:, None])
    ).squeeze(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_finite_differences_at_the_last_token(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    model = copy.deepcopy(families[family]).double()
    asked = prompt_set(LETTERS, tokenizers[family], device="cpu")
    each = logit_gradient(model, asked, layers=[0, -1], per_prompt=True)
    mean = logit_gradient(model, asked, layers=[0, -1])
    # All but GPT-2 take their norms in float32 whatever the weights.
    size, error = (1e-5, 1e-6) if family == "gpt2" else (1e-2, 1e-2)
    assert each.dtype == torch.float64
    assert torch.allclose(each.mean(1), mean, atol=1e-12)
    for place, layer in enumerate((0, 1)):
        for seed in range(3):
            way = torch.randn(
                32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            ends = []
            for step in (size, -size):
                with added(model, {layer: step * way}, only="last"):
                    ends.append(differences(model, asked))
            slopes = (ends[0] - ends[1]) / (2 * size)
            assert torch.allclose(each[place] @ way, slopes, rtol=error, atol=error)


def test_the_answers_gradients_differ_by_the_logit_gradient_and_equal_finite_differences(
    speaking: Problem,
) -> None:
    asked, model = asked_statements(speaking), copy.deepcopy(speaking.model).double()
    toward, away = (
        answer_gradient(model, asked, tokens=t, layers=[0, 1]) for t in (asked.toward, asked.away)
    )
    assert torch.allclose(toward - away, logit_gradient(model, asked, layers=[0, 1]), atol=1e-10)

    def said() -> torch.Tensor:
        with torch.no_grad():
            return (
                next_logits(model, asked.batch)
                .log_softmax(-1)
                .gather(1, asked.toward[:, None])
                .mean()
            )

    way = torch.randn(
        toward.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    ends = []
    for step in (1e-5, -1e-5):
        with added(model, {0: step * way}, only="last"):
            ends.append(said())
    assert float(toward[0] @ way) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_passes_frozen_weights_and_the_order_of_layers_change_nothing(
    speaking: Problem,
) -> None:
    asked = asked_statements(speaking)
    frozen = copy.deepcopy(speaking.model)
    count = hooks(frozen)  # not 0: transformers leaves its own, once hidden states were asked for
    before = logit_gradient(frozen, asked, layers=[0, 1])
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    state = {n: p.clone() for n, p in frozen.named_parameters()}
    assert torch.allclose(logit_gradient(frozen, asked, layers=[0, 1]), before, atol=1e-6)
    with in_passes_of(1, frozen):
        alone = logit_gradient(frozen, asked, layers=[-1, 0], per_prompt=True)
    whole = logit_gradient(frozen, asked, layers=[-1, 0], per_prompt=True)
    assert torch.allclose(alone, whole, atol=1e-5)
    assert torch.allclose(whole[1].mean(0), before[0], atol=1e-6)
    with torch.no_grad():  # a caller without gradients gets them all the same
        assert torch.allclose(logit_gradient(frozen, asked, layers=[0]), before[:1], atol=1e-6)
    assert all(torch.equal(p, state[n]) and p.grad is None for n, p in frozen.named_parameters())
    assert hooks(frozen) == count


def test_planted_readout_is_found_with_its_length() -> None:
    model, asked, a = truth_world(layers=3, width=12, facts=8, seed=1)
    found = logit_gradient(model, asked, layers=[0, 1, 2])
    expected = 2 * a
    for layer in (2, 1, 0):
        assert torch.allclose(found[layer], expected, atol=1e-12)
        expected = expected + model.layers[layer].weight.detach().T @ expected
    assert torch.allclose(cosines(found, a.expand(3, -1)), torch.ones(3).double(), atol=1e-12)


def test_what_has_no_direction_is_refused_by_layer(
    families: Models, tokenizers: Tokenizers
) -> None:
    asked = prompt_set(CLASSES, tokenizers["gpt2"], device="cpu")
    same = copy.deepcopy(families["gpt2"])
    with torch.no_grad():
        same.lm_head.weight[asked.away[0]] = same.lm_head.weight[asked.toward[0]]
    with pytest.raises(LoclinError, match="at block 1, found zeros"):
        logit_gradient(same, asked, layers=[-1])
    broken = copy.deepcopy(families["gpt2"])
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_proj.bias.fill_(torch.inf)
    with pytest.raises(LoclinError, match="at block 0, found NaN or infinity"):
        logit_gradient(broken, asked, layers=[0])
    with pytest.raises(LoclinError, match="expected layers from -2 to 1, found 2"):
        logit_gradient(families["gpt2"], asked, layers=[2])
