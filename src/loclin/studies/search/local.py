"""What the law needs to know of a point: gradient and curvature of the scored loss, in all
coordinates or in a subspace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin import law
from loclin.curvature import hessian_operator, probes
from loclin.geometry.gramian import exact, inner
from loclin.geometry.krylov import Product
from loclin.models import Problem, twice_differentiable
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.forecast import Coordinates
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.tasks.batch import Batch, answer_loss

# of the σ at which the curvature's fluctuation is as large as the slope: what the law's "well
# below" is taken to be
DOMAIN = 0.25

Vector = Float[Tensor, " D"]


@dataclass(frozen=True, kw_only=True)
class Local:
    """A loss to second order, as far as the law sees it (measures §10).

    Attributes:
        gradient: ‖g‖ in the space that is searched (nats per answer token and unit of weight).
        trace: tr H there.
        along: ĝᵀHĝ.
        frobenius: ‖H‖_F.
    """

    gradient: float
    trace: float
    along: float
    frobenius: float

    def gain(self, n: int, sigma: float) -> float:
        """The law's gain of the best of N at σ."""
        return law.best_of_n_gain(
            gradient=self.gradient, trace=self.trace, along=self.along, n=n, sigma=sigma
        )

    def reference(self, n: int) -> float:
        """The σ that others are relative to: σ* of the law for N, or, where it is smaller or there
        is no σ*, its validity edge.
        """
        best = law.best_sigma(gradient=self.gradient, trace=self.trace, along=self.along, n=n)
        edge = law.valid_up_to(gradient=self.gradient, frobenius=self.frobenius)
        return edge if best is None else min(best, edge)

    def holds(self, n: int, sigma: float) -> bool:
        """Whether σ is in the law's domain: up to a quarter of the validity edge, and up to σ*."""
        best = law.best_sigma(gradient=self.gradient, trace=self.trace, along=self.along, n=n)
        edge = DOMAIN * law.valid_up_to(gradient=self.gradient, frobenius=self.frobenius)
        return sigma <= edge * (1 + 1e-9) and (best is None or sigma <= best)

    def bends_at(self, n: int, departure: float) -> float:
        """The σ at which the law's gain has departed by a share from its linear part: 2τ‖g‖m_N /
        |tr H + (E[M²]−1)ĝᵀHĝ|.
        """
        bent = abs(self.trace + (law.expected_squared_maximum(n) - 1) * self.along)
        return 2 * departure * self.gradient * law.expected_maximum(n) / bent if bent else math.inf


@contextmanager
def second_order(
    problem: Problem, space: ParameterSpace, batches: Sequence[Batch], *, differences: bool
) -> Iterator[Product]:
    """v ↦ Hv of the batches' mean answer loss, as long as the space stands where it does and
    nothing has moved it.

    Args:
        problem: the model.
        space: the coordinates.
        batches: what the loss is over.
        differences: by finite differences of gradients rather than by differentiating twice.
    """
    loss = partial(answer_loss, problem.model)
    if differences:
        yield hessian_operator(space, loss, batches, method="finite differences")
        return
    with twice_differentiable(problem.model):
        yield hessian_operator(space, loss, batches)


def in_space(
    product: Product, space: ParameterSpace, gradient: Vector, count: int, *, seed: int
) -> Local:
    """In all coordinates of a space, trace and norm from random probes.

    Args:
        product: v ↦ Hv there.
        space: the coordinates.
        gradient: g there.
        count: of probes.
        seed: of the probes.
    """
    found, g = probes(product, space, count, seed=seed), exact(gradient)
    length = float(g.norm())
    unit = gradient / max(length, 1e-300)
    return Local(
        gradient=length,
        trace=float(found.forms.mean()),
        along=inner(unit, product(unit)),
        frobenius=math.sqrt(float(found.squares.mean())),
    )


def in_subspace(product: Product, gradient: Vector, basis: Float[Tensor, "k D"]) -> Local:
    """In the span of orthonormal rows: Qg and QHQᵀ, exactly, by k products."""
    g = exact(basis) @ exact(gradient)
    h = torch.stack([exact(basis) @ exact(product(row)) for row in basis])
    return of_matrix(g.cpu().numpy(), h.cpu().numpy())


def of_matrix(g: Float[np.ndarray, " k"], h: Float[np.ndarray, "k k"]) -> Local:
    """A gradient and a Hessian that are written out.

    >>> of_matrix(np.array([3.0, 4.0]), np.eye(2))
    Local(gradient=5.0, trace=2.0, along=1.0, frobenius=1.4142135623730951)
    """
    length = float(np.linalg.norm(g))
    return Local(
        gradient=length,
        trace=float(np.trace(h)),
        along=float(g @ h @ g) / length**2 if length else 0.0,
        frobenius=float(np.linalg.norm(h)),
    )


def tied(
    product: Product, space: ParameterSpace, gradient: Vector, count: int, *, seed: int
) -> Local:
    """For tied noise: gradient and Hessian folded over the tensors, every one of which takes its
    first numbers from one stream.

    Args:
        product: v ↦ Hv in all coordinates.
        space: the coordinates.
        gradient: g.
        count: of probes.
        seed: of the probes.
    """
    folded, moved = (
        Coordinates.of(space, Noise(kind="tied"), None),
        Perturbed(space, Noise(kind="tied")),
    )
    g = folded.fold(gradient)
    length = float(exact(g).norm())
    unit = folded.lift(g / max(length, 1e-300))
    forms = []
    for i in range(count):  # sᵀ(LᵀHL)s = zᵀHz, z = Ls the tied noise itself
        z = moved.vector(Candidate(index=i, seed=derived(seed, "tied probe", i), sigma=1.0)).to(
            gradient
        )
        forms.append(inner(z, product(z)))
    return Local(
        gradient=length,
        trace=float(np.mean(forms)),
        along=inner(unit, product(unit)),
        frobenius=math.nan,
    )
