import math

import numpy as np
import pytest
import torch
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry import sketch as module
from loclin.geometry.gramian import gramian, prefix_capture
from loclin.geometry.sketch import Sketch
from loclin.theory import sketched_capture
from tests.properties import assert_within_error

SIZE, DRAWS = 64, 300


def pieces(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(37, 53, generator=generator),
        "bias": torch.randn(11, generator=generator),
        "norm": 3 * torch.randn(64, generator=generator),
    }


def test_a_sketch_is_linear_and_adds_up_over_tensors() -> None:
    s, u, v = Sketch(size=SIZE, seed=0), pieces(0), pieces(1)
    both = s.of({n: 2 * u[n] - v[n] for n in u})
    assert torch.allclose(both, 2 * s.of(u) - s.of(v), atol=1e-4)
    assert torch.allclose(s.of(u), s.of(dict(reversed(u.items()))), atol=1e-4)
    total = torch.zeros(SIZE, dtype=torch.float64)
    for name in u:
        s.add(total, name, u[name].double(), scale=2.0)
        s.add(total, name, v[name].double(), scale=-1.0)
    assert torch.allclose(total.float(), both, atol=1e-4)


def test_every_coordinate_goes_to_one_bucket_with_one_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 4 * SIZE)
    s = Sketch(size=SIZE, seed=0)
    images = torch.stack([s.of({"w": e}) for e in torch.eye(1000)])
    assert ((images != 0).sum(1) == 1).all()
    assert (images.abs().sum(1) == 1).all()
    x = pieces(0)["weight"].reshape(-1)[:1000]
    assert torch.allclose(s.of({"w": x}), x @ images, atol=1e-4)
    together = (images.abs() @ images.abs().T).fill_diagonal_(0)
    assert math.isclose(float(together.mean()), 1 / SIZE, rel_tol=0.1)
    assert abs(float(images.sum(1).mean())) < 4 / math.sqrt(1000)


def test_a_sketch_depends_on_seed_and_name_alone() -> None:
    u = {"w": torch.ones(500)}
    first = Sketch(size=SIZE, seed=0).of(u)
    assert torch.equal(first, Sketch(size=SIZE, seed=0).of(u))
    assert not torch.equal(first, Sketch(size=SIZE, seed=1).of(u))
    assert not torch.equal(first, Sketch(size=SIZE, seed=0).of({"v": u["w"]}))
    assert torch.equal(
        first, Sketch(size=SIZE, seed=0).of({"w": u["w"].bfloat16().reshape(50, 10)})
    )


@pytest.mark.parametrize("cosine", [0.0, 0.6, 1.0])
def test_inner_products_have_their_stated_mean_and_spread(cosine: float) -> None:
    u, w = pieces(0), pieces(1)
    v = {n: cosine * u[n] + math.sqrt(1 - cosine**2) * w[n] for n in u}
    products = gramian(
        torch.stack([torch.cat([x.reshape(-1) for x in p.values()]) for p in (u, v)])
    )
    draws = np.array(
        [float(s.of(u) @ s.of(v)) for s in (Sketch(size=SIZE, seed=i) for i in range(DRAWS))]
    )
    assert_within_error(draws, products[0, 1])
    stated = math.sqrt((products[0, 1] ** 2 + products[0, 0] * products[1, 1]) / SIZE)
    assert math.isclose(draws.std(), stated, rel_tol=4 / math.sqrt(2 * DRAWS) + 0.03)


@pytest.mark.parametrize(("drift", "k"), [(0.0, 8), (1.0, 3), (3.0, 8)])
def test_captures_have_their_stated_bias_and_spread(drift: float, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shared, noise = (
        torch.randn(1, 3000, generator=generator),
        torch.randn(20, 3000, generator=generator),
    )
    updates = math.sqrt(drift) * shared + noise
    c = float(prefix_capture(gramian(updates), [k])[0])
    size, draws = 256, 150
    errors = np.array(
        [
            prefix_capture(gramian(torch.stack([s.of({"w": u}) for u in updates])), [k])[0]
            for s in (Sketch(size=size, seed=i) for i in range(draws))
        ]
    )
    bias, sd = sketched_capture(c, k, size)
    assert abs(errors.mean() - c - bias) < 4 * errors.std() / math.sqrt(draws) + 0.1 * sd
    assert math.isclose(errors.std(), sd, rel_tol=4 / math.sqrt(2 * draws) + 0.05)


def test_near_points_can_be_sketched_in_float64_and_subtracted() -> None:
    theta = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 100
    moved = theta + torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 1e-3
    total = torch.zeros(SIZE, dtype=torch.float64)
    s = Sketch(size=SIZE, seed=0)
    s.add(total, "w", moved)
    s.add(total, "w", theta, scale=-1.0)
    assert torch.allclose(total, s.of({"w": moved - theta}).double(), rtol=1e-4, atol=1e-8)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(
        LoclinError, match="a sketch of at least 1 number, found 0: give a larger size"
    ):
        Sketch(size=0, seed=0)
    with pytest.raises(
        LoclinError, match=r"a sketch of 4 numbers, found shape \(5,\): make it anew"
    ):
        Sketch(size=4, seed=0).add(torch.zeros(5), "w", torch.ones(3))
    with pytest.raises(LoclinError, match="at least one tensor to sketch, found none"):
        Sketch(size=4, seed=0).of({})
    with pytest.raises(LoclinError, match="k from 1 to m − 1 = 9, found 10"):
        sketched_capture(0.5, 10, 10)
