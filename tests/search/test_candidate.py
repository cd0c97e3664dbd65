import copy
import hashlib

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Candidate, Perturbed, candidates, weights_hash
from loclin.search.noise import Noise, normals
from tests.search.test_noise import draw

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
NOISES = ["gaussian", "rademacher", "lowrank:2", "tied"]


class Net(nn.Module):
    """Two layers of one shape, a norm at 1, and a bias at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        with torch.no_grad():
            for i, layer in enumerate((self.first, self.second)):
                layer.weight.copy_(normals(64, i, "net").view(8, 8) / 3)
                layer.bias.zero_()


def bytes_of(module: nn.Module) -> str:
    data = b"".join(
        p.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for p in module.parameters()
    )
    return hashlib.sha256(data).hexdigest()


def one(sigma: float = 0.01, *, seed: int = 3, sign: int = 1) -> Candidate:
    return Candidate(index=0, seed=seed, sigma=sigma, sign=sign)


def test_candidates_share_their_seeds_over_sigma() -> None:
    found = candidates(3, [0.1, 0.2], seed=5)
    assert [c.index for c in found] == list(range(6))
    assert [c.sigma for c in found] == [0.1] * 3 + [0.2] * 3
    assert [c.seed for c in found[:3]] == [c.seed for c in found[3:]]
    assert len({c.seed for c in found}) == 3
    assert not {c.seed for c in found} & {c.seed for c in candidates(3, [0.1], seed=6)}
    assert candidates(5, [0.1], seed=5)[:3] == found[:3]


def test_antithetic_candidates_are_mirror_images() -> None:
    found = candidates(4, [0.1], seed=0, antithetic=True)
    assert [c.sign for c in found] == [1, -1, 1, -1]
    assert [c.seed for c in found[::2]] == [c.seed for c in found[1::2]]
    assert found[0].seed != found[2].seed
    space = ParameterSpace(Net().double())
    perturbed = Perturbed(space, Noise())
    placed = []
    with perturbed:
        for c in found[:2]:
            perturbed.place(c)
            placed.append(space.read())
    torch.testing.assert_close((placed[0] + placed[1]) / 2, space.read())
    assert torch.equal(perturbed.vector(found[0]), -perturbed.vector(found[1]))


@pytest.mark.parametrize(
    ("n", "sigmas", "antithetic", "text"),
    [
        (0, [0.1], False, "expected at least 1 candidate, found 0"),
        (3, [0.1], True, "expected an even number of candidates for antithetic pairs, found 3"),
        (2, [], False, "expected at least one σ, each given once"),
        (2, [0.1, 0.1], False, "expected at least one σ, each given once"),
        (2, [0.1, 0.0], False, "expected a positive, finite σ, found 0"),
        (2, [-1.0], False, "expected a positive, finite σ, found -1"),
        (2, [float("nan")], False, "expected a positive, finite σ, found nan"),
        (2, [float("inf")], False, "expected a positive, finite σ, found inf"),
    ],
)
def test_impossible_candidates_are_refused(
    n: int, sigmas: list[float], antithetic: bool, text: str
) -> None:
    with pytest.raises(LoclinError, match=text):
        candidates(n, sigmas, seed=0, antithetic=antithetic)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", NOISES)
def test_weights_are_the_base_and_a_step_rounded_once(noise: str, dtype: torch.dtype) -> None:
    net = Net().to(dtype)
    base = copy.deepcopy(net)
    perturbed = Perturbed(ParameterSpace(net), Noise.parse(noise))
    perturbed.place(one(0.3, seed=1))  # a candidate does not depend on where the model stood before
    perturbed.place(one(0.01, sign=-1))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for (name, placed), before in zip(net.named_parameters(), base.parameters(), strict=True):
        z = draw(Noise.parse(noise), 3, name, tuple(placed.shape))
        expected = (before.to(wide) - 0.01 * z.to(wide)).to(dtype)
        # one unit in the last place: the sum may be fused or not
        torch.testing.assert_close(
            placed.detach(), expected.detach(), rtol=torch.finfo(dtype).eps, atol=1e-7
        )
    torch.testing.assert_close(
        perturbed.vector(one(0.01, sign=-1)),
        torch.cat(
            [
                draw(Noise.parse(noise), 3, n, tuple(p.shape)).flatten().to(wide)
                for n, p in net.named_parameters()
            ]
        )
        * -0.01,
    )


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_the_base_is_there_bit_for_bit_after_200_candidates(dtype: torch.dtype) -> None:
    net = Net().to(dtype)
    drifting = copy.deepcopy(net)
    before = bytes_of(net)
    perturbed = Perturbed(ParameterSpace(net), Noise())
    with perturbed:
        for c in candidates(200, [1e-3], seed=0):
            perturbed.place(c)
        assert bytes_of(net) != before
    assert bytes_of(net) == before
    for c in candidates(200, [1e-3], seed=0):  # the usual way, which this test must tell from ours
        for scale in (c.sigma, -c.sigma):
            for name, p in drifting.named_parameters():
                p.data.add_(draw(Noise(), c.seed, name, tuple(p.shape)).to(dtype), alpha=scale)
    assert bytes_of(drifting) != before


def test_the_base_comes_back_whatever_is_raised_inside() -> None:
    net = Net()
    before = bytes_of(net)
    perturbed = Perturbed(ParameterSpace(net), Noise())

    def interrupted() -> None:
        with perturbed:
            perturbed.place(one())
            assert bytes_of(net) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert bytes_of(net) == before
    perturbed.verify()


def test_nothing_is_held_beside_the_weights_but_one_candidate() -> None:
    """The base is the model's own memory before, after and while a candidate stands beside it."""
    net = Net()
    own = {n: p.data_ptr() for n, p in net.named_parameters()}
    with Perturbed(ParameterSpace(net), Noise()) as perturbed:
        assert {n: t.data_ptr() for n, t in perturbed.base.items()} == own
        places = []
        for seed in (1, 2):
            perturbed.place(one(seed=seed))
            places.append({n: p.data_ptr() for n, p in net.named_parameters()})
        assert places[0] == places[1]
        assert not set(own.values()) & set(places[0].values())
    assert {n: p.data_ptr() for n, p in net.named_parameters()} == own


def test_another_base_is_found_out() -> None:
    net = Net()
    perturbed = Perturbed(ParameterSpace(net), Noise())
    perturbed.place(one())
    with pytest.raises(LoclinError, match=r"expected first\.weight at its base, found other bytes"):
        perturbed.verify()
    perturbed.base["norm.bias"][3] = 1e-30  # the copy itself went bad
    with pytest.raises(LoclinError, match=r"expected norm\.bias at its base"), perturbed:
        perturbed.place(one())


def test_only_the_chosen_tensors_move() -> None:
    net = Net()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    perturbed = Perturbed(ParameterSpace(net, "second.*"), Noise())
    perturbed.place(one())
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"second.weight", "second.bias"}
    whole = Perturbed(ParameterSpace(Net()), Noise())
    assert torch.equal(
        perturbed.vector(one()), whole.vector(one())[-72:]
    )  # the same noise in a smaller space


def test_half_precision_rounds_small_steps_away_and_says_so() -> None:
    net = Net().bfloat16()
    perturbed = Perturbed(ParameterSpace(net), Noise())
    shares = perturbed.realised(one(5e-4))
    assert shares["norm.weight"] == 0  # at 1, the next number is 0.004 away
    assert shares["norm.bias"] == pytest.approx(drawn_size("norm.bias"), rel=0.01)
    exact = Perturbed(ParameterSpace(Net()), Noise()).realised(one(5e-4))
    assert exact["norm.weight"] == pytest.approx(drawn_size("norm.weight"), rel=1e-3)
    assert 0 < abs(shares["first.weight"] / exact["first.weight"] - 1) < 0.5
    norm = Perturbed(ParameterSpace(net, "norm.weight"), Noise())
    assert norm.realised(one(0.02))["norm.weight"] > 0
    with pytest.raises(
        LoclinError,
        match=r"expected a σ that moves a weight, found 0\.0005, which bfloat16 rounds away",
    ):
        norm.realised(one(5e-4))
    for sigma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(LoclinError, match="expected a positive, finite σ"):
            candidates(1, [sigma], seed=0)
    assert bytes_of(net) == bytes_of(Net().bfloat16())  # nothing of this moved the model


def drawn_size(name: str) -> float:
    """RMS of the eight numbers that a tensor of `Net` takes."""
    return float(draw(Noise(), 3, name, (8,)).square().mean().sqrt())


def test_candidates_of_a_basis_stay_in_its_span() -> None:
    net = Net().double()
    space = ParameterSpace(net)
    basis = torch.linalg.qr(normals(space.dimension * 5, 0, "basis").view(-1, 5).double())[
        0
    ].T.contiguous()
    perturbed = Perturbed(space, Noise(), basis=basis)
    before = space.read()
    with perturbed:
        perturbed.place(one(0.1, sign=-1))
        delta = space.read() - before
    inside = basis.T @ (basis @ delta)
    torch.testing.assert_close(inside, delta, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(basis @ delta, -0.1 * normals(5, 3, "basis").double())
    torch.testing.assert_close(perturbed.vector(one(0.1, sign=-1)), delta)
    assert torch.equal(space.read(), before)


def test_an_impossible_basis_is_refused() -> None:
    space = ParameterSpace(Net(), "norm.*")
    with pytest.raises(
        LoclinError, match=r"expected a basis of rows of 16 numbers, found shape \(2, 15\)"
    ):
        Perturbed(space, Noise(), basis=torch.eye(2, 15))
    with pytest.raises(LoclinError, match="expected orthonormal rows, found products off by 3"):
        Perturbed(space, Noise(), basis=2 * torch.eye(2, 16))
    with pytest.raises(LoclinError, match="expected gaussian noise inside a basis, found tied"):
        Perturbed(space, Noise.parse("tied"), basis=torch.eye(2, 16))


def test_tied_embeddings_move_once(families: dict[str, PreTrainedModel]) -> None:
    model = families["gpt2"]
    space = ParameterSpace(model)
    perturbed = Perturbed(space, Noise())
    with perturbed:
        perturbed.place(one())
        assert torch.equal(
            model.get_input_embeddings().weight,
            model.get_output_embeddings().weight,
        )
    assert len(perturbed.vector(one())) == space.dimension


def test_the_model_stands_at_a_candidate_inside_alone() -> None:
    net = Net()
    before = bytes_of(net)
    perturbed = Perturbed(ParameterSpace(net), Noise())
    with perturbed.at(None):
        assert bytes_of(net) == before
    with perturbed.at(one()):
        assert bytes_of(net) != before
    perturbed.verify()


def test_hashes_tell_name_shape_dtype_and_every_bit() -> None:
    first = {"a": torch.zeros(4)}
    others: list[dict[str, torch.Tensor]] = [
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.tensor([0.0, 0.0, 0.0, -0.0])},
        {"a": torch.zeros(4), "b": torch.zeros(0)},
    ]
    assert len({weights_hash(t) for t in [first, *others]}) == 6
    assert weights_hash(first) == weights_hash({"a": torch.zeros(8)[::2]})
