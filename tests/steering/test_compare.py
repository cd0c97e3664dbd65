"""Comparing directions: closed forms, invariances, and null p-values that are uniform where nothing
is planted.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.stats import permutation_p
from loclin.steering.averages import class_contrast
from loclin.steering.compare import (
    cosines,
    disattenuated,
    random_directions,
    random_vectors,
    reliability,
    shares_of,
    shrunk_covariance,
    whitening,
    without,
    without_outliers,
)
from loclin.steering.gradient import shift, step_direction
from loclin.steering.readout import logit_gradient
from tests.planted import FIRST, LinearModel, questions
from tests.properties import assert_follows, assert_invariant_to_rotation


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cosines_by_layer_and_against_many() -> None:
    a, b, many = drawn(3, 8), drawn(3, 8, seed=1), drawn(5, 3, 8, seed=2)
    expected = [float(x @ y / x.norm() / y.norm()) for x, y in zip(a, b, strict=True)]
    assert np.allclose(cosines(a, b).numpy(), expected, atol=1e-6)
    assert torch.allclose(cosines(a, -3 * a), -torch.ones(3))
    assert torch.allclose(cosines(many, a), torch.stack([cosines(m, a) for m in many]))
    assert_invariant_to_rotation(lambda x, y: float(cosines(x, y)[0]), a[:1], b[:1])


def test_a_vector_without_direction_is_named() -> None:
    a = drawn(2, 3, 4)
    zero, broken = a.clone(), a.clone()
    zero[1, 2] = 0
    broken[0, 1, 3] = torch.nan
    with pytest.raises(LoclinError, match="found zeros: the first one at 1, 2 has no angle"):
        cosines(zero, a)
    with pytest.raises(
        LoclinError, match="found NaN or infinity: the second one at 0, 1 has no angle"
    ):
        cosines(a, broken)


def test_projecting_out_leaves_what_is_orthogonal() -> None:
    v, a, b = drawn(3, 8), drawn(3, 8, seed=1), drawn(3, 8, seed=2)
    left = without(v, a, b)
    assert torch.allclose((left * a).sum(-1), torch.zeros(3), atol=1e-5)
    assert torch.allclose((left * b).sum(-1), torch.zeros(3), atol=1e-5)
    for layer in range(3):  # dense twin: least squares
        pair = torch.stack([a[layer], b[layer]], dim=1).double()
        fit = torch.linalg.lstsq(pair, v[layer].double()[:, None]).solution
        assert torch.allclose(left[layer].double(), v[layer] - (pair @ fit)[:, 0], atol=1e-6)
    assert torch.allclose(without(v, a, 2 * a, b), left, atol=1e-6)
    assert torch.equal(without(v, a, v), torch.zeros(3, 8))
    with pytest.raises(LoclinError, match="not zero, found only zeros"):
        without(v, torch.zeros(3, 8))


def test_outlying_coordinates_are_taken_out_layer_by_layer() -> None:
    h, v = drawn(2, 20, 6), drawn(2, 6, seed=1)
    h[0, :, 4] += 50
    h[1, :, 0] *= 30  # large, and of mean zero
    h[1, :, 2] -= 90
    found = without_outliers(v, h, 1)
    assert found[0, 4] == found[1, 2] == 0
    assert int((found == v).sum()) == 10
    assert without_outliers(v, h, 2)[1].nonzero().flatten().tolist() == [1, 3, 4, 5]
    assert torch.equal(without_outliers(v, h, 0), v)
    with pytest.raises(LoclinError, match="expected 0 to 5 coordinates"):
        without_outliers(v, h, 6)


def test_random_directions_are_unit_seeded_and_matched() -> None:
    space = ParameterSpace(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10)))
    like = space.noise(seed=5)
    pieces = space.by_tensor(like)
    for factor, piece in zip((9.0, 0.0, 1.0, 2.0), pieces.values(), strict=True):
        piece.mul_(factor)
    shares = shares_of(space, like)
    # each is good until the next
    matched = [v.clone() for v in random_directions(space, 3, seed=1, shares=shares)]
    plain = [v.clone() for v in random_directions(space, 3, seed=1)]
    for direction in (*matched, *plain):
        assert float(direction.norm()) == pytest.approx(1, abs=1e-6)
    for direction in matched:
        for name, piece in space.by_tensor(direction).items():
            assert float(piece.norm()) == pytest.approx(
                float(pieces[name].norm() / like.norm()), rel=1e-5
            )
    again = [
        v.clone() for v in random_directions(space, 2, seed=1, shares=shares_of(space, -3 * like))
    ]
    assert all(torch.allclose(x, y, atol=1e-7) for x, y in zip(again, matched[:2], strict=True))
    other = next(random_directions(space, 1, seed=2))
    assert all(abs(float(x @ y)) < 0.2 for x, y in itertools.combinations([*plain, other], 2))
    with pytest.raises(LoclinError, match="found a length of 0: no step along it is defined"):
        shares_of(space, space.zeros())


def test_isotropic_directions_follow_their_law() -> None:
    space = ParameterSpace(nn.Linear(10, 5))
    fixed = space.noise(seed=9)
    draws = np.array(
        [float(v @ fixed / fixed.norm()) for v in random_directions(space, 400, seed=0)]
    )
    n = space.dimension
    assert_follows((draws + 1) / 2, stats.beta((n - 1) / 2, (n - 1) / 2))


def test_reliability_and_its_correction() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[1.0, 1.0], [0.0, 2.0], [-1.0, 0.1]])
    found = reliability(one, other)
    r = 2**-0.5
    assert found.tolist() == pytest.approx([2 * r / (1 + r), 0, 0])
    corrected = disattenuated(
        torch.tensor([0.4, 0.4, 0.4]),
        torch.tensor([0.64, 0.0, torch.nan]),
        torch.tensor([1.0, 1, 1]),
    )
    assert float(corrected[0]) == pytest.approx(0.5)
    assert torch.isnan(corrected[1:]).all()


def test_reliability_foretells_the_agreement_of_whole_samples() -> None:
    """A planted vector in white noise: halves foretell how two vectors from all of the data agree,
    and the truth is regained.
    """
    rng, d, n, truth = np.random.default_rng(0), 2000, 8, torch.zeros(2000)
    truth[0] = 2000**0.5 / 2

    def means(parts: int) -> torch.Tensor:
        noise = torch.from_numpy(rng.standard_normal((parts, n, d)) * 2).float()
        return truth + noise.mean(1)

    halves, wholes = means(2), torch.stack([means(2).mean(0) for _ in range(2)])
    rel = reliability(halves[:1], halves[1:])
    agreement = cosines(wholes[:1], wholes[1:])
    assert float(rel) == pytest.approx(float(agreement), abs=0.06)
    assert float(disattenuated(agreement, rel, rel)) == pytest.approx(1, abs=0.1)


def unknowing(rng: np.random.Generator, *, words: int, width: int) -> LinearModel:
    """Random tokens of very unequal scale by coordinate, and a readout that has nothing to do with
    them.
    """
    scale = torch.from_numpy(np.geomspace(0.1, 10, width))
    embedding = torch.from_numpy(rng.standard_normal((words, width))) * scale
    weights = torch.from_numpy(rng.standard_normal((2, width, width))) * 0.3 / width**0.5
    return LinearModel(embedding, weights, torch.from_numpy(rng.standard_normal((words, width))))


def test_labels_that_activations_do_not_know_give_uniform_p_values() -> None:
    ps = []
    for draw in range(120):
        rng = np.random.default_rng([draw, 3])
        model = unknowing(rng, words=FIRST + 24, width=6)
        asked = questions(torch.arange(FIRST, FIRST + 24), rng.permutation(24) < 12, rng)
        assert asked.labels is not None
        h = activations(model, asked.batch, layers=[1])
        readout = logit_gradient(model, asked, layers=[1]).to(h)
        observed = float(cosines(class_contrast(h, asked.labels), readout))
        shuffled = torch.stack(
            [class_contrast(h, rng.permutation(asked.labels)) for _ in range(99)]
        )
        ps.append(permutation_p(abs(observed), cosines(shuffled, readout).abs().flatten().numpy()))
    assert_follows(np.array(ps), stats.uniform())


def test_labels_that_a_gradient_batch_does_not_know_give_uniform_p_values() -> None:
    """Estimand E3 against the class contrast, with the labels of the gradient batch permuted."""
    ps = []
    for draw in range(50):
        rng = np.random.default_rng([draw, 4])
        model = unknowing(rng, words=FIRST + 24, width=6)
        learned = questions(torch.arange(FIRST, FIRST + 12), rng.permutation(12) < 6, rng)
        held = questions(torch.arange(FIRST + 12, FIRST + 24), rng.permutation(12) < 6, rng)
        assert learned.labels is not None
        assert held.labels is not None
        space = ParameterSpace(model, "layers*")
        origin = activations(model, held.batch, layers=[1])
        caa = class_contrast(origin, held.labels)
        found = []
        for labels in (learned.labels, *(rng.permutation(learned.labels) for _ in range(9))):
            tokens = torch.where(torch.from_numpy(labels), learned.toward, learned.away)
            direction = step_direction(model, space, learned, loss=tokens)
            moved = shift(model, space, direction, held.batch, size=1e-3, layers=[1], origin=origin)
            found.append(float(cosines(class_contrast(moved, held.labels), caa)))
        # Ranks are few: spread each evenly over its step.
        ps.append(permutation_p(found[0], found[1:]) - rng.uniform() / 10)
    assert_follows(np.array(ps), stats.uniform())


def test_whitened_activations_vary_alike_and_a_dominant_axis_is_one_among_many() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([30.0, *[1.0] * 7])
    h = torch.randn(1, 2000, 8, generator=generator) * scale
    white = whitening(h)[0]
    spread = torch.linalg.eigvalsh((h[0].double() @ white).T.cov())
    assert torch.allclose(spread, torch.ones_like(spread), atol=0.3)
    # both vectors lie along the axis, and in whitened activations at right angles
    a, b = scale.clone(), scale * torch.tensor([1.0, *[-1.0, 1.0] * 3, 1.0])
    before, after = cosines(a, b), cosines(white @ a.double(), white @ b.double())
    assert float(before) > 0.98
    assert abs(float(after)) < 0.5


def test_shrinkage_is_that_of_ledoit_and_wolf() -> None:
    """Against the sum over prompts, written out."""
    h = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = h - h.mean(0)
    s = x.T @ x / 12
    target = s.trace() / 5 * torch.eye(5, dtype=torch.float64)
    noise = sum(float((torch.outer(row, row) - s).square().sum()) for row in x) / 12**2
    share = min(1.0, noise / float((s - target).square().sum()))
    assert 0 < share < 1
    assert torch.allclose(shrunk_covariance(h), (1 - share) * s + share * target)


def test_whitening_needs_prompts_that_differ() -> None:
    with pytest.raises(LoclinError, match="two prompts or more, found 1"):
        whitening(torch.ones(2, 1, 3))
    with pytest.raises(LoclinError, match="activations that vary over prompts"):
        whitening(torch.ones(2, 4, 3))


def test_random_vectors_are_as_long_as_asked_and_independent() -> None:
    found = random_vectors({0: 2.0, 3: 0.5}, 400, count=6, seed=1)
    assert all(
        float(v[0].norm()) == pytest.approx(2) and float(v[3].norm()) == pytest.approx(0.5)
        for v in found
    )
    every = torch.stack([v[n] / v[n].norm() for v in found for n in (0, 3)])
    assert float((every @ every.T - torch.eye(12)).abs().max()) < 5 / 400**0.5
    again = random_vectors({3: 0.5}, 400, count=2, seed=1)
    assert torch.equal(again[1][3], found[1][3])
    assert not torch.equal(random_vectors({3: 0.5}, 400, count=1, seed=2)[0][3], found[0][3])
