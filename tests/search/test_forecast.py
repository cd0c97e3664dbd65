"""The forecast against dense derivatives of a small space, against planted gradients, and against
real candidates.
"""

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from loclin import law
from loclin.curvature import CurvatureOperator
from loclin.errors import LoclinError
from loclin.geometry.subspace import random_subspace
from loclin.models import Problem, twice_differentiable
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.search import local_law
from loclin.search.candidate import Perturbed, candidates
from loclin.search.ensemble import best_of
from loclin.search.forecast import Forecast, _measured, forecast, shared_square
from loclin.search.noise import Noise, NoiseStream
from loclin.search.scoring import score
from loclin.stats import Estimate
from loclin.tasks.example import Example

NORMS = "*ln_f*,*ln_2.bias"


@pytest.fixture(scope="module")
def damaged(trained: Problem) -> Problem:
    """The small model some way off its minimum, in float64: there is a gradient to search along."""
    problem = Problem(
        model=copy.deepcopy(trained.model).double(),
        tokenizer=trained.tokenizer,
        examples=trained.examples,
    )
    space = ParameterSpace(problem.model)
    space.add(space.noise(seed=11), scale=0.05)
    return problem


def some(problem: Problem, count: int = 24) -> list[Example]:
    return [e for task in problem.tasks for e in problem.examples["test"][task]][: 8 * count : 8]


@pytest.fixture(scope="module")
def derivatives(damaged: Problem) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian over the norms, row by row."""
    space, eval_set = ParameterSpace(damaged.model, NORMS), EvalSet.of(damaged, some(damaged, 12))
    with twice_differentiable(damaged.model):
        batches = list(eval_set.fold(0))
        gradient = space.gradient(eval_set.loss, batches)
        hessian = CurvatureOperator(space, eval_set.loss, batches)
        rows = [hessian @ v for v in torch.eye(space.dimension, dtype=torch.float64)]
    return gradient, torch.stack(rows)


def lifted(space: ParameterSpace, noise: Noise, basis: Tensor | None) -> Tensor:
    """L as a matrix."""
    if basis is not None:
        return basis.T
    if noise.kind != "tied":
        return torch.eye(space.dimension, dtype=torch.float64)
    rows = [torch.eye(max(space.sizes), dtype=torch.float64)[:size] for size in space.sizes]
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("noise", "k"),
    [("gaussian", 0), ("rademacher", 0), ("lowrank:2", 0), ("tied", 0), ("gaussian", 3)],
)
def test_the_law_s_numbers_are_those_of_dense_derivatives(
    damaged: Problem, derivatives: tuple[Tensor, Tensor], noise: str, k: int
) -> None:
    space, examples = ParameterSpace(damaged.model, NORMS), some(damaged, 12)
    basis = random_subspace(k, space.dimension, seed=0).basis.double() if k else None
    found = forecast(
        damaged,
        space,
        examples,
        noise=Noise.parse(noise),
        basis=basis,
        probes=100,
        seed=0,
    )
    g, h = derivatives
    lift = lifted(space, Noise.parse(noise), basis)
    g, h = lift.T @ g, lift.T @ h @ lift
    assert found.dimension == len(g)
    assert found.coordinates == space.dimension
    assert found.gradient == pytest.approx(float(g.norm()), rel=1e-9)
    assert found.along == pytest.approx(float(g @ h @ g / (g @ g)), rel=1e-7)
    assert found.trace is not None
    assert found.frobenius is not None
    sd = math.sqrt(2 / 100) * float(h.norm())
    assert found.trace.value == pytest.approx(float(h.trace()), abs=4 * sd)
    assert found.trace.low < found.trace.value < found.trace.high
    spread = math.sqrt(2 / 100) * float((h @ h).norm())
    square = float(h.norm()) ** 2
    if noise == "rademacher":
        square -= float(h.diagonal().square().sum())
    assert found.frobenius.value**2 == pytest.approx(square, abs=4 * spread)
    edge = law.valid_up_to(gradient=found.gradient, frobenius=found.frobenius.value)
    assert found.local.edge == edge
    assert found.notes[0] == "attention was switched from sdpa to eager for it"
    said = {
        "lowrank:2": "noise of rank 2 is not normal: the law's slope and trace hold, its tails are "
        "heavier",
        "rademacher": "noise of ±σ: the diagonal of H moves all candidates alike, so ‖H‖_F is that "
        "of H without it, and σ⁴‖H‖_F²/2 is the variance of curvature",
    }
    assert list(found.notes[1:]) == ([said[noise]] if noise in said else [])
    assert found.weights == pytest.approx(float(space.read().norm()))


def test_the_shared_part_of_a_gradient_is_without_bias() -> None:
    rng = np.random.default_rng(0)
    shares, shared = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.6, 0.0, -0.3, 0.1])
    squares = []
    for _ in range(4000):
        groups = shared + rng.standard_normal((4, 4)) / np.sqrt(20 * shares)[:, None]
        weighted = shares[:, None] * groups
        squares.append(
            shared_square(float((weighted.sum(0) ** 2).sum()), float((weighted**2).sum()), shares)
        )
    error = float(np.std(squares)) / math.sqrt(len(squares))
    assert np.mean(squares) == pytest.approx(float((shared**2).sum()), abs=4 * error)
    assert error < 0.01 < 0.2  # a norm that keeps its noise would be off by 4/20


def plain(**change: object) -> Forecast:
    known = Estimate(value=10.0, low=8.0, high=12.0, n=16)
    settings: dict[str, object] = {
        "dimension": 100,
        "weights": 5.0,
        "coordinates": 100,
        "loss": Estimate(value=2.0, low=1.8, high=2.2, n=24),
        "gradient": 1.0,
        "true_gradient": 0.6,
        "trace": known,
        "frobenius": Estimate(value=2.0, low=1.5, high=2.5, n=16),
        "along": 0.5,
        "notes": (),
        **change,
    }
    return Forecast(**settings)  # type: ignore[arg-type]


def test_gains_come_from_the_law_and_other_examples_gain_less() -> None:
    found = plain()
    assert found.evaluation_noise == pytest.approx(0.8)
    own = found.gain(100, 0.1)
    assert own.value == law.best_of_n_gain(gradient=1.0, trace=10.0, along=0.5, n=100, sigma=0.1)
    assert own.low == law.best_of_n_gain(gradient=1.0, trace=12.0, along=0.5, n=100, sigma=0.1)
    assert own.high > own.value > own.low
    fresh = found.gain(100, 0.1, fresh=True).value
    linear = 0.1 * 0.36 * law.expected_maximum(100)  # m_N σ‖ḡ‖²/‖g‖
    bent = 0.005 * (10.0 + 0.36 * (law.expected_squared_maximum(100) - 1) * 0.5)
    assert fresh == pytest.approx(linear - bent)
    assert (
        plain(trace=Estimate(value=1.0, low=-math.inf, high=math.inf, n=1)).gain(10, 0.1).low
        == -math.inf
    )


def test_the_price_of_a_gain_pays_for_it_and_no_less_does() -> None:
    found = plain(true_gradient=1.0)
    needed = found.needed(0.05, 0.05)
    assert needed is not None
    assert (
        found.gain(needed, 0.05, fresh=True).value
        >= 0.05
        > found.gain(needed - 1, 0.05, fresh=True).value
    )
    assert found.needed(10.0, 0.05) is None
    assert found.local.best_sigma(100) == law.best_sigma(gradient=1.0, trace=10.0, n=100, along=0.5)
    assert found.effective_rank == 25.0


def test_the_diagonal_of_curvature_moves_all_candidates_of_signs_alike() -> None:
    """δ = ±σ on a quadratic with a large diagonal: slope, mean and fluctuation of measures §10, and
    what the probes say of them.
    """
    d, count, sigma = 48, 4000, 0.1
    g, h = planted_quadratic(d, seed=0)
    off = h - torch.diag(h.diagonal())
    assert off.norm() < 0.3 * h.norm()
    stream = NoiseStream(Noise(kind="rademacher"), {"w": (d,)})
    drawn = candidates(count, [sigma], seed=1)
    z = torch.stack([z.clone() for c in drawn for _, _, z in stream.of(c.seed)]).double()
    slopes, bends = sigma * z @ g, sigma**2 / 2 * ((z @ h) * z).sum(1)
    variance = sigma**4 * float(off.square().sum()) / 2
    assert float(slopes.var()) == pytest.approx(sigma**2 * float(g @ g), rel=0.1)
    assert float(bends.var()) == pytest.approx(variance, rel=0.1)
    assert float(bends.mean()) == pytest.approx(
        sigma**2 * float(h.trace()) / 2, abs=4 * math.sqrt(variance / count)
    )
    normal = torch.randn(count, d, generator=torch.Generator().manual_seed(2)).double()
    assert float((sigma**2 / 2 * ((normal @ h) * normal).sum(1)).var()) > 5 * variance
    trace, norm, along = _measured(
        lambda v: h @ v, g, 200, seed=0, step=lambda stage: None, signs=True
    )
    assert norm.value == pytest.approx(float(off.norm()), rel=0.1)
    assert trace.value == pytest.approx(float(h.trace()), abs=0.4 * float(off.norm()))
    assert along == pytest.approx(float(g @ h @ g / (g @ g)))
    alone = _measured(lambda v: h.diagonal() * v, g, 3, seed=0, step=lambda stage: None, signs=True)
    assert alone[1].value == pytest.approx(0, abs=1e-5)
    assert alone[0].low == pytest.approx(alone[0].high)


def planted_quadratic(d: int, *, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g, m = (torch.randn(*shape, generator=generator).double() for shape in ((d,), (d, d)))
    return g, 0.04 * (m + m.T) + torch.diag(1 + torch.rand(d, generator=generator).double())


def test_real_candidates_gain_what_was_forecast(damaged: Problem) -> None:
    """Inside the edge, over all draws of n of 400; within the spread of a mean of maxima and the
    probes'.
    """
    space, examples = ParameterSpace(damaged.model, NORMS), some(damaged, 12)
    found = forecast(damaged, space, examples, noise=Noise(), probes=100, seed=1)
    sigma = 0.05 * found.local.edge
    eval_set, perturbed = EvalSet.of(damaged, examples), Perturbed(space, Noise())
    with perturbed:
        outcomes = score(perturbed, eval_set, candidates(400, [sigma], seed=5))
    gains = np.array([found.loss.value - o.loss for o in outcomes])
    for n, observed in zip((10, 40), best_of(gains, [10, 40]), strict=True):
        assert observed == pytest.approx(found.gain(n, sigma).value, rel=0.12)
    assert abs(gains.mean()) < 0.2 * gains.std()


def test_no_curvature_is_no_refusal(damaged: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    space, examples = ParameterSpace(damaged.model, NORMS), some(damaged, 8)
    exact = forecast(damaged, space, examples, noise=Noise(), probes=2, seed=0)
    monkeypatch.setattr(local_law, "twice_differentiable", lambda model: nullcontext())
    differences = forecast(damaged, space, examples, noise=Noise(), probes=2, seed=0)
    assert differences.notes[0].startswith(
        "curvature is taken by finite differences of gradients (expected a model that can be"
    )
    assert exact.trace is not None
    assert differences.trace is not None
    assert differences.trace.value == pytest.approx(exact.trace.value, rel=1e-4)
    half = Problem(
        model=copy.deepcopy(damaged.model).bfloat16(),
        tokenizer=damaged.tokenizer,
        examples=damaged.examples,
    )
    without = forecast(
        half,
        ParameterSpace(half.model, NORMS),
        examples,
        noise=Noise(),
        probes=2,
        seed=0,
    )
    assert (without.trace, without.frobenius, without.along) == (None, None, None)
    assert without.local.best_sigma(10) is None
    assert without.effective_rank is None
    assert without.local.edge == math.inf
    assert without.gain(10, 0.1).value == pytest.approx(
        0.1 * without.gradient * law.expected_maximum(10)
    )
    assert "the forecast is of first order" in without.notes[0]


def test_a_loss_that_is_not_finite_is_refused(damaged: Problem) -> None:
    broken = Problem(
        model=copy.deepcopy(damaged.model), tokenizer=damaged.tokenizer, examples=damaged.examples
    )
    with torch.no_grad():
        next(broken.model.parameters()).fill_(torch.nan)
    space = ParameterSpace(broken.model, NORMS)
    with pytest.raises(
        LoclinError,
        match="a finite loss at the model's own weights, found nan: check model and data",
    ):
        forecast(broken, space, some(damaged, 4), noise=Noise(), probes=1, seed=0)


@pytest.mark.parametrize("count", [10, 24])
def test_the_loss_has_its_interval_by_student_over_groups(damaged: Problem, count: int) -> None:
    """Few groups and many: the half-width is t standard errors, never 1.96 of them."""
    pool = [e for task in damaged.tasks for e in damaged.examples["test"][task]]
    examples = list({e.group: e for e in pool}.values())[:count]
    space, eval_set = ParameterSpace(damaged.model, NORMS), EvalSet.of(damaged, examples)
    found = forecast(damaged, space, examples, noise=Noise(), probes=1, seed=0).loss
    tokens = float(eval_set.tokens.sum()) / count
    error = eval_set.answers()[0].cpu().numpy().std(ddof=1) / tokens / math.sqrt(count)
    half = (found.high - found.low) / 2
    assert found.n == count
    assert half == pytest.approx(stats.t.ppf(0.975, count - 1) * error, rel=0.03)
