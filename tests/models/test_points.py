import pytest

from loclin.errors import LoclinError
from loclin.models.points import Adapted, chosen, pairs

NAMES = [
    "h.0.lora_A.weight",
    "h.0.lora_B.weight",
    "wte.lora_embedding_A",
    "wte.lora_embedding_B",
    "ln.weight",
    "h.0.lora_B.bias",
]


def test_the_factors_of_a_pair_go_together() -> None:
    assert chosen(NAMES, "h.0.lora_B*") == [
        "h.0.lora_A.weight",
        "h.0.lora_B.weight",
        "h.0.lora_B.bias",
    ]
    assert chosen(NAMES, "ln*, *embedding_A") == [
        "wte.lora_embedding_A",
        "wte.lora_embedding_B",
        "ln.weight",
    ]


def test_pairs_are_found_whatever_their_order() -> None:
    adapted = pairs(reversed(NAMES), lambda name: float(len(name)))
    assert adapted == {
        "h.0": Adapted(a="h.0.lora_A.weight", b="h.0.lora_B.weight", scale=3.0),
        "wte": Adapted(a="wte.lora_embedding_A", b="wte.lora_embedding_B", scale=3.0),
    }


def test_a_pattern_that_takes_nothing_lists_what_there_is() -> None:
    with pytest.raises(
        LoclinError,
        match=r"a pattern that matches a tensor, found 'x': there are h\.0\.lora_A\.weight, ",
    ):
        chosen(NAMES, "x")
