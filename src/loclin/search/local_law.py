"""The law of random search at one point (measures §10): gradient and curvature of the scored loss,
in all coordinates or in a subspace, and what they say of a search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.curvature import CurvatureOperator, Method, probes
from loclin.geometry.gramian import inner, norm, to_float64
from loclin.geometry.krylov import Product
from loclin.models import Problem, twice_differentiable
from loclin.parameters import ParameterSpace, SummedLoss
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.noise import Noise
from loclin.seeds import derived

T = TypeVar("T")
Vector = Float[Tensor, " D"]
DOMAIN = 0.25  # of `LocalLaw.edge`: "well below" it, up to where the law is taken to hold
CUBES = 4  # probes behind tr H³, a second product each: a part of a correction


@dataclass(frozen=True, kw_only=True)
class LocalLaw:
    """A loss to second order in the space that is searched, as far as the law sees it.

    Attributes:
        gradient: ‖g‖ (nats per answer token and unit of weight).
        trace: tr H.
        along: ĝᵀHĝ.
        frobenius: ‖H‖_F.
        cube: tr H³; NaN where it was not measured.
    """

    gradient: float
    trace: float
    along: float
    frobenius: float
    cube: float = math.nan

    @property
    def edge(self) -> float:
        """σ at which the curvature's fluctuation is as large as the slope (`law.valid_up_to`)."""
        return law.valid_up_to(gradient=self.gradient, frobenius=self.frobenius)

    def gain(self, n: int, sigma: float, *, noise: float = 0.0) -> float:
        """Expected gain of the best of N at σ under evaluation noise τ (`law.best_of_n_gain`)."""
        g, trace, along = self.gradient, self.trace, self.along
        return law.best_of_n_gain(
            gradient=g, trace=trace, along=along, n=n, sigma=sigma, noise=noise
        )

    def second_order_gain(self, n: int, sigma: float) -> float:
        """The same with the curvature's fluctuation (`law.second_order_gain`); NaN where ‖H‖_F or
        tr H³ is not known.
        """
        if math.isnan(self.frobenius + self.cube):
            return math.nan
        return law.second_order_gain(n=n, sigma=sigma, **asdict(self))

    def linear_gain(self, n: int, sigma: float) -> float:
        """What the slope alone gains: σ‖g‖m_N."""
        return sigma * self.gradient * law.expected_maximum(n)

    def best_sigma(self, n: int) -> float | None:
        """σ* for the best of N (`law.best_sigma`); None where curvature sets no best one."""
        return law.best_sigma(gradient=self.gradient, trace=self.trace, along=self.along, n=n)

    def reference(self, n: int) -> float:
        """The σ that others are relative to: σ*, or `edge` where it is smaller or σ* is None."""
        best = self.best_sigma(n)
        return self.edge if best is None else min(best, self.edge)

    def domain(self, n: int) -> float:
        """The largest σ at which the law is taken to hold: a quarter of `edge`, or σ* below it."""
        best = self.best_sigma(n)
        return DOMAIN * self.edge if best is None else min(best, DOMAIN * self.edge)

    def in_domain(self, n: int, sigma: float) -> bool:
        """Whether the law is taken to hold at σ."""
        return sigma <= self.domain(n) * (1 + 1e-9)

    def bends_at(self, n: int, departure: float) -> float:
        """The σ at which the gain has departed by a share τ from its linear part: 2τ‖g‖m_N /
        |tr H + (E[M²]−1)ĝᵀHĝ|.
        """
        bent = abs(self.trace + (law.expected_squared_maximum(n) - 1) * self.along)
        return 2 * departure * self.gradient * law.expected_maximum(n) / bent if bent else math.inf

    @staticmethod
    def by_probes(
        product: Product, gradient: Vector, count: int, *, seed: int, noise: Callable[..., Tensor]
    ) -> LocalLaw:
        """In all coordinates, from g and v ↦ Hv; traces and norm from random probes z, whose
        arguments are those of `curvature.probes`: tr H³ = E[(Hz)ᵀH(Hz)], by the first few.
        """
        images = list[Tensor]()

        def kept(v: Tensor) -> Tensor:
            image = product(v)
            if len(images) < CUBES:
                images.append(image)
            return image

        sums = probes(kept, count, seed=seed, noise=noise)
        return LocalLaw(
            gradient=norm(gradient),
            trace=float(sums.forms.mean()),
            along=along_gradient(product, gradient),
            frobenius=math.sqrt(float(sums.squares.mean())),
            cube=float(np.mean([inner(image, product(image)) for image in images])),
        )

    @staticmethod
    def in_subspace(product: Product, gradient: Vector, basis: Float[Tensor, "k D"]) -> LocalLaw:
        """In the span of orthonormal rows: Qg and QHQᵀ, exactly, by k products."""
        g = to_float64(basis) @ to_float64(gradient)
        h = torch.stack([to_float64(basis) @ to_float64(product(row)) for row in basis])
        return LocalLaw.of_matrix(g.cpu().numpy(), h.cpu().numpy())

    @staticmethod
    def of_matrix(g: Float[np.ndarray, " k"], h: Float[np.ndarray, "k k"]) -> LocalLaw:
        """Of a gradient and a Hessian that are written out.

        >>> LocalLaw.of_matrix(np.array([3.0, 4.0]), np.eye(2))
        LocalLaw(gradient=5.0, trace=2.0, along=1.0, frobenius=1.4142135623730951, cube=2.0)
        """
        length = float(np.linalg.norm(g))
        along = float(g @ h @ g) / length**2 if length else 0.0
        return LocalLaw(
            gradient=length,
            trace=float(np.trace(h)),
            along=along,
            frobenius=float(np.linalg.norm(h)),
            cube=float(np.trace(h @ h @ h)),
        )

    @staticmethod
    def of_tied_noise(
        product: Product, space: ParameterSpace, gradient: Vector, count: int, *, seed: int
    ) -> LocalLaw:
        """Under tied noise: gradient and Hessian folded over the tensors (`Coordinates`), the trace
        from `count` probes. ‖H‖_F and tr H³ are not measured: NaN.
        """
        tied = Noise(kind="tied")
        folded, perturbed = Coordinates.of(space, tied, None), Perturbed(space, tied)
        g, forms = folded.fold(gradient), []
        unit = folded.lift(_unit(g))
        for i in range(count):  # sᵀ(LᵀHL)s = zᵀHz, z = Ls the tied noise itself
            probe = Candidate(index=i, seed=derived(seed, "tied probe", i), sigma=1.0)
            z = perturbed.vector(probe).to(gradient)
            forms.append(inner(z, product(z)))
        length, along = norm(g), inner(unit, product(unit))
        trace = float(np.mean(forms))
        return LocalLaw(gradient=length, trace=trace, along=along, frobenius=math.nan)


@dataclass(frozen=True, eq=False, kw_only=True)
class Coordinates:
    """The independent normal numbers s that a candidate is made of, and how they move the weights:
    δ = σLs. The law holds with g and H seen through L.

    Gaussian and low-rank noise: L = I (low-rank noise is not normal, but its coordinates are as
    little correlated). A basis Q: L = Qᵀ. Tied noise: every tensor reads the same stream from its
    start.

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
            k = len(basis)
            return Coordinates(dimension=k, lift=lambda s: basis.T @ s, fold=lambda v: basis @ v)
        if noise.kind != "tied":
            return Coordinates(dimension=space.dimension, lift=lambda s: s, fold=lambda v: v)
        sizes, longest = list(space.sizes), max(space.sizes)

        def fold(vector: Vector) -> Float[Tensor, " longest"]:
            folded = vector.new_zeros(longest)
            for piece in vector.split(sizes):
                folded[: len(piece)] += piece
            return folded

        def lift(s: Float[Tensor, " longest"]) -> Vector:
            return torch.cat([s[:n] for n in sizes])

        return Coordinates(dimension=longest, lift=lift, fold=fold)

    def seen(self, product: Product) -> Product:
        """s ↦ LᵀHLs, from v ↦ Hv."""
        return lambda s: self.fold(product(self.lift(s)))


def along_gradient(product: Product, gradient: Vector) -> float:
    """ĝᵀHĝ by one product; 0 where there is no gradient."""
    unit = _unit(gradient)
    return inner(unit, product(unit))


def _unit(vector: Tensor) -> Tensor:
    length = norm(vector)
    return vector / length if length else vector


@contextmanager
def second_order(
    problem: Problem,
    space: ParameterSpace,
    loss: SummedLoss[T],
    batches: Sequence[T],
    method: Method = "double backward",
) -> Iterator[CurvatureOperator[T]]:
    """The Hessian of a mean loss where the space stands, with the model's attention switched where
    the method asks for it. The operator is of use inside, until something moves.
    """
    twice = method == "double backward"
    with twice_differentiable(problem.model) if twice else nullcontext():
        yield CurvatureOperator(space, loss, batches, method=method)
