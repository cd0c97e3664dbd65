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
from loclin.steering.changes import Change, adding
from loclin.steering.effect import anti_steerable, differences, logit_differences, slopes
from loclin.steering.prompts import PromptSet
from loclin.tasks.batch import prompts_batch
from loclin.tasks.example import Example
from tests.conftest import FAMILIES

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
    for rows in (None, 1, 2):
        assert np.allclose(logit_differences(model, prompts, rows_at_once=rows), alone, atol=1e-4)


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
        for only in ("every", "last"):  # nothing attends to the last block
            found = dose_response(model, prompts, adding(model, {1: v}, only=only), [-2, 0, 1])
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
        dose_response(model, prompts, adding(model, {0: v}, only=only), [1])[0]
        for only in ("every", "last")
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
    before, *found = differences(model, prompts, doses, rows_at_once=2, progress=shares.append)
    for (change, strength), each in zip(doses, found, strict=True):
        with change(strength):
            alone = logit_differences(model, prompts, rows_at_once=2)
        assert np.array_equal(each, alone)
        assert np.array_equal(alone, before) == (change is changes[3])
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert np.array_equal(before, logit_differences(model, prompts, rows_at_once=2))
