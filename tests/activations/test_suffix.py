"""Passes begun at a block whose output is known, held against whole ones to the last bit, on
families that hand on hidden states in their own ways.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from loclin.activations.adding import added
from loclin.activations.blocks import blocks
from loclin.activations.suffix import remembered, resumable, resumed
from loclin.models.lora import Lora, attach
from tests.activations.odd import Odd, hooks
from tests.conftest import FAMILIES

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 40}
WIDE = SHAPE | {"intermediate_size": 24, "max_position_embeddings": 32, "pad_token_id": 0}
KV = WIDE | {"num_key_value_heads": 1, "head_dim": 8}
#: Sliding and full masks by turns, rotary and learned and ALiBi positions, blocks that return
#: tensors or tuples, and no attention at all.
OTHERS: dict[str, PretrainedConfig] = {
    "mistral": MistralConfig(**KV, sliding_window=3),
    "gemma3": Gemma3TextConfig(
        **KV, sliding_window=3, layer_types=["sliding_attention", *["full_attention"] * 2]
    ),
    "gpt_neox": GPTNeoXConfig(**WIDE),
    "phi": PhiConfig(**WIDE),
    "opt": OPTConfig(**WIDE, ffn_dim=24, word_embed_proj_dim=16),
    "bloom": BloomConfig(**SHAPE, pad_token_id=0),
    "mamba": MambaConfig(**SHAPE, state_size=4, pad_token_id=0),
}


def random_model(config: PretrainedConfig, attention: str | None = None) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        options = {"attn_implementation": attention} if attention else {}
        return AutoModelForCausalLM.from_config(config, **options).eval()


def compared(model: nn.Module, number: int, path: str | None = None) -> tuple[Tensor, Tensor]:
    """Logits of a whole pass with a vector added, and of a resumed one; ragged rows."""
    ids = torch.randint(1, 11, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:], mask[2, 7:] = 0, 0
    layers = blocks(model, path)
    runs: list[int] = []

    def logits(strength: float) -> Tensor:
        vector = strength * torch.linspace(-1, 1, model.config.hidden_size)
        with torch.no_grad(), added(model, {number: vector}, path=path):
            found: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return found

    with remembered(layers, [number]) as known:
        logits(0.0)
    whole = logits(2.0)
    counter = layers[number + 1 if number + 1 < len(layers) else number]
    with counter.register_forward_hook(lambda *_: runs.append(1)), resumed(layers, number, known):
        logits(-1.0)  # what it was resumed for before leaves no trace
        part = logits(2.0)
    assert len(runs) == 2
    assert torch.equal(logits(2.0), whole)
    return whole, part


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_a_resumed_pass_is_the_whole_one_to_the_last_bit(
    name: str, families: dict[str, PreTrainedModel]
) -> None:
    model = families[name] if name in families else random_model(OTHERS[name])
    count = hooks(model)
    assert resumable(model)
    for number in range(len(blocks(model))):
        whole, part = compared(model, number)
        assert torch.equal(whole, part)
        assert not torch.equal(*compared_unlike(model, number))
    assert hooks(model) == count
    assert all("forward" not in vars(block) for block in blocks(model))


def compared_unlike(model: nn.Module, number: int) -> tuple[Tensor, Tensor]:
    """What is known of other rows gives other logits: the comparison can fail."""
    ids = torch.randint(1, 11, (2, 5), generator=torch.Generator().manual_seed(2))
    layers = blocks(model)
    with torch.no_grad(), remembered(layers, [number]) as known:
        whole = model(input_ids=ids, use_cache=False).logits
        model(input_ids=ids.flip(1), use_cache=False)
    with torch.no_grad(), resumed(layers, number, known):
        return whole, model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_with_either_attention_and_with_an_adapter(attention: str) -> None:
    model = attach(random_model(OTHERS["mistral"], attention), Lora(rank=2), seed=0)
    assert resumable(model)
    assert torch.equal(*compared(model, 1))


def test_blocks_that_return_tuples_and_a_wrapped_forward() -> None:
    model = Odd(count=3)
    assert resumable(model, "cells")
    own = model.cells[0].forward
    model.cells[0].forward = lambda h: own(h)  # as accelerate wraps it
    wrapped = model.cells[0].forward
    assert torch.equal(*compared(model, 1, "cells"))
    assert vars(model.cells[0])["forward"] is wrapped


def test_blocks_that_do_more_than_hand_on_states_take_whole_passes(
    families: dict[str, PreTrainedModel],
) -> None:
    """One that writes into what it was handed, and one that counts."""
    model = copy.deepcopy(families["llama"])
    second = blocks(model)[1]
    second.register_forward_pre_hook(lambda _m, inputs: (inputs[0].add_(1.0), *inputs[1:]))
    assert not resumable(model)
    counting, calls = copy.deepcopy(families["llama"]), []

    def later(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        calls.append(1)
        return output + len(calls)

    blocks(counting)[0].self_attn.o_proj.register_forward_hook(later)
    blocks(counting)[1].self_attn.o_proj.register_forward_hook(later)
    assert not resumable(counting)
