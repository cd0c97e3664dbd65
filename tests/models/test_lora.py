import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from loclin.errors import LoclinError
from loclin.models.lora import Factors, Lora, attach
from loclin.parameters import ParameterSpace
from tests.conftest import FAMILIES, random_model

TOKENS = torch.arange(3, 15).view(2, 6)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "pissa"])
def test_an_adapter_starts_where_the_model_is_and_holds_factors_alone(
    family: str, init: str
) -> None:
    model = random_model(family, 320)
    before = logits(model)
    adapted = attach(model, Lora(rank=2, init=init), seed=0)  # type: ignore[arg-type]
    assert torch.allclose(logits(adapted), before, atol=2e-4 * float(before.abs().max()))
    space = ParameterSpace(adapted)
    factors = Factors.of(adapted, space)
    assert factors is not None
    assert {s for *_, s in factors.pairs} == {2.0}  # alpha is twice the rank by default
    assert len(factors.pairs) * 2 == len(space.names)
    assert factors.dimension == space.dimension - 4 * len(factors.pairs)


def test_the_factors_are_drawn_by_the_seed_alone() -> None:
    drawn = []
    for seed, state in ((0, 1), (0, 2), (1, 1)):
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(state)
            drawn.append(
                ParameterSpace(attach(random_model("gpt2", 320), Lora(rank=2), seed=seed)).read()
            )
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    attach(random_model("llama", 320), Lora(rank=2, dropout=0.5), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_choose_and_a_missing_one_is_refused_with_those_that_exist() -> None:
    adapted = attach(random_model("qwen2", 320), Lora(rank=1, targets="q_proj, v_proj"), seed=0)
    named = {n.rpartition(".")[2] for n, m in adapted.named_modules() if isinstance(m, LoraLayer)}
    assert named == {"q_proj", "v_proj"}
    with pytest.raises(
        LoclinError,
        match=r"LoRA targets among down_proj, gate_proj, .*, found 'query': change --targets",
    ):
        attach(random_model("qwen2", 320), Lora(targets="q_proj,query"), seed=0)
    with pytest.raises(LoclinError, match="rank of at least 1, found 0"):
        attach(random_model("qwen2", 320), Lora(rank=0), seed=0)


def test_a_space_of_other_tensors_has_no_factors(families: dict[str, PreTrainedModel]) -> None:
    model = families["gpt2"]
    assert Factors.of(model, ParameterSpace(model)) is None
    adapted = attach(random_model("gpt2", 320), Lora(rank=1), seed=0)
    assert Factors.of(adapted, ParameterSpace(adapted, "*lora_A*")) is None
