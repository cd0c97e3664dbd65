"""A steering vector is a value: its algebra, its file, and the models that it fits."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from loclin.errors import LoclinError
from loclin.models.lora import Lora, attach
from loclin.steering import SteeringVector
from tests.activations.odd import hooks
from tests.conftest import random_model

FACTS: dict[str, Any] = {
    "model": "some/model",
    "model_type": "gpt2",
    "blocks": 2,
    "route": "labels",
    "position": "last",
    "norm": "difference of means",
    "data": "abc",
    "dtype": "float32",
}


def made(directions: dict[int, Tensor], **other: Any) -> SteeringVector:
    return SteeringVector(directions=directions, **(FACTS | other))


def random(
    seed: int, layers: tuple[int, ...] = (0, 1), d: int = 32, **other: Any
) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return made({n: torch.randn(d, generator=generator) for n in layers}, **other)


def same(a: SteeringVector, b: SteeringVector, atol: float = 1e-6) -> bool:
    return a.layers == b.layers and all(
        torch.allclose(a.directions[n], b.directions[n], rtol=1e-5, atol=atol) for n in a.layers
    )


numbers = st.floats(-8, 8).filter(lambda x: abs(x) > 1e-3)


@settings(max_examples=25, deadline=None)
@given(numbers, numbers)
def test_vectors_are_a_vector_space(s: float, t: float) -> None:
    a, b, c = random(0), random(1, (1,)), random(2, (0,))
    assert same(a + b, b + a)
    assert same((a + b) + c, a + (b + c))
    assert same(s * (a + b), s * a + s * b)
    # s a and t a may cancel: four roundings of float32, of coordinates below 4
    assert same((s + t) * a, s * a + t * a, atol=(abs(s) + abs(t)) * 4 * 4 * 2**-24 + 1e-6)
    assert same(s * (t * a), (s * t) * a)
    assert same(a - b, a + -1 * b)
    assert same(-a, -1 * a)
    assert same(a / s, (1 / s) * a)
    assert same(a - a, 0 * a)
    assert same(a * s, s * a)


def test_a_block_of_one_side_counts_as_zero_in_the_other() -> None:
    a, b = random(0, (0, 3), blocks=4), random(1, (1, 3), blocks=4)
    both = a - b
    assert both.layers == (0, 1, 3)
    assert torch.equal(both.directions[0], a.directions[0])
    assert torch.equal(both.directions[1], -b.directions[1])
    assert torch.equal(both.directions[3], a.directions[3] - b.directions[3])
    assert same(sum([a, b, a]) / 3, (a + b + a) / 3)
    assert same(np.float64(2) * a, a * np.int64(2))


def test_what_a_vector_was_made_of_is_added_up_too() -> None:
    a = random(0, about={"layer": "chosen", "seed": "1"}, revision="main")
    b = random(
        1,
        route="gradient",
        data="def",
        layers_path="transformer.h",
        about={"seed": "2"},
        revision="other",
    )
    both = (a + b) + a
    assert (both.route, both.data, both.model, both.position) == (
        "labels + gradient",
        "abc + def",
        "some/model",
        "last",
    )
    assert both.revision is None
    assert both.layers_path == "transformer.h"
    assert both.about == {"layer": "chosen", "seed": "1 + 2"}
    assert (2 * a - a / 4).norm == "(2 × (difference of means)) − ((difference of means) / 4)"
    assert (-a).norm == "−(difference of means)"
    assert (a + random(1, blocks=None)).blocks == (random(1, blocks=None) + a).blocks == 2


def test_a_value_shares_no_memory_with_what_it_was_made_of() -> None:
    direction = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    single = torch.ones(4)
    vector = made({1: single, 0: direction})
    single.zero_()
    assert vector.layers == (0, 1)
    assert vector.width == 4
    for v in vector.directions.values():
        assert v.dtype == torch.float32
        assert not v.requires_grad
        assert torch.equal(v, torch.ones(4))
    assert same(copy.deepcopy(vector), vector)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"d": 16}, "found width 32 and 16: make both with one model"),
        ({"model_type": "llama"}, "found model_type gpt2 and llama"),
        ({"blocks": 3}, "found blocks 2 and 3"),
        ({"site": "mlp output"}, "found site block output and mlp output"),
        ({"layers_path": "a.b"}, "found layers_path transformer.h and a.b"),
    ],
)
def test_vectors_of_different_models_do_not_mix(other: dict[str, Any], message: str) -> None:
    a, b = random(0, layers_path="transformer.h"), random(1, **other)
    for mixed in (lambda: a + b, lambda: a - b, lambda: a.cosine(b)):
        with pytest.raises(LoclinError, match=f"expected vectors of one kind of model, {message}"):
            mixed()


def test_what_is_no_number_does_not_scale() -> None:
    a = random(0)
    for bad in (math.nan, math.inf):
        with pytest.raises(LoclinError, match="expected a finite number to scale a vector by"):
            a * bad
    for bad in (0, 0.0, math.nan):
        with pytest.raises(LoclinError, match="expected a finite divisor other than 0"):
            a / bad
    for wrong in (
        lambda: a * "x",
        lambda: a + 1,
        lambda: 1 + a,
        lambda: a * a,
        lambda: a / a,
        lambda: a - 1,
    ):
        with pytest.raises(TypeError):
            wrong()


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({}, "expected a direction for at least one block, found none"),
        ({0: torch.ones(2, 3)}, "expected one vector for each block, found another shape"),
        ({0: torch.ones(0)}, "expected one vector for each block"),
        ({0: torch.ones(3), 1: torch.ones(4)}, "expected vectors of one width, found 3, 4"),
        ({2: torch.ones(3)}, "expected blocks numbered from 0 to 1, found 2"),
        ({-1: torch.ones(3)}, "expected blocks numbered from 0 to 1, found -1"),
    ],
)
def test_what_is_no_vector_is_refused(directions: dict[int, Tensor], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        made(directions)


def test_lengths_and_cosines() -> None:
    a, b = random(0), random(1)
    even = a.normalised(3.0)
    assert even.norm == "length 3"
    lengths = {0: 0.5, 1: 2.0}
    uneven = a.normalised(lengths)
    for n in a.layers:
        assert float(even.directions[n].norm()) == pytest.approx(3, rel=1e-6)
        assert float(uneven.directions[n].norm()) == pytest.approx(lengths[n], rel=1e-6)
        wanted = torch.nn.functional.cosine_similarity(a.directions[n], b.directions[n], dim=0)
        assert a.cosine(b)[n] == pytest.approx(float(wanted), abs=1e-6)
        assert a.cosine(-2 * even)[n] == pytest.approx(-1, abs=1e-6)
    assert list(a.cosine(b.at([1]))) == [1]
    tiny = made({0: torch.full((4,), 1e-30)}).normalised()
    assert float(tiny.directions[0].norm()) == pytest.approx(1, rel=1e-6)
    for bad in (0.0, -1.0, math.nan, {0: 1.0}):
        with pytest.raises(LoclinError, match="expected a length above 0 at block"):
            a.normalised(bad)
    with pytest.raises(LoclinError, match="expected vectors with a block in common, found none"):
        a.at([0]).cosine(b.at([1]))
    with pytest.raises(LoclinError, match="expected a direction at block 0, found zeros"):
        a.cosine(b - b)


def test_blocks_are_chosen_from_both_ends() -> None:
    a = random(0, (0, 2, 3), blocks=4)
    assert a.at([-1, 0]).layers == (0, 3)
    assert torch.equal(a.at([-2]).directions[2], a.directions[2])
    for bad in (1, -3, 4, -5):
        with pytest.raises(
            LoclinError, match=rf"has a direction for \(0, 2, 3\), found {bad}: change --layer"
        ):
            a.at([bad])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            torch.zeros(3),
            "expected a direction at block 1, found zeros: leave the block out with --layer",
        ),
        (
            torch.tensor([1.0, math.nan, 1.0]),
            "expected finite numbers at block 1, found NaN or infinity",
        ),
        (
            torch.tensor([1.0, math.inf, 1.0]),
            "expected finite numbers at block 1, found NaN or infinity",
        ),
    ],
)
def test_zero_and_infinite_vectors_are_neither_kept_nor_read_nor_used(
    broken: Tensor, message: str, tmp_path: Path, families: dict[str, PreTrainedModel]
) -> None:
    vector = made({0: torch.ones(3), 1: broken})
    path = tmp_path / "v.safetensors"
    for refused in (
        vector.check,
        lambda: vector.save(path),
        lambda: vector.applied(families["gpt2"]),
        vector.normalised,
    ):
        with pytest.raises(LoclinError, match=message):
            refused()
    assert not path.exists()
    made({0: torch.ones(3), 1: torch.ones(3)}).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"block.0": torch.ones(3), "block.1": broken}, path, metadata=metadata)
    with pytest.raises(LoclinError, match=f"expected a steering vector in .*found {message[:40]}"):
        SteeringVector.load(path)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits


def test_steering_adds_strength_times_the_vector_and_the_model_is_back(
    families: dict[str, PreTrainedModel],
) -> None:
    model = families["gpt2"]
    before, weights = logits(model), {n: p.clone() for n, p in model.named_parameters()}
    vector = random(4, (1,))
    seen: list[Tensor] = []
    hook = model.transformer.ln_f.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    try:
        logits(model)
        with vector.applied(model, strength=2.5):
            logits(model)
        with vector.applied(model, strength=-1, start=3):
            logits(model)
    finally:
        hook.remove()
    plain, every, late = seen
    assert torch.allclose(every - plain, 2.5 * vector.directions[1].expand(1, 5, 32), atol=1e-4)
    assert torch.equal(late[:, :3], plain[:, :3])
    assert torch.allclose(
        late[:, 3:] - plain[:, 3:], -vector.directions[1].expand(1, 2, 32), atol=1e-4
    )
    with pytest.raises(RuntimeError, match="mine"), vector.applied(model):
        raise RuntimeError("mine")
    assert torch.equal(logits(model), before)
    count = hooks(model)
    with vector.applied(model, strength=0):
        assert hooks(model) == count  # nothing runs that was not there
        assert torch.equal(logits(model), before)
    with vector.applied(model, strength=2), (-2 * vector).applied(model):
        assert torch.allclose(logits(model), before, atol=1e-4)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_a_vector_of_another_model_is_refused_and_says_how_it_differs(
    families: dict[str, PreTrainedModel],
) -> None:
    vector, model = random(0), families["llama"]
    with pytest.raises(
        LoclinError,
        match=r"expected a vector of this model, found one of another \(made with a model of type "
        r"gpt2, not llama\): give a vector "
        "of this model, or ignore it with --force",
    ):
        vector.applied(model)
    longer = replace(vector, blocks=9)
    with pytest.raises(LoclinError, match=r"of type gpt2, not llama; made with 9 blocks, not 2\)"):
        longer.applied(model)
    before = logits(model)
    with longer.applied(model, force=True):
        assert not torch.allclose(logits(model), before)
    assert (
        longer.unlike(model)
        == "made with a model of type gpt2, not llama; made with 9 blocks, not 2"
    )
    fit = longer.fitted(model, force=True)
    assert (fit.model_type, fit.blocks) == ("llama", 2)
    assert same(fit, longer)
    with fit.applied(model), replace(vector, blocks=None, model_type="llama").applied(model):
        pass
    assert fit.unlike(model) == ""
    for forced in (False, True):
        with pytest.raises(
            LoclinError,
            match="expected a vector of the model's width 32, found one of width 16, made with "
            "some/model",
        ):
            random(0, d=16).applied(model, force=forced)
    with pytest.raises(
        LoclinError,
        match="expected a vector for blocks 0 to 1, found one for block 4: choose others with "
        "--layer",
    ):
        random(0, (1, 4), blocks=None, model_type="llama").applied(model)


def test_strength_start_and_path_are_checked(families: dict[str, PreTrainedModel]) -> None:
    model, vector = families["gpt2"], random(0)
    for bad in (math.nan, math.inf):
        with pytest.raises(LoclinError, match="expected a finite strength, found"):
            vector.applied(model, strength=bad)
    with pytest.raises(LoclinError, match="found -1"), vector.applied(model, start=-1):
        pass
    with pytest.raises(LoclinError, match=r"transformer\.h"):
        replace(vector, layers_path="model.layers").applied(model)
    model.flipped = torch.nn.ModuleList(
        reversed(model.transformer.h)
    )  # a list that numbers the blocks from the end
    try:
        with replace(vector.at([0]), layers_path="flipped").applied(model):
            found = logits(model)
    finally:
        del model.flipped
    with replace(vector, directions={1: vector.directions[0]}, layers_path="transformer.h").applied(
        model
    ):
        assert torch.equal(logits(model), found)


def test_an_adapter_around_the_model_is_seen_through() -> None:
    model = random_model("gpt2", 300)
    before = logits(model)
    adapted = attach(model, Lora(rank=2), seed=0)
    with random(0).applied(adapted):
        assert not torch.allclose(logits(adapted), before, atol=1e-2)
    assert torch.allclose(logits(adapted), before, atol=1e-5)
