"""How a run moved: the inner products of its segments and their norms in every tensor, all that its
measures need.

A segment is the way from one point to the next. For adapters there are two spaces: the factors as
they are trained, and the weights that they make, whose geometry does not depend on the gauge
(geometry/lora.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian
from loclin.geometry.lora import low_rank_gramian, secants
from loclin.models.points import Adapted, Points, row_blocks
from loclin.progress import ProgressCallback, silent


@dataclass(frozen=True, eq=False, kw_only=True)
class Movement:
    """T segments in one space.

    Attributes:
        gramian: ⟨u_i, u_j⟩ of the segments.
        norms: length of each segment within each tensor.
        names: of the tensors that moved.
        sizes: their numbers of coordinates.
        still: how many tensors never moved; they are no part of the space.
    """

    gramian: Float[np.ndarray, "T T"]
    norms: Float[np.ndarray, "T tensors"]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    still: int = 0

    @property
    def dimension(self) -> int:
        """D."""
        return sum(self.sizes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """A run as it is measured.

    Attributes:
        labels, steps, notes: of its points, as in `Points`.
        spaces: "weights", and for adapters "factors" too.
        sketch: m, where inner products were read from m-number sketches.
        momentum: of SGD, or Adam's β₁, where it is known.
    """

    labels: tuple[str, ...]
    steps: tuple[int | None, ...]
    notes: tuple[str, ...]
    spaces: Mapping[str, Movement]
    sketch: int | None = None
    momentum: float | None = None


def run_of(points: Points, progress: ProgressCallback = silent) -> Run:
    """Read a run tensor by tensor; memory stays near a block of one tensor at all points.

    Raises:
        LoclinError: values that are not finite, or points that are all the same.
    """
    first = "factors" if points.adapted else "weights"
    sums = {space: _Sum(len(points.labels) - 1) for space in dict.fromkeys((first, "weights"))}
    plain = set(points.shapes)
    plain -= {n for pair in points.adapted.values() for n in (pair.a, pair.b)}
    for i, (name, shape) in enumerate(points.shapes.items()):
        progress(f"reading {len(points.labels)} points", i / len(points.shapes))
        products, sample = _tensor_products(points, name)
        for space in sums if name in plain else (first,):
            sums[space].add(name, prod(shape), products, (shape, products.tobytes(), sample))
    for weight, pair in points.adapted.items():
        sums["weights"].add(weight, _adapted_size(points, pair), _adapted_products(points, pair))
    spaces = {name: total.movement() for name, total in sums.items()}
    if not spaces[first].gramian.any():
        raise LoclinError(
            f"expected points that differ, found the same weights at all of {points.labels[0]} to "
            f"{points.labels[-1]}: give the checkpoints of one run, and a pattern of tensors that "
            "were trained"
        )
    return Run(labels=points.labels, steps=points.steps, notes=points.notes, spaces=spaces)


def _tensor_products(points: Points, name: str) -> tuple[np.ndarray, bytes]:
    """Gramian of the segments within one tensor, and its first values at all points."""
    total, sample = np.zeros((len(points.labels) - 1,) * 2), b""
    for rows in row_blocks(points.shapes[name], len(points.labels)):
        block = points.read(name, rows).flatten(1)
        sample = sample or block[:, :64].numpy().tobytes()
        products = gramian(block.diff(dim=0))
        if not np.isfinite(products).all():
            raise _not_finite(points, name, block)
        total += products
    return total, sample


def _adapted_products(points: Points, pair: Adapted) -> np.ndarray:
    """Gramian of the segments of one adapted weight, from its factors."""
    a, b = (points.read(name, slice(None)) for name in (pair.a, pair.b))
    steps = secants(a.flatten(2), b.reshape(*b.shape[:2], a.shape[1]), scale=pair.scale)
    return low_rank_gramian([steps])


def _adapted_size(points: Points, pair: Adapted) -> int:
    """Dimensions of the set of all ΔW of rank r, r(in + out) − r²: what chance has to choose from,
    not in × out.
    """
    (rank, *inner), (outer, *_) = points.shapes[pair.a], points.shapes[pair.b]
    return rank * (prod(inner) + outer - rank)


def _not_finite(points: Points, name: str, block: Tensor) -> LoclinError:
    """The error that names the first point with NaN or infinity."""
    label = points.labels[int((~torch.isfinite(block).all(1)).int().argmax())]
    return LoclinError(
        f"expected finite weights, found NaN or infinity in {name} at {label}: leave that point out"
    )


class _Sum:
    """Adds up tensors into a movement; a tensor stored twice under two names (tied weights) counts
    once.
    """

    def __init__(self, segments: int) -> None:
        self._total = np.zeros((segments, segments))
        self._norms: list[np.ndarray] = []
        self._sizes: dict[str, int] = {}
        self._seen: set[object] = set()
        self._still = 0

    def add(self, name: str, size: int, products: np.ndarray, mark: object = None) -> None:
        """A tensor and what tells it from others; without a mark it is like no other."""
        if not products.any():
            self._still += 1
        elif mark is None or mark not in self._seen:
            self._seen.add(mark)
            self._total += products
            self._norms.append(np.sqrt(np.diag(products)))
            self._sizes[name] = size

    def movement(self) -> Movement:
        norms = np.stack(self._norms, axis=1) if self._norms else np.zeros((len(self._total), 0))
        return Movement(
            gramian=self._total,
            norms=norms,
            names=tuple(self._sizes),
            sizes=tuple(self._sizes.values()),
            still=self._still,
        )
