import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.adding import added
from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.steering.effect import (
    Change,
    adding,
    anti_steerable,
    differences,
    layer_slopes,
    logit_differences,
    responses,
    slopes,
)
from loclin.steering.prompts import PromptSet
from loclin.tasks.batch import prompts_batch
from loclin.tasks.example import Example
from tests.conftest import FAMILIES
from tests.planted import LinearModel, truth_world
from tests.steering.test_prompts import in_passes_of

PROMPTS = [
    "the cat",
    "do cats purr? yes, they do.",
    "the dog ran after it and sat",
    "no one knows",
    "the mat",
]


def posed(tokenizer: PreTrainedTokenizerBase, prompts: list[str] = PROMPTS) -> PromptSet:
    """Prompts of different lengths, each with a pair of tokens of its own."""
    n = len(prompts)
    pairs = np.random.default_rng(1).permuted(np.tile(np.arange(5, 60), (n, 1)), axis=1)[:, :2]
    toward, away = torch.from_numpy(pairs.T.copy())
    return PromptSet(
        batch=prompts_batch(prompts, tokenizer),
        toward=toward,
        away=away,
        labels=None,
        gold=toward,
        groups=tuple(prompts),
        examples=tuple(Example(prompt=p, answer="a", options=("a", "b")) for p in prompts),
        form="paired",
        positive=None,
    )


def direction(model: PreTrainedModel, seed: int = 0) -> torch.Tensor:
    d = int(model.config.hidden_size)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(d)).float()


def at_the_last(model: nn.Module, vectors: dict[int, torch.Tensor]) -> Change:
    """Vectors that are added at the last token alone."""
    return lambda s: added(model, {n: s * v for n, v in vectors.items()}, only="last")


def dose_response(
    model: nn.Module, prompts: PromptSet, change: Change, strengths: list[float]
) -> np.ndarray:
    """Logit differences under a change, one row for each strength."""
    return differences(model, prompts, [(change, float(s)) for s in strengths])[1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_differences_are_those_of_every_prompt_alone(
    family: str,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = families[family], tokenizers[family]
    prompts, alone = posed(tokenizer), []
    for prompt, toward, away in zip(PROMPTS, prompts.toward, prompts.away, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
        alone.append(float(logits[toward] - logits[away]))
    for rows in (100, 1, 2):
        with in_passes_of(rows, model):
            assert np.allclose(logit_differences(model, prompts), alone, atol=1e-4)


def test_a_vector_at_the_last_block_goes_through_the_final_norm_and_the_readout(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    for family in ("gpt2", "llama"):
        model, prompts = families[family], posed(tokenizers[family])
        core, v = model.base_model, direction(model)
        norm = core.ln_f if family == "gpt2" else core.norm
        h = activations(model, prompts.batch, layers=[1])[0]
        with torch.no_grad():
            twin = torch.stack([model.lm_head(norm(h + a * v)) for a in (-2.0, 0.0, 1.0)])
        wanted = (
            twin.gather(2, prompts.toward.expand(3, -1)[..., None])
            - twin.gather(2, prompts.away.expand(3, -1)[..., None])
        )[..., 0]
        for change in (adding(model, {1: v}), at_the_last(model, {1: v})):
            # nothing attends to the last block
            found = dose_response(model, prompts, change, [-2, 0, 1])
            assert np.allclose(found, wanted.numpy(), atol=1e-4)
        assert np.allclose(found[1], logit_differences(model, prompts), atol=1e-5)


def test_slopes_are_exact_where_the_response_is_linear(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    """Without a final norm, v at the last block moves logit t by W_t·v, whatever the prompt."""
    model = copy.deepcopy(families["gpt2"]).double()
    model.transformer.ln_f = nn.Identity()
    prompts, v = posed(tokenizers["gpt2"]), direction(model)
    weights = model.lm_head.weight.detach()
    by_hand = ((weights[prompts.toward] - weights[prompts.away]) @ v.double()).numpy()
    strengths = [-2, -0.5, 1, 4]
    found = slopes(dose_response(model, prompts, adding(model, {1: v}), strengths), strengths)
    assert np.allclose(found, by_hand, atol=1e-6)
    assert anti_steerable(found) == (by_hand < 0).mean() > 0
    # two vectors at two layers are added together, and the one at the last block adds its own part
    both = slopes(
        dose_response(model, prompts, adding(model, {0: v, 1: v}), [-1e-4, 1e-4]), [-1e-4, 1e-4]
    )
    first = slopes(
        dose_response(model, prompts, adding(model, {0: v}), [-1e-4, 1e-4]), [-1e-4, 1e-4]
    )
    assert np.allclose(both, first + by_hand, atol=1e-4)


def test_last_and_every_differ_below_the_last_block(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, prompts = families["qwen2"], posed(tokenizers["qwen2"])
    v = direction(model)
    every, last = (
        dose_response(model, prompts, change, [1])[0]
        for change in (adding(model, {0: v}), at_the_last(model, {0: v}))
    )
    assert np.abs(every - last).max() > 0.01
    with added(model, {0: v}):
        assert np.array_equal(logit_differences(model, prompts), every)
    with added(model, {0: v}, only="last"):
        assert np.array_equal(logit_differences(model, prompts), last)


def test_slopes_are_those_of_a_fitted_line() -> None:
    rng = np.random.default_rng(2)
    strengths, y = rng.normal(size=7), rng.normal(size=(7, 4))
    assert np.allclose(slopes(y, strengths), np.polyfit(strengths, y, 1)[0])


def test_half_precision_is_compared_in_float32(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    exact, prompts = families["llama"], posed(tokenizers["llama"])
    rough = copy.deepcopy(exact).to(torch.bfloat16)
    assert np.allclose(
        logit_differences(rough, prompts), logit_differences(exact, prompts), atol=1.0
    )


def test_what_cannot_be_compared_is_refused(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, prompts = families["gpt2"], posed(tokenizers["gpt2"])
    v = direction(model)
    with pytest.raises(LoclinError, match="expected finite logits, found 5 of 5"):
        dose_response(model, prompts, adding(model, {1: v * torch.inf}), [1.0])
    for strengths in ([1.0, 1.0], [1.0]):
        with pytest.raises(LoclinError, match="two of them different"):
            slopes(np.zeros((2, 3)), strengths)
    with pytest.raises(LoclinError, match="at least one prompt"):
        anti_steerable(np.zeros(0))


def test_many_changes_at_once_are_each_alone_to_the_last_bit(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    """Vectors at one block and at two, whose passes are resumed, and a step of the weights."""
    model = copy.deepcopy(families["qwen2"])
    prompts, v = posed(tokenizers["qwen2"]), direction(model)
    weight = next(model.parameters())

    @contextmanager
    def stepped(strength: float) -> Iterator[None]:
        before = weight.detach().clone()
        with torch.no_grad():
            weight.add_(strength)
        yield
        with torch.no_grad():
            weight.copy_(before)

    changes = [adding(model, {1: v}), stepped, adding(model, {0: v, 1: -v}), adding(model, {})]
    doses = [(change, strength) for strength in (-2.0, 0.1) for change in changes]
    shares: list[float] = []
    with in_passes_of(2, model):
        before, *found = differences(model, prompts, doses, progress=shares.append)
    for (change, strength), each in zip(doses, found, strict=True):
        with change(strength), in_passes_of(2, model):
            alone = logit_differences(model, prompts)
        assert np.array_equal(each, alone)
        assert np.array_equal(alone, before) == (change is changes[3])
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    with in_passes_of(2, model):
        assert np.array_equal(before, logit_differences(model, prompts))


def quiet(share: float) -> None:
    assert 0 <= share <= 1


def factors(model: LinearModel, a: torch.Tensor) -> list[float]:
    """What a push along a at the output of each block becomes at the last one."""
    along = [float(a @ layer.weight.detach() @ a) for layer in model.layers]  # type: ignore[operator]
    return [float(np.prod([1 + f for f in along[i + 1 :]])) for i in range(len(along))]


def test_slopes_on_a_linear_model_are_those_of_its_matrices() -> None:
    model, prompts, a = truth_world(layers=3, width=8, facts=6, seed=0)
    expected = [2 * f * 0.7 for f in factors(model, a)]  # the logits of yes and no differ by 2a·h
    found = layer_slopes(
        model, prompts, dict.fromkeys(range(3), 0.7 * a), path=None, progress=quiet
    )
    for layer in range(3):
        assert np.allclose(found[layer], expected[layer])
    change = {"v": adding(model, {1: 0.7 * a})}
    response = responses(model, prompts, change, (2.0, -1.0, 0.0, 1.0), progress=quiet)["v"]
    assert response.strengths == (-1.0, 0.0, 1.0, 2.0)
    assert np.allclose(response.slopes, expected[1])
    assert np.allclose(
        response.changes, np.outer(response.strengths, np.full(len(prompts), expected[1]))
    )
    assert np.array_equal(response.differences[1], logit_differences(model, prompts))


def test_several_layers_are_added_to_together() -> None:
    model, prompts, a = truth_world(layers=3, width=8, facts=6, seed=0)
    first, _, last = factors(model, a)
    change = {"v": adding(model, {0: a, 2: -a})}
    found = responses(model, prompts, change, (-1.0, 0.0, 1.0), progress=quiet)["v"]
    assert np.allclose(found.slopes, 2 * (first - last))


def test_slopes_leave_out_strengths_beyond_one() -> None:
    model, prompts, a = truth_world(layers=2, width=8, facts=6, seed=0)
    change = {"v": adding(model, {0: a})}
    near, far = (
        responses(model, prompts, change, strengths, progress=quiet)["v"]
        for strengths in ((-1.0, 0.0, 1.0), (-50.0, -1.0, 0.0, 1.0, 9.0))
    )
    assert np.allclose(near.slopes, far.slopes)
