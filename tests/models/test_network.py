"""Models as transformers reads them: nothing random or left out, and all of them causal."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLNetConfig,
    XLNetLMHeadModel,
)

from loclin.curvature import CurvatureOperator, finite_difference_product
from loclin.errors import LoclinError
from loclin.models import twice_differentiable
from loclin.models.lora import Lora, attach
from loclin.models.network import of_today
from loclin.models.pretrained import read_pretrained
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.seeds import seeded
from loclin.tasks.batch import Batch, answer_loss, collate, exact_match
from loclin.tasks.example import Example
from loclin.tasks.samples import self_examples
from tests.models.runs import SHAPE, experts

Read = tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def llama(vocabulary: int, **more: object) -> PreTrainedModel:
    with seeded(0):
        return LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": vocabulary, **more}))


def kept(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed(folder: Path, change: Change) -> Path:
    path = folder / "model.safetensors"
    held = {n: t.contiguous() for n, t in change(load_file(path)).items()}
    save_file(held, path, metadata={"format": "pt"})
    return folder


def read(folder: Path, dtype: str = "float32") -> Read:
    return read_pretrained(str(folder), LoadOptions(model="other", device="cpu", dtype=dtype))  # type: ignore[arg-type]


@pytest.fixture
def tokenizer(tokenizers: dict[str, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return tokenizers["gpt2"]


def nested(held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        n.replace("model.layers.0.", "model._fsdp_wrapped_module.layers.0._orig_mod."): t
        for n, t in held.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda held: {"_orig_mod." + n: t for n, t in held.items()},
        lambda held: {"module." + n: t for n, t in held.items()},
        lambda held: {"_orig_mod.module." + n: t for n, t in held.items()},
        lambda held: {"_fsdp_wrapped_module." + n: t for n, t in held.items()},
        nested,
    ],
)
def test_names_of_wrappers_are_no_part_of_a_name(
    change: Change, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = llama(len(tokenizer))
    plain = kept(tmp_path / "plain", model, tokenizer)
    found, _, notes = read(changed(kept(tmp_path / "wrapped", model, tokenizer), change))
    assert torch.equal(ParameterSpace(found).read(), ParameterSpace(model).read())
    assert notes == ()
    found.save_pretrained(tmp_path / "again")
    names = [set(load_file(folder / "model.safetensors")) for folder in (tmp_path / "again", plain)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: {n: t for n, t in held.items() if n != "lm_head.weight"},
         r"found no lm_head\.weight: save the model again .*, as they would be random"),
        (lambda held: {n.replace("layers.1", "layers.7"): t for n, t in held.items()},
         r"found no model\.layers\.1\..* and 8 more, and model\.layers\.7\..* that is no part"),
        (lambda held: held | {"lm_head.weight": torch.ones(7, 32)}, r"lm_head\.weight"),
        (lambda held: held | {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)},
         "expected weights that are not quantised in .*, found .*weight_scale_inv beside them"),
    ],
)  # fmt: skip
def test_nothing_random_and_nothing_without_its_scale_is_measured(
    change: Change, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = changed(kept(tmp_path, llama(len(tokenizer)), tokenizer), change)
    with pytest.raises(LoclinError, match=message) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_tied_heads_may_be_left_out_and_what_is_beside_the_model_is_noted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = kept(tmp_path, llama(len(tokenizer), tie_word_embeddings=True), tokenizer)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    changed(folder, lambda held: held | {"value_head.weight": torch.ones(1, 32)})
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    *_, notes = read(folder)
    assert notes == (
        f"{folder.name} holds model.safetensors beside shards of another save: the single file is "
        "read, as transformers does",
        "1 tensors in the files are no part of the model and are left out: value_head.weight",
    )


def test_float8_weights_are_dequantised_with_their_scales(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = llama(len(tokenizer))
    folder = kept(tmp_path, model, tokenizer)

    def quantised(held: dict[str, Tensor]) -> dict[str, Tensor]:
        small = {n: t for n, t in held.items() if n.endswith("proj.weight")}
        scales = {n: t.abs().max() / 448 for n, t in small.items()}
        low = {n: (t / scales[n]).to(torch.float8_e4m3fn) for n, t in small.items()}
        return held | low | {f"{n}_scale_inv": s.view(1, 1) for n, s in scales.items()}

    changed(folder, quantised)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    (folder / "config.json").write_text(json.dumps(settings))
    found, _, notes = read(folder)
    assert notes == ("weights quantised by fp8 are dequantised",)
    for name, p in model.named_parameters():
        off = (found.get_parameter(name) - p).abs().max() / p.abs().max()
        assert off < (0.04 if name.endswith("proj.weight") else 1e-7)


def encoders() -> dict[str, Callable[[int], PreTrainedModel]]:
    small = {"num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
    bart = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
    bart |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    xlnet = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
    return {
        "BertLMHeadModel": lambda v: BertForMaskedLM(
            BertConfig(vocab_size=v, num_hidden_layers=2, **small)
        ),
        "XLNetLMHeadModel": lambda v: XLNetLMHeadModel(XLNetConfig(vocab_size=v, **xlnet)),
        "no lm_head": lambda v: BartForConditionalGeneration(BartConfig(vocab_size=v, **bart)),
    }


@pytest.mark.parametrize("name", encoders())
def test_models_that_are_not_causal_are_refused_in_one_line(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with seeded(0):
        model = encoders()[name](len(tokenizer))
    folder = kept(tmp_path, model, tokenizer)
    with pytest.raises(LoclinError, match=f"causal language model.*{name}|found {name}") as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_a_padding_token_that_is_read_has_a_gradient_among_several_end_tokens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    first = tokenizer("the cat")["input_ids"][0]
    made = llama(len(tokenizer), pad_token_id=first, eos_token_id=[first, 3])
    model, *_ = read(kept(tmp_path, made, tokenizer))
    batch = collate([Example(prompt="the cat", answer=" sat")], tokenizer)
    answer_loss(model, batch)[0].backward()
    assert first in batch.input_ids
    assert model.get_input_embeddings().weight.grad[first].norm() > 0


@pytest.mark.parametrize("pattern", ["*experts*", "*"])
def test_experts_have_second_derivatives_to_the_digits_of_float64(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, pattern: str
) -> None:
    """Which experts serve a token is piecewise constant: at a small step no tie is crossed."""
    folder = kept(tmp_path, experts(len(tokenizer)), tokenizer)
    batch, products = collate([Example(prompt="the cat", answer=" sat")], tokenizer), []
    for dtype in ("float64", "float32"):
        model, *_ = read(folder, dtype)
        space, before = ParameterSpace(model, pattern), model.get_experts_implementation()
        v = space.noise(seed=0).double()
        with twice_differentiable(model):

            def loss(b: Batch, m: PreTrainedModel = model) -> tuple[Tensor, int]:
                return answer_loss(m, b)

            products.append((CurvatureOperator(space, loss, [batch]) @ v.to(model.dtype)).double())
            if dtype == "float64":
                products.append(finite_difference_product(space, loss, [batch], v))
        assert model.get_experts_implementation() == before
    exact, differences, rounded = products
    assert float((differences - exact).norm() / exact.norm()) < 1e-6
    assert float((rounded - exact).norm() / exact.norm()) < 1e-3


def mamba(vocabulary: int) -> PreTrainedModel:
    with seeded(0):
        model = MambaForCausalLM(
            MambaConfig(vocab_size=vocabulary, hidden_size=32, state_size=8, num_hidden_layers=2)
        )
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p.normal_(std=0.2)
        return model


def test_a_model_whose_cache_has_another_name_speaks_and_is_adapted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, *_ = read(kept(tmp_path, mamba(len(tokenizer)), tokenizer))
    data = self_examples(model, tokenizer, 4, seed=0, prompt_tokens=4, answer_tokens=2)
    assert exact_match(model, collate(data.examples["self"], tokenizer)).all()
    names = ParameterSpace(attach(model, Lora(rank=2), seed=0)).names
    assert any("in_proj" in n for n in names)
    assert not any("out_proj" in n or "conv1d" in n for n in names)


@pytest.mark.parametrize("family", ["openai-gpt", "bart"])
def test_older_families_keep_the_logits_that_are_wanted(family: str) -> None:
    shape = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 2}
    with seeded(0):
        model = (
            OpenAIGPTLMHeadModel(OpenAIGPTConfig(**shape))
            if family == "openai-gpt"
            else BartForCausalLM(BartConfig(vocab_size=40, d_model=32, decoder_layers=1))
        ).eval()
    rows = torch.arange(10).view(2, 5)
    with torch.no_grad():
        whole = model(input_ids=rows).logits
        of_today(model)
        mask = torch.ones_like(rows)
        for wanted, places in (
            (0, slice(None)),
            (2, slice(-2, None)),
            (torch.tensor([1, 3]), [1, 3]),
        ):
            some = model(
                input_ids=rows, attention_mask=mask, use_cache=False, logits_to_keep=wanted
            ).logits
            assert torch.allclose(some, whole[:, places])
