"""Curvature of a loss by Hessian-vector products alone: eigenpairs, trace and Frobenius norm, a
fallback by differences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import exact
from loclin.geometry.krylov import Product
from loclin.parameters import ParameterSpace, SummedLoss
from loclin.seeds import derived

T = TypeVar("T")

#: Over which share of ‖θ‖ gradients are taken to bend. On the built-in models at and off their
#: minimum, along the gradient, the top eigenvector and noise, differences with this step are within
#: 2 % of the exact product in float32, 1e-7 in float64.
BEND = 0.01
Method = Literal["double backward", "finite differences"]


class NoSecondDerivative(LoclinError):
    """A model that cannot be differentiated twice: finite differences of its gradients are left."""


def hessian_operator(
    space: ParameterSpace,
    loss: SummedLoss[T],
    batches: Sequence[T],
    *,
    method: Method = "double backward",
) -> Product:
    """v ↦ Hv of the mean loss over all items of the batches, at the point where the space stands.

    Double backward is exact but asks for attention that can be differentiated twice
    (`models.twice_differentiable`). Where there is one batch, its gradient and the graph behind it
    are made once and kept from product to product, which saves a third of the work and needs no
    more memory than one product does; the operator is then of no use once the point has moved.

    Raises:
        LoclinError: a loss that is not finite, no items.
        NoSecondDerivative: by the product, for a kernel that has none.
    """
    if method == "finite differences":
        return lambda v: finite_difference_product(space, loss, batches, v)
    alone = len(batches) == 1
    exactly = (
        _kept_product(space, loss, batches[0])
        if alone
        else partial(space.hessian_product, loss, batches)
    )

    def product(vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        try:
            return exactly(vector)
        except RuntimeError as error:
            kernel = re.fullmatch(r"derivative for (\S+) is not implemented", str(error).strip())
            if kernel is None:
                raise
            raise NoSecondDerivative(
                "expected a model that can be differentiated twice, found a kernel that cannot "
                f"({kernel[1]}): switch attention "
                "to eager, or choose finite differences"
            ) from error

    return product


def _kept_product(space: ParameterSpace, loss: SummedLoss[T], batch: T) -> Product:
    value, items = loss(batch)
    if not torch.isfinite(value):
        raise LoclinError(
            f"expected a finite loss, found {value.item()}: lower the learning rate or check the "
            "data"
        )
    if items == 0:
        raise LoclinError("expected a batch with items to average over, found none: give more data")
    first = torch.autograd.grad(value, space.parameters, create_graph=True, allow_unused=True)
    # a tensor that takes no part, or that the loss is linear in, has no second derivatives
    bent = [i for i, g in enumerate(first) if g is not None and g.requires_grad]

    def product(vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        if not bent:
            return torch.zeros_like(vector)
        pieces = [
            v.to(p) for v, p in zip(space.by_tensor(vector).values(), space.parameters, strict=True)
        ]
        found = torch.autograd.grad(
            [first[i] for i in bent],
            space.parameters,
            grad_outputs=[pieces[i] for i in bent],
            retain_graph=True,
            allow_unused=True,
        )
        filled = [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(found, space.parameters, strict=True)
        ]
        return torch.cat([g.detach().reshape(-1).to(vector) for g in filled]) / items

    return product


def finite_difference_product(
    space: ParameterSpace, loss: SummedLoss[T], batches: Sequence[T], vector: Float[Tensor, " D"]
) -> Float[Tensor, " D"]:
    """Hv by a central difference of gradients: [∇L(θ+hv̂) − ∇L(θ−hv̂)]·‖v‖/2h, v̂ = v/‖v‖.

    The fallback where attention has no second derivative and cannot be switched. The error of the
    difference grows as h², that of rounding the weights and gradients as u/h; they meet near h =
    u^{1/3} times the length over which the gradient bends. That length is not known: a hundredth of
    ‖θ‖ stands for it (`BEND`), so h = 0.01 u^{1/3} ‖θ‖, u the dtype's unit round-off.

    Returns:
        Hv; the space is back where it was, bit for bit.

    Raises:
        LoclinError: weights in half precision, whose rounding is larger than any step that is still
            small; or what `ParameterSpace.gradient` refuses.
    """
    kind = space.parameters[0].dtype
    if kind not in (torch.float32, torch.float64):
        raise LoclinError(
            f"expected float32 weights for finite differences, found {kind}: choose --dtype float32"
        )
    length = float(exact(vector).norm())
    if length == 0:
        return torch.zeros_like(vector)
    centre = space.read()
    step = BEND * (torch.finfo(kind).eps / 2) ** (1 / 3) * float(exact(centre).norm()) / length
    with space.restored():
        space.write(centre + step * vector)
        ahead = space.gradient(loss, batches)
        space.write(centre - step * vector)
        product: Tensor = (ahead - space.gradient(loss, batches)) / (2 * step)
    return product


def top_eigenpairs(
    product: Product, start: Float[Tensor, " D"], k: int, *, remedy: str = "lower --k"
) -> tuple[Float[np.ndarray, " k"], Float[Tensor, "k D"]]:
    """The k algebraically largest eigenvalues of H and their eigenvectors, largest first.

    By ARPACK's restarted Lanczos on products, to a relative residual of 1 %; eigenvectors that have
    not converged to it are said to be missing rather than made up.

    Args:
        product: v ↦ Hv, H symmetric.
        start: the vector that Lanczos starts from; its dtype and device are those of the result.
        k: how many, below D.
        remedy: what to do where they do not converge, for the message.

    Raises:
        LoclinError: k not from 1 to D − 1, or fewer than k converge.

    >>> values, vectors = top_eigenpairs(lambda v: v * torch.tensor([1.0, 5.0, 3.0, 2.0]), torch.ones(4), 2)
    >>> values.round(3), vectors.abs().round(decimals=3)[0]
    (array([5., 3.], dtype=float32), tensor([0., 1., 0., 0.]))
    """
    dimension = len(start)
    if not 1 <= k < dimension:
        raise LoclinError(
            f"expected k from 1 to D − 1 = {dimension - 1}, found {k}: choose another k"
        )
    first = start.cpu().numpy()

    def apply(vector: np.ndarray) -> np.ndarray:
        image = product(torch.from_numpy(vector.astype(first.dtype)).reshape(-1).to(start.device))
        result: np.ndarray = image.cpu().numpy()
        return result

    operator = LinearOperator((dimension, dimension), matvec=apply, dtype=first.dtype)
    room = min(4 * k + 5, dimension)
    try:
        values, vectors = eigsh(operator, k=k, which="LA", v0=first, tol=1e-2, ncv=room, maxiter=20)
    except ArpackNoConvergence as error:
        found = len(error.eigenvalues)
        raise LoclinError(
            f"expected {k} Hessian eigenvectors to converge, found {found}: {remedy}"
        ) from error
    order = np.argsort(-values)
    return values[order], torch.from_numpy(np.ascontiguousarray(vectors[:, order].T)).to(
        start.device
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Probes:
    """What independent random probes say of H; each array holds one number per probe.

    Attributes:
        forms: zᵀHz, of mean tr H and variance 2‖H‖_F².
        squares: ‖Hz‖², of mean ‖H‖_F² and variance 2 tr H⁴.
    """

    forms: Float[np.ndarray, " n"]
    squares: Float[np.ndarray, " n"]


def probes(product: Product, space: ParameterSpace, count: int, *, seed: int) -> Probes:
    """Samples whose means are the trace and the squared Frobenius norm of H, both from the same Hz,
    z ~ N(0, I_D).

    The estimator of Girard (1989) and Hutchinson (1990), with Gaussian probes. They are
    independent: an interval for either mean is that of any sample (Student's t over probes).

    Args:
        product: v ↦ Hv.
        space: which gives the noise, and D.
        count: of probes, one product each.
        seed: of the probes.

    Raises:
        LoclinError: no probes.
    """
    if count < 1:
        raise LoclinError(f"expected at least 1 probe, found {count}: raise --probes")
    forms, squares = np.empty(count), np.empty(count)
    for i in range(count):
        z = space.noise(seed=derived(seed, "probe", i))
        image = exact(product(z))
        forms[i], squares[i] = float(exact(z) @ image), float(image @ image)
    return Probes(forms=forms, squares=squares)
