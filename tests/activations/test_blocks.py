import copy

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from loclin.activations.blocks import blocks, chosen_layers, width
from loclin.errors import LoclinError
from loclin.models.lora import Lora, attach
from tests.activations.odd import Cell, Odd
from tests.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_known_families(families: dict[str, PreTrainedModel], family: str) -> None:
    model = families[family]
    usual = model.transformer.h if family == "gpt2" else model.model.layers
    assert blocks(model) is usual
    assert blocks(model, "transformer.h" if family == "gpt2" else "model.layers") is usual
    assert width(model) == 32


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapters_are_looked_through(families: dict[str, PreTrainedModel], family: str) -> None:
    core = copy.deepcopy(families[family])
    usual = core.transformer.h if family == "gpt2" else core.model.layers
    model = attach(core, Lora(rank=2), seed=0)
    assert blocks(model) is usual
    assert blocks(model, "transformer.h" if family == "gpt2" else "model.layers") is usual
    assert width(model) == 32


def test_the_one_list_of_the_right_length_is_taken() -> None:
    model = Odd(count=3, others=2)
    assert blocks(model) is model.cells
    assert blocks(model, "adapters") is model.adapters
    assert width(model) == 6


def test_lists_that_could_be_meant_are_named() -> None:
    with pytest.raises(
        LoclinError,
        match=r"one list of 3 blocks, found 2: .*--layers-path.*cells \(3\), adapters \(3\)",
    ):
        blocks(Odd(count=3, others=3))
    with pytest.raises(
        LoclinError,
        match=r"list of blocks at 'cell', found none: use one of cells \(3\), adapters \(2\)",
    ):
        blocks(Odd(count=3, others=2), "cell")
    short = Odd(count=3)
    short.config.num_hidden_layers = 4
    with pytest.raises(LoclinError, match=r"one list of 4 blocks, found 0: .*cells \(3\)"):
        blocks(short)
    with pytest.raises(LoclinError, match=r"found 0: .*has no ModuleList"):
        blocks(nn.Linear(2, 2))
    single = Odd(count=3)
    single.head = Cell(6)
    with pytest.raises(LoclinError, match="at 'head', found none"):
        blocks(single, "head")


def test_layers_count_from_either_end() -> None:
    assert chosen_layers(4, None) == (0, 1, 2, 3)
    assert chosen_layers(4, [-1, 0, -3]) == (3, 0, 1)
    with pytest.raises(LoclinError, match="layers from -4 to 3, found 4: the model has 4 blocks"):
        chosen_layers(4, [0, 4])
    with pytest.raises(LoclinError, match="layers from -4 to 3, found -5"):
        chosen_layers(4, [-5])
    with pytest.raises(LoclinError, match="every layer once"):
        chosen_layers(4, [3, -1])
    with pytest.raises(LoclinError, match="at least one layer"):
        chosen_layers(4, [])


def test_a_width_that_is_not_named_is_asked_for() -> None:
    bare = nn.Linear(2, 2)
    with pytest.raises(LoclinError, match="configuration with a hidden_size, found None"):
        width(bare)
    bare.config = PretrainedConfig()
    with pytest.raises(LoclinError, match="hidden_size"):
        width(bare)
    bare.config.hidden_size = torch.Size([2]).numel()
    assert width(bare) == 2
