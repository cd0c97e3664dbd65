"""What is generated with a vector: against whole passes, within the context; what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.steering.generation import generations
from loclin.steering.vector import SteeringVector
from tests.steering.test_vector import random

PROMPTS = ["the cat sat on the", "do cats purr?"]


def stepwise(
    model: PreTrainedModel, ids: list[int], count: int, moved: dict[int, Tensor], start: int
) -> list[int]:
    """Greedy, without a cache, one whole pass for each token, vectors added by plain hooks at
    positions from `start` on.
    """

    def hook(vector: Tensor) -> Any:
        def add(module: Any, inputs: Any, out: Any) -> Any:
            h = (out[0] if isinstance(out, tuple) else out).clone()
            h[:, start:] += vector
            return (h, *out[1:]) if isinstance(out, tuple) else h

        return add

    body = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    hooks = [body[n].register_forward_hook(hook(v)) for n, v in moved.items()]
    given = list(ids)
    try:
        with torch.no_grad():
            for _ in range(count):
                given.append(int(model(input_ids=torch.tensor([given])).logits[0, -1].argmax()))
    finally:
        for h in hooks:
            h.remove()
    return given[len(ids) :]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma"])
@pytest.mark.parametrize("start", [0, 3, 9])
def test_generations_are_those_of_whole_passes_without_a_cache(
    family: str,
    start: int,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = families[family], tokenizers[family]
    vector = random(5, model_type=family)
    made = generations(model, tokenizer, vector, PROMPTS, [0.0, 2.0, -1.5], tokens=8, start=start)
    assert [(g.prompt, g.strength) for g in made] == [
        (p, s) for p in PROMPTS for s in (0.0, 2.0, -1.5)
    ]
    for g in made:
        moved = {n: g.strength * v for n, v in vector.directions.items()}
        new = stepwise(model, tokenizer(g.prompt)["input_ids"], 8, moved, start)
        assert g.text == tokenizer.decode(new, skip_special_tokens=True)
    assert len({g.text for g in made[:3]}) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"stop_strings": ["cat"]},
        {"return_dict_in_generate": True},
        {"num_return_sequences": 3, "do_sample": True},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 4, "repetition_penalty": 2.0, "min_new_tokens": 3},
    ],
)
def test_a_models_own_ways_of_generating_change_nothing(
    settings: dict[str, Any],
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = copy.deepcopy(families["llama"]), tokenizers["llama"]
    vector = random(5, model_type="llama")
    plain = generations(model, tokenizer, vector, PROMPTS, [0.0, 2.0], tokens=6)
    own = model.generation_config
    for name, value in settings.items():
        setattr(own, name, value)
    assert generations(model, tokenizer, vector, PROMPTS, [0.0, 2.0], tokens=6) == plain
    assert model.generation_config is own


def test_strength_0_is_the_plain_model_and_weights_stay(speaking: Problem) -> None:
    model, tokenizer = speaking.model, speaking.tokenizer
    prompt = speaking.examples["test"][speaking.tasks[0]][0].prompt
    before = ParameterSpace(model).read()
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    plain = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False
    )
    vector = random(0, (0, 1), d=48, model="statements-small")
    made = generations(model, tokenizer, vector, [prompt], [0.0, 40.0], tokens=3)
    assert (
        made[0].text
        == tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)
        != made[1].text
    )
    assert torch.equal(ParameterSpace(model).read(), before)


def test_a_planted_direction_makes_the_model_say_its_word(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    """Far along a word's row of the output matrix, after the last block, nothing else is left of
    the final norm's input.
    """
    model, tokenizer = families["llama"], tokenizers["llama"]
    rows = model.get_output_embeddings().weight.detach()
    for word in (70, 71):
        assert int((rows @ rows[word]).argmax()) == word
        vector = SteeringVector(
            **{**vars(random(0, (1,), model_type="llama")), "directions": {1: rows[word]}}
        )
        made = generations(model, tokenizer, vector, PROMPTS, [1e4], tokens=5)
        assert {g.text for g in made} == {tokenizer.decode([word] * 5)}


def test_drawn_tokens_depend_on_seed_and_prompt_alone(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer, vector = families["qwen2"], tokenizers["qwen2"], random(5, model_type="qwen2")
    state = torch.get_rng_state()

    def drawn(prompts: list[str], strengths: list[float], seed: int = 0) -> list[str]:
        made = generations(
            model, tokenizer, vector, prompts, strengths, tokens=8, temperature=0.8, seed=seed
        )
        return [g.text for g in made]

    both = drawn(PROMPTS, [0.0, 1.0])
    assert drawn(PROMPTS[1:], [1.0, 0.0]) == [both[3], both[2]]
    assert drawn(PROMPTS, [0.0, 1.0], seed=1) != both
    assert drawn(PROMPTS[:1], [0.0, 0.0]) == [both[0], both[0]]
    cold = generations(model, tokenizer, vector, PROMPTS, [0.0], tokens=8, temperature=1e-4)
    assert [g.text for g in cold] == [
        g.text for g in generations(model, tokenizer, vector, PROMPTS, [0.0], tokens=8)
    ]
    assert torch.equal(torch.get_rng_state(), state)


def test_new_tokens_stay_within_the_context(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer, vector = families["gpt2"], tokenizers["gpt2"], random(5)
    length = len(tokenizer(PROMPTS[0])["input_ids"])
    long = PROMPTS[0] + " mat" * (60 - length)
    room = 64 - len(tokenizer(long)["input_ids"])
    assert 0 < room < 10
    (made,) = generations(model, tokenizer, vector, [long], [0.0])
    ids = tokenizer(long)["input_ids"]
    assert made.text == tokenizer.decode(
        stepwise(model, ids, room, {}, 0), skip_special_tokens=True
    )
    for tokens, text in ((room + 1, long), (None, long + " mat" * 9)):
        with pytest.raises(
            LoclinError,
            match="expected prompt and new tokens within the model's context of 64, found a prompt "
            "of",
        ):
            generations(model, tokenizer, vector, [PROMPTS[0], text], [0.0], tokens=tokens)
    with pytest.raises(
        LoclinError, match="expected a prompt of at least one token, found '': fill it in"
    ):
        generations(model, tokenizer, vector, [""], [0.0])
    with pytest.raises(LoclinError, match="expected at least one prompt, found none"):
        generations(model, tokenizer, vector, [], [0.0])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite_are_refused(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    temperature: float,
) -> None:
    model, tokenizer, vector = families["llama"], tokenizers["llama"], random(5, model_type="llama")
    with pytest.raises(
        LoclinError, match="expected finite logits, found NaN or infinity: take a smaller strength"
    ):
        generations(model, tokenizer, vector, PROMPTS, [1e38], tokens=2, temperature=temperature)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(LoclinError, match="or check the model's weights"):
        generations(broken, tokenizer, vector, PROMPTS, [0.0], tokens=2, temperature=temperature)


@pytest.mark.parametrize("temperature", [-1.0, 1e-300, 9e-6, float("nan"), float("inf")])
def test_temperatures_that_nothing_can_be_divided_by_are_refused(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    temperature: float,
) -> None:
    model, tokenizer, vector = families["llama"], tokenizers["llama"], random(5, model_type="llama")
    with pytest.raises(LoclinError, match="expected a temperature of 0 or from 1e-05, found"):
        generations(model, tokenizer, vector, PROMPTS, [0.0], tokens=2, temperature=temperature)
