import math

import pytest
import torch
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.tasks.batch import answer_loss


class Tied(nn.Module):
    """Two layers of one shape that share a weight with a third."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.head = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 4, bias=False),
        )
        self.head.weight = self.first.weight
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def squares(module: nn.Module):
    """A summed loss over ragged batches."""
    return lambda x: (module(x).square().sum(), len(x))


def test_tied_weights_count_once() -> None:
    assert ParameterSpace(Tied()).dimension == 4 * 4 + 4 + 4 * 4 + 4


def test_a_pattern_chooses_tensors() -> None:
    assert ParameterSpace(Tied(), "*weight").names == ("first.weight", "second.weight")
    assert ParameterSpace(Tied(), "first.bias, second.bias").dimension == 8
    with pytest.raises(LoclinError, match="found 'nothing': the module has first"):
        ParameterSpace(Tied(), "nothing")


def test_frozen_tensors_are_left_out() -> None:
    module = Tied()
    module.second.requires_grad_(False)
    assert ParameterSpace(module).names == ("first.weight", "first.bias")


def test_mixed_precision_is_refused() -> None:
    module = Tied()
    module.second.double()
    with pytest.raises(LoclinError, match="tensors of one dtype, found"):
        ParameterSpace(module)


def test_read_write_and_add() -> None:
    space = ParameterSpace(Tied())
    start = space.read()
    step = torch.arange(space.dimension, dtype=torch.float32)
    space.add(step, scale=0.5)
    assert torch.allclose(space.read(), start + 0.5 * step)
    space.write(start)
    assert torch.equal(space.read(), start)
    with pytest.raises(
        LoclinError, match=r"expected a vector of 40 coordinates, found shape \(3,\)"
    ):
        space.by_tensor(torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restoring_is_bit_exact_even_when_the_body_raises(dtype: torch.dtype) -> None:
    space = ParameterSpace(Tied().to(dtype))
    start = space.read()
    for seed in range(50):
        with pytest.raises(RuntimeError), space.restored():  # noqa: PT012
            space.add(space.noise(seed=seed), scale=1e-3)
            assert not torch.equal(space.read(), start)
            raise RuntimeError
    assert torch.equal(space.read(), start)


def test_noise_is_a_function_of_seed_and_tensor_name_alone() -> None:
    whole, part = ParameterSpace(Tied()), ParameterSpace(Tied(), "second.weight")
    assert torch.equal(
        whole.by_tensor(whole.noise(seed=3))["second.weight"].reshape(-1), part.noise(seed=3)
    )
    assert not torch.equal(part.noise(seed=3), part.noise(seed=4))


def test_tensors_of_one_shape_get_independent_noise() -> None:
    module = nn.ModuleDict({"a": nn.Linear(100, 100), "b": nn.Linear(100, 100)})
    space = ParameterSpace(module)
    z = space.by_tensor(space.noise(seed=0))
    correlation = float(
        torch.corrcoef(torch.stack([z["a.weight"].reshape(-1), z["b.weight"].reshape(-1)]))[0, 1]
    )
    assert abs(correlation) < 4 / 100
    assert math.isclose(float(z["a.weight"].std()), 1, rel_tol=0.05)


def test_gradient_weights_ragged_batches_by_their_items() -> None:
    module = Tied()
    space = ParameterSpace(module)
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    once = space.gradient(squares(module), [x])
    ragged = space.gradient(squares(module), [x[:1], x[1:4], x[4:]])
    assert torch.allclose(once, ragged, atol=1e-5)
    with pytest.raises(LoclinError, match="at least one batch"):
        space.gradient(squares(module), [])
    with pytest.raises(LoclinError, match="expected a finite loss, found nan"):
        space.gradient(squares(module), [x * math.nan])


def test_one_batch_is_no_list_of_batches() -> None:
    space = ParameterSpace(nn.Linear(2, 1))
    with pytest.raises(LoclinError, match=r"a list of batches, found one dict: give \[batch\]"):
        space.gradient(lambda b: (torch.zeros(()), 1), {"input_ids": torch.zeros(1)})


def test_gradient_of_answers_does_not_depend_on_batch_size(trained: Problem) -> None:
    space, data = ParameterSpace(trained.model), trained.batch("test", "halves").rows(slice(0, 30))
    whole, pieces = (
        space.gradient(lambda b: answer_loss(trained.model, b), data.chunks(size))
        for size in (30, 7)
    )
    assert torch.allclose(whole, pieces, atol=1e-6)


def test_the_length_of_the_weights_keeps_its_digits() -> None:
    """Many small numbers beside a large one, which float32 sums lose."""
    layer = nn.Linear(1 << 16, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1e-4)
        layer.weight[0, 0] = 1.0
    values = layer.weight.detach().double()
    assert ParameterSpace(layer).norm() == pytest.approx(float(values.norm()), rel=1e-12)
