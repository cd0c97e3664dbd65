"""Candidates in one pass against the same candidates placed one after the other, in float64."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Perturbed, candidates
from loclin.search.noise import Noise
from loclin.search.stacked import stacked, why_not
from loclin.tasks.batch import Batch, collate
from loclin.tasks.example import Example
from tests.conftest import FAMILIES

Families = dict[str, PreTrainedModel]
Tokenizers = dict[str, PreTrainedTokenizerBase]
RAGGED = [
    ("the cat", " sat on the mat"),
    ("do cats purr? yes, they do.", " (A)"),
    ("a", " dog ran"),
]
NOISES = ["gaussian", "lowrank:2", "tied"]


def ragged(tokenizer: PreTrainedTokenizerBase) -> Batch:
    return collate([Example(prompt=p, answer=a) for p, a in RAGGED], tokenizer)


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    found = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).logits
    return torch.where(batch.attention_mask[..., None] > 0, found, 0.0)


@torch.no_grad()
def compare(
    model: nn.Module, pattern: str, noise: Noise, batch: Batch, *, close: float = 1e-9
) -> None:
    """Logits of four candidates, two of them mirror images, in one pass and one at a time."""
    space = ParameterSpace(model, pattern)
    group = [*candidates(2, [0.05], seed=0, antithetic=True), *candidates(2, [0.2], seed=1)]
    perturbed, base, apart = Perturbed(space, noise), logits_of(model, batch), []
    with perturbed:
        for c in group:
            perturbed.place(c)
            apart.append(logits_of(model, batch))
    assert why_not(model, space, noise) is None
    with stacked(model, space, noise, group):
        together = logits_of(model, batch.tiled(len(group)))
    perturbed.verify()
    torch.testing.assert_close(together, torch.cat(apart), rtol=close, atol=close)
    assert all(float((found - base).abs().max()) > 1e-3 for found in apart)
    assert torch.equal(logits_of(model, batch), base)  # nothing is left behind


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_candidates_are_those_placed_one_at_a_time(
    family: str, noise: str, families: Families, tokenizers: Tokenizers
) -> None:
    compare(
        copy.deepcopy(families[family]).double(),
        "*",
        Noise.parse(noise),
        ragged(tokenizers[family]),
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_adapters_are_those_placed_one_at_a_time(
    family: str, noise: str, families: Families, tokenizers: Tokenizers
) -> None:
    model = attach(copy.deepcopy(families[family]), Lora(rank=3), seed=0).double()
    compare(model, "*", Noise.parse(noise), ragged(tokenizers[family]))


@pytest.mark.parametrize("noise", ["gaussian", "lowrank:2"])
@pytest.mark.parametrize(
    "pattern", ["*bias", "*c_attn.weight", "*wpe*", "*wte*", "*ln_1.weight,*ln_f.bias"]
)
def test_parts_of_a_model_are_stacked_alone(
    pattern: str, noise: str, families: Families, tokenizers: Tokenizers
) -> None:
    compare(
        copy.deepcopy(families["gpt2"]).double(),
        pattern,
        Noise.parse(noise),
        ragged(tokenizers["gpt2"]),
    )


@pytest.mark.parametrize("family", ["gpt2", "gemma"])
def test_half_precision_is_rounded_as_if_placed(
    family: str, families: Families, tokenizers: Tokenizers
) -> None:
    """The same bfloat16 weights: the difference is that of one product's rounding, far below a step
    of σ.
    """
    model = copy.deepcopy(families[family]).bfloat16()
    space, batch = ParameterSpace(model), ragged(tokenizers[family])
    group = candidates(2, [0.05], seed=0)
    perturbed, apart = Perturbed(space, Noise()), []
    with torch.no_grad(), perturbed:
        for c in group:
            perturbed.place(c)
            apart.append(logits_of(model, batch).float())
    with torch.no_grad(), stacked(model, space, Noise(), group):
        together = logits_of(model, batch.tiled(2)).float()
    difference = (together - torch.cat(apart)).square().mean().sqrt()
    assert float(difference) < 0.1 * float((apart[0] - apart[1]).square().mean().sqrt())
    told = why_not(model, space, Noise.parse("lowrank:2"))
    assert told is not None
    assert f"{space.names[0]} is in half precision" in told


def test_one_candidate_is_a_stack_too(families: Families, tokenizers: Tokenizers) -> None:
    model, batch = copy.deepcopy(families["gpt2"]).double(), ragged(tokenizers["gpt2"])
    space, noise = ParameterSpace(model), Noise.parse("lowrank:1")
    (only,) = candidates(1, [0.1], seed=0)
    single = batch.rows(slice(0, 1))  # a single row: positions then look like any other input
    for rows in (batch, single):
        with torch.no_grad(), stacked(model, space, noise, [only]):
            found = logits_of(model, rows)
        with torch.no_grad(), Perturbed(space, noise) as perturbed:
            perturbed.place(only)
            torch.testing.assert_close(found, logits_of(model, rows), rtol=1e-9, atol=1e-9)


def test_nothing_is_left_behind_when_a_pass_fails(
    families: Families, tokenizers: Tokenizers
) -> None:
    model, batch = families["llama"], ragged(tokenizers["llama"])
    space, group = ParameterSpace(model), candidates(2, [0.1], seed=0)
    with torch.no_grad():
        before = logits_of(model, batch)
    with (
        pytest.raises(LoclinError, match="expected a multiple of 2 rows, found 3: repeat all rows"),
        torch.no_grad(),
        stacked(model, space, Noise(), group),
    ):
        logits_of(model, batch)
    assert not [m for m in model.modules() if "forward" in vars(m)]
    assert not model._forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(logits_of(model, batch), before)


class Whole(nn.Module):
    """Reads its weight over all rows at once."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.ones(6)), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "product":
            return x @ self.weight
        return x * self.weight / self.weight.norm() if self.how == "norm" else x * self.weight


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(6, 6), inner

    def forward(self, input_ids: Tensor) -> Any:
        return self.inner(self.first(input_ids))


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        (Whole("product"), "inner.weight is in a Whole, which takes one weight for all rows"),
        (Whole("norm"), "inner.weight is in a Whole"),
        (nn.LSTM(6, 6), "inner.weight_ih_l0 is in a LSTM"),
        (nn.Embedding(6, 6, max_norm=1.0), "inner.weight is in a Embedding"),
        (nn.LayerNorm((2, 6)), "inner.weight is in a LayerNorm"),
    ],
)
def test_the_first_tensor_that_cannot_be_stacked_is_named(inner: nn.Module, told: str) -> None:
    model = Around(inner)
    space, group = ParameterSpace(model), candidates(2, [0.1], seed=0)
    found = why_not(model, space, Noise())
    assert found is not None
    assert found.startswith(told)
    with (
        pytest.raises(
            LoclinError, match=r"expected tensors that can be stacked, found that inner\.weight"
        ),
        stacked(model, space, Noise(), group),
    ):
        pass
    assert why_not(model, ParameterSpace(model, "first.*"), Noise()) is None


def test_a_weight_that_meets_rows_elementwise_is_stacked_whatever_its_module() -> None:
    model = Around(Whole("scale"))
    space, group, x = ParameterSpace(model), candidates(3, [0.1], seed=0), torch.randn(2, 4, 6)
    with torch.no_grad(), stacked(model, space, Noise(), group):
        together = model(x.repeat(3, 1, 1))
    with torch.no_grad(), Perturbed(space, Noise()) as perturbed:
        for c, found in zip(group, together.split(2), strict=True):
            perturbed.place(c)
            torch.testing.assert_close(found, model(x))


class Folding(nn.Module):
    """Gives its layer all rows as one: a candidate's rows cannot be told apart there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, input_ids: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(input_ids.reshape(-1, 6)))


def test_rows_that_a_module_regroups_are_refused() -> None:
    model = Folding()
    with (
        pytest.raises(
            LoclinError,
            match="expected 4 rows in every module, found 12: score one candidate at a time",
        ),
        torch.no_grad(),
        stacked(model, ParameterSpace(model), Noise(), candidates(2, [0.1], seed=0)),
    ):
        model(torch.ones(4, 3, 6))


def test_a_forward_of_another_hand_and_no_candidates_are_refused() -> None:
    model = Folding()
    space = ParameterSpace(model)
    with (
        pytest.raises(LoclinError, match="expected at least one candidate to stack"),
        stacked(model, space, Noise(), []),
    ):
        pass
    vars(model.layer)["forward"] = lambda x: x
    told = why_not(model, space, Noise())
    assert told is not None
    assert told.startswith("layer.weight is in a Linear")
    del vars(model.layer)["forward"]
    assert why_not(model, space, Noise()) is None
    other = why_not(nn.Linear(2, 2), space, Noise())
    assert other == "layer.weight is in no module of the model"
