"""A trained adapter as peft writes it, and what is none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.lora import Lora, attach
from loclin.models.pretrained import read_pretrained
from loclin.parameters import ParameterSpace
from loclin.search.candidate import candidates
from loclin.search.spec import SearchSpec
from loclin.training import make_optimiser, minibatches, train
from tests.search.test_spec import examples, options

GROUP = candidates(1, [0.02], seed=0)


@pytest.fixture
def adapter(trained: Problem, tmp_path: Path) -> Path:
    """A trained adapter of the model in tmp_path/base."""
    trained.model.save_pretrained(tmp_path / "base")
    trained.tokenizer.save_pretrained(tmp_path / "base")
    network, *_ = read_pretrained(str(tmp_path / "base"), options())
    adapted = attach(network, Lora(rank=2), seed=0)
    problem = Problem(model=adapted, tokenizer=trained.tokenizer, examples=trained.examples)
    space = ParameterSpace(adapted)
    batches = minibatches(problem.batch("train", "swap"), 8, seed=0)
    train(adapted, space, batches, make_optimiser("adamw", space, 1e-2), 3)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def spec(trained: Problem, adapter: Path) -> SearchSpec:
    base = options(str(adapter.parent / "base"))
    shown = examples(trained, "recovery", 6)
    return SearchSpec(options=base, space="lora", adapter=adapter, examples=shown)


def test_a_trained_adapter_is_searched_around_as_it_is(spec: SearchSpec) -> None:
    state = torch.get_rng_state()
    scorer = spec.build()
    assert torch.equal(torch.get_rng_state(), state)
    factors = scorer.perturbed.tensors
    assert all(".lora_" in n for n in factors)
    assert any(p.any() for n, p in factors.items() if ".lora_B." in n)  # it is no new one
    assert scorer.own != replace(spec, adapter=None).build().own
    assert scorer.do(GROUP)[0].loss == spec.build().do(GROUP)[0].loss
    precise = replace(spec, options=replace(spec.options, dtype="float64")).build()
    assert {p.dtype for p in precise.perturbed.tensors.values()} == {torch.float64}


def test_what_is_no_adapter_of_the_model_is_named(
    spec: SearchSpec, adapter: Path, tmp_path: Path
) -> None:
    def refused(folder: Path, text: str, **changes: Any) -> None:
        with pytest.raises(LoclinError, match=text):
            replace(spec, adapter=folder, **changes).build()

    refused(tmp_path / "nowhere", "expected a trained adapter with adapter_config.json")
    refused(tmp_path / "base", "expected a trained adapter with adapter_config.json")
    refused(adapter, "expected an adapter of this model", options=options("statements-small"))
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    written, kept = config.read_text(), weights.read_bytes()
    config.write_text(written.replace('"LORA"', '"LOHA"'))
    refused(adapter, "expected a LoRA adapter in .*, found LOHA")
    config.write_text("{")
    refused(adapter, "expected an adapter of this model")
    config.write_text(written)
    weights.write_bytes(kept[: len(kept) // 2])
    refused(adapter, "expected an adapter of this model")
    weights.rename(adapter / "adapter_model.bin")
    refused(adapter, "adapter_model.safetensors .* pickles are never loaded")
