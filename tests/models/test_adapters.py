"""What an adapter does to the weights, against peft's own merge of every kind that it merges."""

import copy
from pathlib import Path

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from loclin.errors import LoclinError
from loclin.models.adapters import merged_change
from loclin.models.direction import read_direction
from loclin.seeds import seeded
from tests.models.runs import SHAPE, experts
from tests.models.test_direction import change, noise

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        "`is_gradient_checkpointing` is deprecated",  # peft asks for the old name
        "Setting `save_embedding_layers`",
        r"Adapter 'default'. \d+ LoRA tensor.s. have invalid shape",  # of biases
        "Model has `tie_word_embeddings",  # of targets, when they are made
    )
]
PROJECTIONS = ["q_proj", "v_proj"]
KINDS = {
    "patterns": {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {r"layers\.0\..*q_proj": 3}},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "biases": {"lora_bias": True},
    "embeddings": {"target_modules": [*PROJECTIONS, "embed_tokens"]},
    "tokens": {"trainable_token_indices": [3, 4]},
    "modules": {"modules_to_save": ["lm_head"]},
    "experts": {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]},
    "IA3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": LoHaConfig(target_modules=PROJECTIONS),
    "OFT": OFTConfig(target_modules=PROJECTIONS),
}


@pytest.mark.parametrize("wrapper", ["", "_orig_mod."])
@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_that_peft_merges_moves_what_it_merges(
    tmp_path: Path, kind: str, wrapper: str
) -> None:
    base = experts() if kind == "experts" else biased()
    config = KINDS[kind]
    if isinstance(config, dict):
        config = LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": PROJECTIONS} | config)
    with seeded(1):
        made = get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            if p.requires_grad:
                p.add_(0.05 * noise(tuple(p.shape), i))
    made.save_pretrained(tmp_path / "adapter" / "named")
    merged = PeftModel.from_pretrained(
        copy.deepcopy(base), tmp_path / "adapter" / "named"
    ).merge_and_unload()
    file = tmp_path / "adapter" / "named" / "adapter_model.safetensors"
    held = load_file(file)
    save_file({wrapper + n: t for n, t in held.items()}, file, metadata={"format": "pt"})
    direction = read_direction(str(tmp_path / "adapter"), base)  # one folder down
    expected = change(base, merged)
    assert direction.tensors.keys() == expected.keys()
    for name, moved in direction.tensors.items():
        assert torch.allclose(moved, expected[name], rtol=0, atol=1e-6)


def biased(**more: bool) -> PreTrainedModel:
    with seeded(0):
        return LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, **more))


def test_a_small_change_is_not_rounded_away_on_a_large_weight(tmp_path: Path) -> None:
    base = biased()
    with torch.no_grad():
        base.model.layers[0].self_attn.q_proj.weight.mul_(1e4)
    made = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, target_modules=["0.self_attn.q_proj"])
    )
    with torch.no_grad():
        for i, (name, p) in enumerate(made.named_parameters()):
            if "lora_B" in name:
                p.copy_(1e-3 * noise(tuple(p.shape), i))
    made.save_pretrained(tmp_path)
    (layer,) = (m for m in made.modules() if hasattr(m, "get_delta_weight"))
    delta = layer.get_delta_weight("default").detach()
    (moved,) = merged_change(tmp_path, base).values()
    assert float((moved - delta).abs().max()) < 1e-6 * float(delta.abs().max())


def test_an_adapter_of_two_tied_weights_is_refused_unless_it_ties_them(tmp_path: Path) -> None:
    base = biased(tie_word_embeddings=True)
    for ties in (False, True):
        config = LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=ties)
        made = get_peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for p in made.parameters():
                if p.requires_grad:
                    p.add_(0.1)
        made.save_pretrained(tmp_path / str(ties))
    with pytest.raises(
        LoclinError, match=r"found model\.embed_tokens in False, which the model ties"
    ):
        merged_change(tmp_path / "False", base)
    assert set(merged_change(tmp_path / "True", base)) == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
