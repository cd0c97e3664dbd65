"""The Hessian of a loss by its products with vectors: eigenpairs, trace, Frobenius norm."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import at_least_float32, inner, norm
from loclin.geometry.krylov import Product
from loclin.parameters import ParameterSpace, SummedLoss, finite_loss, some_items, summed
from loclin.seeds import derived
from loclin.stats import Estimate, over_runs

T = TypeVar("T")
Method = Literal["double backward", "finite differences"]

#: Share of ‖θ‖ over which gradients are taken to bend. On the built-in models, at and off their
#: minimum, differences with this step are within 2 % of the true product in float32, 1e-7 in
#: float64.
BEND = 0.01


class NoSecondDerivative(LoclinError):
    """A model that cannot be differentiated twice: finite differences of its gradients are left."""


class CurvatureOperator(Generic[T]):
    """H = ∇²(Σ_b loss_b / Σ_b count_b) at the point θ where the space stands, by `operator @ v`.

    "double backward" differentiates gᵀv (Pearlmutter 1994; measures §8); with transformers, stay
    inside `models.twice_differentiable`. For one batch the gradient's graph is made here and kept,
    which saves a third of every product; the operator is then of no use once the point has moved.
    "finite differences" is [∇L(θ+hv̂) − ∇L(θ−hv̂)]·‖v‖/2h, v̂ = v/‖v‖, in float32 or float64.

    Args:
        space: the D coordinates; it also draws probes and starting vectors.
        loss: summed over the items of a batch, and how many those are; or a scalar, the mean.
        batches: what the mean is over.
        method: how products are made.

    Raises:
        LoclinError: a loss that is not finite, no items (for several batches by the product).
        NoSecondDerivative: by the product, where a kernel has none.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> loss = lambda rows: (layer(rows).square().sum(), len(rows))
    >>> H = CurvatureOperator(ParameterSpace(layer), loss, [x])
    >>> H.shape, H @ torch.tensor([1.0, 0.0])  # 2xᵀx/n = [[1, 2], [2, 5]]
    ((2, 2), tensor([1., 2.]))
    """

    def __init__(
        self,
        space: ParameterSpace,
        loss: SummedLoss[T],
        batches: Sequence[T],
        *,
        method: Method = "double backward",
    ) -> None:
        self.space, self.method = space, method
        self._loss, self._batches = loss, batches
        alone = method == "double backward" and len(batches) == 1
        self._kept = self._graph(batches[0]) if alone else None
        if self._kept:
            some_items(self._kept[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(D, D)."""
        return self.space.dimension, self.space.dimension

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.space.parameters[0].dtype

    def __repr__(self) -> str:
        return (
            f"CurvatureOperator(D = {self.space.dimension}, {len(self._batches)} batches, "
            f"{self.dtype}, {self.method})"
        )

    def __matmul__(self, vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        if self.method == "finite differences":
            return finite_difference_product(self.space, self._loss, self._batches, vector)
        try:
            return self._double_backward(vector)
        except RuntimeError as error:
            kernel = re.fullmatch(r"derivative for (\S+) is not implemented", str(error).strip())
            if kernel is None:
                raise
            raise NoSecondDerivative(
                "expected a model that can be differentiated twice, found a kernel that cannot "
                f"({kernel[1]}): switch attention to eager, or choose finite differences"
            ) from error

    def __call__(self, vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """`operator @ vector`: an operator is a `Product`."""
        return self @ vector

    def to_scipy(self) -> LinearOperator:
        """The operator for SciPy, in float32 or float64, on the CPU."""
        return _scipy(self, self.space.dimension, self.dtype, self.space.parameters[0].device)

    def _graph(self, batch: T) -> tuple[Sequence[Tensor | None], int]:
        """The gradient of a batch's summed loss with the graph behind it, and its items."""
        value, items = summed(self._loss(batch))
        return torch.autograd.grad(
            finite_loss(value), self.space.parameters, create_graph=True, allow_unused=True
        ), items

    def _double_backward(self, vector: Tensor) -> Tensor:
        total, count = None, 0
        for first, items in [self._kept] if self._kept else map(self._graph, self._batches):
            product = self._differentiated(first, vector)
            total = product if total is None else total.add_(product)
            count += items
        some_items(count)
        assert total is not None
        if not bool(torch.isfinite(total).all()):
            raise NoSecondDerivative(
                "expected second derivatives that are numbers, found NaN or infinity: choose "
                "finite differences"
            )
        return total.div_(count)

    def _differentiated(self, first: Sequence[Tensor | None], vector: Tensor) -> Tensor:
        pieces = zip(first, self.space.by_tensor(vector).values(), strict=True)
        # a tensor that takes no part, or that the loss is linear in, has no second derivatives
        bent = [(g, v.to(g)) for g, v in pieces if g is not None and g.requires_grad]
        if not bent:
            return torch.zeros_like(vector)
        gradients, directions = zip(*bent, strict=True)
        products = torch.autograd.grad(
            gradients,
            self.space.parameters,
            grad_outputs=directions,
            retain_graph=self._kept is not None,
            allow_unused=True,
        )
        return self.space.flat(products).to(vector)


def finite_difference_product(
    space: ParameterSpace, loss: SummedLoss[T], batches: Sequence[T], vector: Float[Tensor, " D"]
) -> Float[Tensor, " D"]:
    """Hv ≈ [∇L(θ+hv̂) − ∇L(θ−hv̂)]·‖v‖/2h, v̂ = v/‖v‖; the space comes back bit for bit.

    The error of the difference grows as h², that of rounding as u/h; they meet near u^{1/3} times
    the length over which the gradient bends. A hundredth of ‖θ‖ stands for that length (`BEND`): h
    = 0.01 u^{1/3} ‖θ‖, u the unit round-off. Raises `LoclinError` for weights in half precision,
    whose rounding is larger than any small step, and as `ParameterSpace.gradient` does.
    """
    kind = space.parameters[0].dtype
    if kind not in (torch.float32, torch.float64):
        raise LoclinError(
            f"expected float32 weights for finite differences, found {kind}: choose --dtype float32"
        )
    length = norm(vector)
    if length == 0:
        return torch.zeros_like(vector)
    centre = space.read()
    step = BEND * (torch.finfo(kind).eps / 2) ** (1 / 3) * norm(centre) / length
    try:
        space.write(centre + step * vector)
        ahead = space.gradient(loss, batches)
        space.write(centre - step * vector)
        return ahead.sub_(space.gradient(loss, batches)).div_(2 * step)
    finally:
        space.write(centre)


def top_eigenpairs(
    product: Product,
    k: int,
    *,
    seed: int = 0,
    start: Float[Tensor, " D"] | None = None,
    remedy: str = "lower --k",
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k D"]]:
    """The k algebraically largest λ with Hv = λv, largest first, and the v as rows of length one.

    By ARPACK's restarted Lanczos, to a relative residual of 1 % (a basis of measures §4).

    Args:
        product: a `CurvatureOperator`, or any v ↦ Hv with H symmetric.
        k: from 1 to D − 1.
        seed: of the starting vector, drawn in the operator's own space.
        start: another starting vector, whose dtype and device the result has.
        remedy: for the message, where eigenvectors do not converge.

    Raises:
        LoclinError: no such k, fewer than k converge, or a plain function without a start.

    >>> H = torch.diag(torch.tensor([1.0, 5.0, 3.0, 2.0]))
    >>> values, vectors = top_eigenpairs(lambda v: H @ v, 2, start=torch.ones(4))
    >>> values, vectors.abs().round(decimals=3)[0]
    (tensor([5.0000, 3.0000]), tensor([0., 1., 0., 0.]))
    """
    if start is None:
        start = _space(product, "start").noise(seed=seed)
    if not 1 <= k < len(start):
        raise LoclinError(
            f"expected k from 1 to D − 1 = {len(start) - 1}, found {k}: choose another k"
        )
    operator = _scipy(product, len(start), start.dtype, start.device)
    first, room = at_least_float32(start).cpu().numpy(), min(4 * k + 5, len(start))
    try:
        values, vectors = eigsh(operator, k=k, which="LA", v0=first, tol=1e-2, ncv=room, maxiter=20)
    except ArpackNoConvergence as error:
        raise LoclinError(
            f"expected {k} Hessian eigenvectors to converge, found {len(error.eigenvalues)}: "
            f"{remedy}"
        ) from error
    order = np.argsort(-values)
    rows = torch.from_numpy(np.ascontiguousarray(vectors[:, order].T))
    return torch.from_numpy(values[order]).to(start.device), rows.to(start.device)


@dataclass(frozen=True, eq=False, kw_only=True)
class Probes:
    """What n random probes z ~ N(0, I) say of H.

    Attributes:
        forms: zᵀHz, of mean tr H and variance 2‖H‖_F².
        squares: ‖Hz‖², of mean ‖H‖_F² and variance 2 tr H⁴.
    """

    forms: Float[np.ndarray, " n"]
    squares: Float[np.ndarray, " n"]


def probes(
    product: Product, count: int, *, seed: int, noise: Callable[..., Tensor] | None = None
) -> Probes:
    """Independent samples whose means are tr H and ‖H‖_F², one product each; see `trace`."""
    if count < 1:
        raise LoclinError(f"expected at least 1 probe, found {count}: raise --probes")
    draw = noise or _space(product, "noise").noise
    forms, squares = np.empty(count), np.empty(count)
    for i in range(count):
        z = draw(seed=derived(seed, "probe", i))
        image = product(z)
        forms[i], squares[i] = inner(z, image), inner(image, image)
    return Probes(forms=forms, squares=squares)


def trace(
    product: Product, count: int, *, seed: int, noise: Callable[..., Tensor] | None = None
) -> Estimate:
    """tr H = E[zᵀHz], z ~ N(0, I), with a 95 % interval over the probes; one product each.

    The estimator of Girard (1989) and Hutchinson (1990), with Gaussian probes.

    Args:
        product: a `CurvatureOperator`, or any v ↦ Hv.
        count, seed: of the probes.
        noise: draws z for a keyword `seed`; by default the operator's space does.

    Raises:
        LoclinError: no probes, or a plain function without noise.

    >>> print(trace(lambda v: 2 * v, 100, seed=0, noise=lambda seed: torch.ones(3)))
    6 [6, 6]
    """
    return over_runs(probes(product, count, seed=seed, noise=noise).forms)


def _space(product: Product, missing: str) -> ParameterSpace:
    if not isinstance(product, CurvatureOperator):
        raise LoclinError(
            f"expected a CurvatureOperator, found a plain function: give `{missing}` with it"
        )
    return product.space


def _scipy(
    product: Product, dimension: int, dtype: torch.dtype, device: torch.device
) -> LinearOperator:
    kind = at_least_float32(torch.empty(0, dtype=dtype)).numpy().dtype

    def apply(vector: np.ndarray) -> np.ndarray:
        image = product(torch.from_numpy(vector.astype(kind)).reshape(-1).to(device))
        result: np.ndarray = image.cpu().numpy()
        return result

    return LinearOperator((dimension, dimension), matvec=apply, rmatvec=apply, dtype=kind)
