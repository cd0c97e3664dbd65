"""Directions held against each other, against random ones, and against what their own noise lets
them reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import norm
from loclin.geometry.subspace import Subspace
from loclin.parameters import ParameterSpace
from loclin.seeds import derived


def cosines(a: Float[Tensor, "*a d"], b: Float[Tensor, "*b d"]) -> Float[Tensor, "*c"]:
    """aᵀb / (‖a‖‖b‖), layer by layer; leading axes broadcast (many null vectors against one).

    Raises:
        LoclinError: a vector that is zero or not finite.

    >>> one, other = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    >>> cosines(one, other).tolist()
    [1.0, 0.7071067690849304]
    """
    return (_unit(a, "first") * _unit(b, "second")).sum(-1).clamp(-1, 1).to(a.dtype)


def without(v: Float[Tensor, "L d"], *directions: Float[Tensor, "L d"]) -> Float[Tensor, "L d"]:
    """v − Pv layer by layer, P the projection on the span of the directions at that layer.

    Zeros where no more is left than v's own round-off, which has no direction.

    Raises:
        LoclinError: directions that are all zero, or not finite, at a layer.
    """
    rows = []
    for layer, vector in enumerate(v.double()):
        span = Subspace.spanned_by(torch.stack([d[layer] for d in directions]).double())
        left = vector - span.project(vector)
        something = left.norm() > 4 * torch.finfo(v.dtype).eps * v[layer].norm()
        rows.append(left if something else torch.zeros_like(left))
    return torch.stack(rows).to(v.dtype)


def without_outliers(
    v: Float[Tensor, "L d"], h: Float[Tensor, "L n d"], count: int
) -> Float[Tensor, "L d"]:
    """v with zeros, at each layer, in the `count` coordinates where the mean of h² over prompts is
    largest.

    A few coordinates of a language model are far larger than all others and can carry a cosine
    alone.

    Raises:
        LoclinError: a count that leaves no coordinate.
    """
    if not 0 <= count < v.shape[-1]:
        raise LoclinError(
            f"expected 0 to {v.shape[-1] - 1} coordinates to take out, found {count}: change it"
        )
    largest = h.double().square().mean(1).topk(count, dim=-1).indices
    return v.scatter(-1, largest, 0.0)


def shares_of(space: ParameterSpace, direction: Float[Tensor, " D"]) -> dict[str, float]:
    """‖v_t‖/‖v‖ of every tensor t.

    Raises:
        LoclinError: a direction that is zero or not finite.
    """
    lengths = {n: norm(piece.reshape(-1)) for n, piece in space.by_tensor(direction).items()}
    whole = math.hypot(*lengths.values())
    if not 0 < whole < math.inf:
        raise LoclinError(
            f"expected a direction that is finite and not zero, found a length of {whole:g}: no "
            "step along it is defined"
        )
    return {name: length / whole for name, length in lengths.items()}


def random_directions(
    space: ParameterSpace, count: int, *, seed: int, shares: Mapping[str, float] | None = None
) -> Iterator[Float[Tensor, " D"]]:
    """Unit vectors of the space, one after the other: the null of weight steps (measures §13). Each
    is good until the next is asked for, which takes its memory.

    Args:
        space, count: where they live, and how many.
        seed: direction i is a function of (seed, i) alone.
        shares: each direction is isotropic within every tensor, and has this share of the norm
            there (`shares_of` a gradient): real gradients put very unequal weight on the tensors,
            and the null that is isotropic over all of them, as without shares, is then too narrow.
    """
    noise: Tensor | None = None
    for i in range(count):
        noise = space.noise(seed=derived(seed, "weight direction", i), into=noise)
        for name, piece in space.by_tensor(noise).items() if shares else ():
            piece.mul_((shares or {})[name] / norm(piece.reshape(-1)))  # a view: into the noise
        yield noise.div_(norm(noise))


def random_vectors(
    lengths: Mapping[int, float], width: int, *, count: int, seed: int
) -> list[dict[int, Tensor]]:
    """Directions that know nothing, as long as the vector at each layer; a function of (seed,
    number, layer) alone.
    """

    def one(number: int, layer: int) -> Tensor:
        drawn = torch.Generator().manual_seed(derived(seed, "random activation", number, layer))
        z = torch.randn(width, generator=drawn, dtype=torch.float64)
        scaled: Tensor = z * (lengths[layer] / z.norm())
        return scaled.float()

    return [{layer: one(i, layer) for layer in lengths} for i in range(count)]


def both_ways(cosines: Sequence[Float[Tensor, " L"]]) -> Float[np.ndarray, "m L"]:
    """Cosines of random steps, and minus each of them: a step back shifts activations the other
    way, to first order.
    """
    one: np.ndarray = torch.stack(list(cosines)).double().numpy()
    return np.concatenate([one, -one])


def reliability(one: Float[Tensor, "L d"], other: Float[Tensor, "L d"]) -> Float[Tensor, " L"]:
    """2r/(1+r), with r the cosine of the same vector from two halves of its data (Spearman 1910,
    Brown 1910; measures §13).

    How well the vector from all of the data agrees with another such vector; 0 where r < 0, which
    is no agreement at all.

    Raises:
        LoclinError: a vector that is zero or not finite.
    """
    r = cosines(one, other)
    return torch.where(r < 0, 0.0, 2 * r / (1 + r))


def disattenuated(
    cosine: Float[Tensor, " L"], reliability: Float[Tensor, " L"], other: Float[Tensor, " L"]
) -> Float[Tensor, " L"]:
    """cos/√(rel₁·rel₂): what the cosine of two vectors would be without their own noise (Spearman
    1904; measures §13).

    May be beyond 1, by the noise of the reliabilities. NaN where either is NaN or 0.
    """
    ceiling = (reliability * other).sqrt()
    return torch.where(ceiling > 0, cosine / ceiling, torch.nan)


def _unit(vectors: Float[Tensor, "*a d"], which: str) -> Float[Tensor, "*a d"]:
    """In float64, of length 1; a vector that is zero or not finite is refused by its name."""
    exact = vectors.double()
    lengths: Tensor = exact.norm(dim=-1, keepdim=True)
    wrong = ~(torch.isfinite(lengths) & (lengths > 0)).squeeze(-1)
    if wrong.any():
        where = ", ".join(map(str, wrong.nonzero()[0].tolist()))
        found = "zeros" if float(lengths[wrong].flatten()[0]) == 0 else "NaN or infinity"
        place = f" at {where}" if where else ""
        raise LoclinError(
            f"expected a vector that is finite and not zero, found {found}: the {which} one{place} "
            "has no angle"
        )
    return exact / lengths


def whitening(h: Float[Tensor, "L n d"]) -> Float[Tensor, "L d d"]:
    """Σ^(−1/2) of the activations at every layer: in whitened ones all directions vary alike, and
    no dominant axis carries a cosine alone (measures §13).

    Σ is the covariance over prompts, shrunk towards (tr Σ/d)·I by Ledoit and Wolf's formula ("A
    well-conditioned estimator for large-dimensional covariance matrices", 2004).

    Raises:
        LoclinError: fewer than two prompts, or activations that are all alike.
    """
    if h.shape[1] < 2:
        raise LoclinError(f"expected two prompts or more, found {h.shape[1]}: give more examples")
    return torch.stack([_inverse_root(shrunk_covariance(each)) for each in h.double()])


def shrunk_covariance(h: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """(1−ρ)S + ρ·(tr S/d)·I, with S the covariance and ρ = min(1, b²/δ²), b² the mean over prompts
    of ‖xxᵀ − S‖²/n and δ² = ‖S − (tr S/d)·I‖² (Ledoit and Wolf 2004).

    >>> shrunk_covariance(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    tensor([[1., 0.],
            [0., 0.]])
    """
    n, d = h.shape
    x = h - h.mean(0)
    s = x.T @ x / n
    target = s.trace() / d * torch.eye(d, dtype=h.dtype)
    away = (s - target).square().sum()
    noise = (x.square().sum(1).square().sum() / n - s.square().sum()) / n
    share = (noise / away).clamp(0, 1) if away > 0 else torch.ones_like(away)
    shrunk: Tensor = (1 - share) * s + share * target
    return shrunk


def _inverse_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, axes = torch.linalg.eigh(covariance)
    if not values[-1] > 0:
        raise LoclinError(
            "expected activations that vary over prompts, found none that do: give other examples"
        )
    # what varies in no prompt at all weighs as the least that round-off lets vary
    root = values.clamp(min=1e-12 * float(values[-1])).rsqrt()
    found: Tensor = axes * root @ axes.T
    return found
