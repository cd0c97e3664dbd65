"""What a search will gain, from gradient and curvature before it begins: the law of measures §10 at
this model's own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.curvature import Method, NoSecondDerivative, hessian_operator
from loclin.errors import LoclinError
from loclin.geometry.gramian import exact, inner
from loclin.geometry.krylov import Product
from loclin.models import Problem, twice_differentiable
from loclin.models.exam import Exam
from loclin.parameters import ParameterSpace
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.stats import Estimate, over_examples, over_runs
from loclin.tasks.example import Example

FOLDS = 16  # groups of examples from which the gradient's own noise is read
AT_ONCE = 16  # rows in a pass that is differentiated
Told = Callable[[str], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Coordinates:
    """The independent normal numbers s that a candidate is made of, and how they move the weights:
    δ = σLs.

    Gaussian and low-rank noise: L = I (low-rank noise is not normal, but its coordinates are as
    little correlated). A basis Q: L = Qᵀ. Tied noise: every tensor reads the same stream from its
    start. The law holds with g and H seen through L.

    Attributes:
        dimension: of s.
        lift: s ↦ Ls.
        fold: v ↦ Lᵀv.
    """

    dimension: int
    lift: Product
    fold: Product

    @staticmethod
    def of(space: ParameterSpace, noise: Noise, basis: Float[Tensor, "k D"] | None) -> Coordinates:
        """Those of a search."""
        if basis is not None:
            return Coordinates(
                dimension=len(basis), lift=lambda s: basis.T @ s, fold=lambda v: basis @ v
            )
        if noise.kind != "tied":
            return Coordinates(dimension=space.dimension, lift=lambda s: s, fold=lambda v: v)
        sizes, longest = list(space.sizes), max(space.sizes)

        def fold(vector: Float[Tensor, " D"]) -> Float[Tensor, " longest"]:
            folded = vector.new_zeros(longest)
            for piece in vector.split(sizes):
                folded[: len(piece)] += piece
            return folded

        return Coordinates(
            dimension=longest, lift=lambda s: torch.cat([s[:n] for n in sizes]), fold=fold
        )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The law's numbers at a model's own point, on the select examples; losses in nats per answer
    token.

    Attributes:
        dimension: of the coordinates that are searched.
        weights: ‖θ‖ of the tensors that move.
        coordinates: how many weights those are, D.
        loss, loss_sd: mean loss, and its standard deviation over draws of examples. All candidates
            answer the same examples, so that this noise is common to them and does not hinder
            selection.
        gradient: ‖g‖ on the select examples.
        true_gradient: ‖ḡ‖ that other examples of the kind share: from inner products of g between
            disjoint groups.
        trace, frobenius: tr H and ‖H‖_F with intervals over probes; None where no curvature could
            be taken.
        along: ĝᵀHĝ.
        notes: how curvature was taken.
    """

    dimension: int
    weights: float
    coordinates: int
    loss: float
    loss_sd: float
    gradient: float
    true_gradient: float
    trace: Estimate | None
    frobenius: Estimate | None
    along: float | None
    notes: tuple[str, ...]

    @property
    def evaluation_noise(self) -> float:
        """τ/σ = √(‖g‖² − ‖ḡ‖²): what of a candidate's gain on the select examples is theirs alone,
        to first order.
        """
        return math.sqrt(max(self.gradient**2 - self.true_gradient**2, 0.0))

    @property
    def edge(self) -> float:
        """σ at which the curvature's fluctuation is as large as the slope; infinite where curvature
        is not known.
        """
        if self.frobenius is None:
            return math.inf
        return law.valid_up_to(gradient=self.gradient, frobenius=self.frobenius.value)

    @property
    def effective_rank(self) -> float | None:
        """r = (tr H)²/‖H‖_F²: the law asks for m_N ≪ √(2r)."""
        if self.trace is None or self.frobenius is None or not self.frobenius.value:
            return None
        return (self.trace.value / self.frobenius.value) ** 2

    def best_sigma(self, n: int) -> float | None:
        """σ* for N candidates on the select examples; None where curvature sets no best one."""
        if self.trace is None or self.along is None:
            return None
        return law.best_sigma(gradient=self.gradient, trace=self.trace.value, n=n, along=self.along)

    def gain(self, n: int, sigma: float, *, fresh: bool = False) -> Estimate:
        """Expected gain of the best of N, with the interval that the probes' interval of tr H gives
        it.

        Args:
            n: N.
            sigma: σ.
            fresh: on other examples than those that selected it, rather than on the select examples
                themselves.
        """
        trace = self.trace or Estimate(value=0.0, low=0.0, high=0.0, n=1)

        def at(value: float) -> float:
            return law.best_of_n_gain(
                gradient=self.true_gradient if fresh else self.gradient,
                trace=value,
                along=self.along or 0.0,
                n=n,
                sigma=sigma,
                noise=sigma * self.evaluation_noise if fresh else 0.0,
            )

        bounds = [
            at(t) if math.isfinite(t) else math.copysign(math.inf, -t)
            for t in (trace.high, trace.low)
        ]
        return Estimate(value=at(trace.value), low=bounds[0], high=bounds[1], n=trace.n)

    def needed(self, wish: float, sigma: float) -> int | None:
        """Candidates that a wished gain takes on other examples at a σ; None where a million would
        not do.
        """
        return law.candidates_needed(
            wish,
            gradient=self.true_gradient,
            trace=self.trace.value if self.trace else 0.0,
            along=self.along or 0.0,
            sigma=sigma,
            noise=sigma * self.evaluation_noise,
        )


def foretold(
    problem: Problem,
    space: ParameterSpace,
    examples: Sequence[Example],
    *,
    noise: Noise,
    basis: Float[Tensor, "k D"] | None = None,
    probes: int,
    seed: int,
    told: Told,
) -> Forecast:
    """Measure what the law needs where the model stands.

    Nothing is refused: where attention cannot be differentiated twice, curvature is taken by finite
    differences of gradients, and where that cannot be done either (half precision, no memory) the
    forecast is of first order; the notes say so.

    Args:
        problem: the model.
        space: the tensors that move.
        examples: the select split.
        noise: of the candidates.
        basis: orthonormal rows, where candidates lie in their span.
        probes: Hessian-vector products behind trace and norm, beside one along the gradient.
        seed: of the probes.
        told: called with what is done next, before every pass.

    Raises:
        LoclinError: a loss that is not finite at the model's own weights.
    """
    coordinates = Coordinates.of(space, noise, basis)
    groups = len({e.group or e.prompt for e in examples})
    exam = Exam.of(problem, examples, folds=min(FOLDS, groups), at_once=AT_ONCE)
    told("asking the model itself")
    loss, loss_sd = _own_loss(exam, examples, seed=seed)
    gradient, true_gradient = _gradients(space, exam, coordinates, told)
    length = float(exact(gradient).norm())
    held, notes = _curvature(
        space, exam, coordinates, gradient, probes, derived(seed, "forecast"), told
    )
    if noise.kind == "lowrank":
        notes.append(
            f"noise of rank {noise.rank} is not normal: the law's slope and trace hold, its tails "
            "are heavier"
        )
    return Forecast(
        dimension=coordinates.dimension,
        weights=float(exact(space.read()).norm()),
        coordinates=space.dimension,
        loss=loss,
        loss_sd=loss_sd,
        gradient=length,
        true_gradient=min(true_gradient, length),
        trace=over_runs(held.forms) if held else None,
        frobenius=_root(over_runs(held.squares)) if held else None,
        along=held.along if held else None,
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Curvature:
    """zᵀHz and ‖Hz‖² of every probe, and ĝᵀHĝ, in the coordinates of the search."""

    forms: Float[np.ndarray, " n"]
    squares: Float[np.ndarray, " n"]
    along: float


def _own_loss(exam: Exam, examples: Sequence[Example], *, seed: int) -> tuple[float, float]:
    """Mean loss per answer token, and its standard deviation by the bootstrap over groups of
    examples.
    """
    losses = exam.answers()[0].cpu().numpy()
    if not np.isfinite(losses).all():
        raise LoclinError(
            "expected a finite loss at the model's own weights, found "
            f"{losses[~np.isfinite(losses)][0]}: check model and data"
        )
    tokens = float(exam.tokens.sum()) / len(examples)
    found = over_examples(
        losses / tokens, groups=[e.group or e.prompt for e in examples], seed=seed
    )
    return found.value, (found.high - found.low) / 2 / 1.96 if math.isfinite(
        found.low
    ) else math.inf


def _gradients(
    space: ParameterSpace, exam: Exam, coordinates: Coordinates, told: Told
) -> tuple[Float[Tensor, " d"], float]:
    """The gradient in the coordinates of the search, and ‖ḡ‖ by `shared_square`; a square below 0,
    where there is no signal, is 0.
    """
    shares = exam.tokens / exam.tokens.sum()
    total, own = None, 0.0
    for fold, share in enumerate(shares.tolist()):
        told("taking gradients")
        piece = share * coordinates.fold(space.gradient(exam.loss, exam.fold(fold)))
        own += float(exact(piece).square().sum())
        total = piece if total is None else total + piece
    assert total is not None
    return total, math.sqrt(
        max(shared_square(float(exact(total).square().sum()), own, shares), 0.0)
    )


def shared_square(whole: float, own: float, shares: Float[np.ndarray, " folds"]) -> float:
    """‖ḡ‖² without bias, from gradients g_a of disjoint groups of examples: [‖Σ w_a g_a‖² − Σ ‖w_a
    g_a‖²]/(1 − Σ w_a²).

    What is left are the inner products of different groups, whose noise is independent. May be
    below 0.

    Args:
        whole: ‖Σ w_a g_a‖².
        own: Σ ‖w_a g_a‖².
        shares: w_a, the groups' shares of the answer tokens; a single group tells nothing, and
            keeps `whole`.

    >>> shared_square(1.0, 0.5, np.array([0.5, 0.5]))  # two equal gradients of norm 1
    1.0
    """
    left = 1 - float((shares**2).sum())
    return (whole - own) / left if len(shares) > 1 else whole


def _curvature(
    space: ParameterSpace,
    exam: Exam,
    coordinates: Coordinates,
    gradient: Float[Tensor, " d"],
    count: int,
    seed: int,
    told: Told,
) -> tuple[_Curvature | None, list[str]]:
    """Exactly where the model allows it, by finite differences where it does not, or not at all;
    and what is to be said.
    """
    batches = [batch for fold in range(exam.count) for batch in exam.fold(fold)]
    attention = exam.problem.model.config._attn_implementation
    reasons: list[str] = []
    methods: tuple[Method, ...] = ("double backward", "finite differences")
    for method in methods:
        switched = (
            twice_differentiable(exam.problem.model)
            if method == "double backward"
            else nullcontext()
        )
        try:
            with switched:
                product = hessian_operator(space, exam.loss, batches, method=method)

                def seen(s: Tensor, product: Product = product) -> Tensor:
                    return coordinates.fold(product(coordinates.lift(s)))

                found = _probed(seen, gradient, count, seed, told)
        except NoSecondDerivative as error:
            reasons.append(str(error).rsplit(": ", 1)[0])
        except torch.OutOfMemoryError:
            reasons.append("no memory for second derivatives")
        except LoclinError as error:  # half precision rounds every step that is still small
            reasons.append(str(error).rsplit(": ", 1)[0])
        else:
            if method == "finite differences":
                return found, [
                    f"curvature is taken by finite differences of gradients ({reasons[0]})"
                ]
            switch = (
                []
                if attention == "eager"
                else [f"attention was switched from {attention} to eager for it"]
            )
            return found, switch
    return None, [
        f"no curvature could be taken ({'; '.join(reasons)}): the forecast is of first order"
    ]


def _probed(
    product: Product, gradient: Float[Tensor, " d"], count: int, seed: int, told: Told
) -> _Curvature:
    told("taking curvature along the gradient")
    length = exact(gradient).norm()
    unit = gradient / length.to(gradient) if length else gradient
    along = inner(unit, product(unit))
    forms, squares = np.empty(count), np.empty(count)
    for i in range(count):
        told("taking curvature along random directions")
        generator = torch.Generator().manual_seed(derived(seed, "probe", i))
        z = torch.randn(len(gradient), generator=generator).to(gradient)
        image = exact(product(z))
        forms[i], squares[i] = float(exact(z) @ image), float(image @ image)
    return _Curvature(forms=forms, squares=squares, along=along)


def _root(square: Estimate) -> Estimate:
    low, value, high = (math.sqrt(max(x, 0.0)) for x in (square.low, square.value, square.high))
    return Estimate(value=value, low=low, high=high, n=square.n)
