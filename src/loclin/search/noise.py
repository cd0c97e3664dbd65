"""What a candidate adds to the weights: noise that is a function of (seed, tensor name) alone, made
on the CPU in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.search.normals import BLOCK, Normals

Kind = Literal["gaussian", "lowrank", "tied"]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How the noise of one tensor is made.

    Attributes:
        kind: "gaussian": every entry by itself, each tensor from a stream of its own; the law of
            random search is about this one. "lowrank": matrices of rank `rank` with entries of unit
            variance (as in EGGROLL, Sarkar et al. 2025); tensors that are no matrices are gaussian.
            "tied": every tensor takes its first numbers from one stream, as some public code does
            by seeding a generator again for each tensor. Tensors of one shape move alike, and the
            law does not hold: for comparison alone.
        rank: of lowrank noise; 0 for the others.
    """

    kind: Kind = "gaussian"
    rank: int = 0

    @staticmethod
    def parse(text: str) -> Noise:
        """Read "gaussian", "lowrank:R" or "tied".

        Raises:
            LoclinError: anything else.

        >>> Noise.parse("lowrank:4"), str(Noise.parse("tied"))
        (Noise(kind='lowrank', rank=4), 'tied')
        """
        kind, _, rank = text.partition(":")
        if text in ("gaussian", "tied"):
            return Noise(kind="gaussian" if text == "gaussian" else "tied")
        if kind == "lowrank" and rank.isascii() and rank.isdigit() and int(rank) > 0:
            return Noise(kind="lowrank", rank=int(rank))
        raise LoclinError(
            "expected noise gaussian, lowrank:R with a rank R of at least 1, or tied, found "
            f"{text!r}: change --noise"
        )

    def __str__(self) -> str:
        return f"lowrank:{self.rank}" if self.kind == "lowrank" else self.kind


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRankNoise:
    """E = left rightᵀ/√r with standard normal factors: entries of mean 0 and variance 1,
    uncorrelated but not independent.
    """

    left: Float[Tensor, "m r"]
    right: Float[Tensor, "n r"]

    @property
    def scale(self) -> float:
        """1/√r."""
        return 1 / math.sqrt(self.left.shape[1])

    def dense(self) -> Float[Tensor, "m n"]:
        """E itself."""
        return self.left @ self.right.T * self.scale


class NoiseStream:
    """Draws the noise of the same tensors for one seed after the other, into memory that it keeps:
    memory that is new costs a third of the drawing.

    The noise of a tensor is a function of noise, seed, name and shape alone, whatever else is
    drawn, and in what order. By one thread: a second one that draws ahead gets in the way of
    torch's own, which wait for work by spinning.

    Args:
        noise: how.
        shapes: of the tensors, by name.
    """

    def __init__(self, noise: Noise, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._noise, self._shapes, self._numbers = noise, dict(shapes), Normals()
        # in whole blocks: the numbers of a shorter tied tensor are then the first of a longer one
        most = max(math.prod(shape) for shape in shapes.values())
        self._scratch = torch.empty(-(-most // BLOCK) * BLOCK)

    def of(self, seed: int) -> Iterator[tuple[str, Tensor | LowRankNoise]]:
        """The noise of every tensor in turn, in float32, each good until the next is asked for."""
        if self._noise.kind == "tied":
            self._numbers.fill(self._scratch, seed, "tied")
        for name, shape in self._shapes.items():
            yield name, self._of_tensor(seed, name, shape)

    def _of_tensor(self, seed: int, name: str, shape: tuple[int, ...]) -> Tensor | LowRankNoise:
        if self._noise.kind == "lowrank" and len(shape) == 2:
            factors = torch.empty(sum(shape) * self._noise.rank)
            both = self._numbers.fill(factors, seed, name).view(-1, self._noise.rank)
            left, right = both.split(shape)
            return LowRankNoise(left=left, right=right)
        into = self._scratch[: math.prod(shape)]
        if self._noise.kind != "tied":
            self._numbers.fill(into, seed, name)
        return into.view(shape)


def dense(noise: Tensor | LowRankNoise) -> Tensor:
    """Noise as a tensor in the shape of the weights."""
    return noise.dense() if isinstance(noise, LowRankNoise) else noise
