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
from loclin.search.normals import BLOCK, Numbers

Kind = Literal["gaussian", "rademacher", "lowrank", "tied"]
CHUNK = 2 * BLOCK  # numbers at a time: they stay in the cache until they are added


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How the noise of one tensor is made.

    Attributes:
        kind: "gaussian": every entry by itself, each tensor from a stream of its own; the law of
            random search is about this one. "rademacher": every entry +1 or −1, by one random bit
            (as SPSA takes them, Spall 1992): slope and trace of the law are the same, the diagonal
            of H makes no candidate differ from another. "lowrank": matrices of rank `rank` with
            entries of unit variance (as in EGGROLL, Sarkar et al. 2025); tensors that are no
            matrices are gaussian.
            "tied": every tensor takes its first numbers from one stream, as some public code does
            by seeding a generator again for each tensor. Tensors of one shape move alike, and the
            law does not hold: for comparison alone.
        rank: of lowrank noise; 0 for the others.
    """

    kind: Kind = "gaussian"
    rank: int = 0

    @staticmethod
    def parse(text: str) -> Noise:
        """Read "gaussian", "rademacher", "lowrank:R" or "tied".

        Raises:
            LoclinError: anything else.

        >>> Noise.parse("lowrank:4"), str(Noise.parse("tied"))
        (Noise(kind='lowrank', rank=4), 'tied')
        """
        kind, _, rank = text.partition(":")
        for plain in ("gaussian", "rademacher", "tied"):
            if text == plain:
                return Noise(kind=plain)
        if kind == "lowrank" and rank.isascii() and rank.isdigit() and int(rank) > 0:
            return Noise(kind="lowrank", rank=int(rank))
        raise LoclinError(
            "expected noise gaussian, rademacher, lowrank:R with a rank R of at least 1, or tied, "
            f"found {text!r}: change --noise"
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
    """Draws the noise of the same tensors for one seed after the other, a piece at a time, into
    memory that it keeps: no tensor of noise is ever whole on the CPU.

    The noise of a tensor is a function of noise, seed, name and shape alone, whatever else is
    drawn, and in what order. By one thread: a second one that draws ahead gets in the way of
    torch's own, which wait for work by spinning.

    Args:
        noise: how.
        shapes: of the tensors, by name.
        device: where signs are made of bits; there a piece is a whole tensor, for each is a call.
    """

    def __init__(
        self,
        noise: Noise,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device | None = None,
    ) -> None:
        self._noise, self._shapes, self._numbers = noise, dict(shapes), Numbers()
        self._device = device or torch.device("cpu")
        most = -(-max(map(math.prod, shapes.values())) // BLOCK) * BLOCK
        size = min(most, CHUNK) if self._device.type == "cpu" else most
        self._room = torch.empty(size)  # in whole blocks: a tied tensor begins as a longer one does

    def of(self, seed: int) -> Iterator[tuple[str, slice, Tensor | LowRankNoise]]:
        """The noise of every tensor in turn: its name, which of its entries, end to end, and their
        noise in float32, good until the next is asked for.
        """
        for name, shape in self._shapes.items():
            if self._noise.kind == "lowrank" and len(shape) == 2:
                factors = torch.empty(sum(shape) * self._noise.rank)
                self._numbers.start(seed, name)
                both = self._numbers.normals(factors).view(-1, self._noise.rank)
                left, right = both.split(shape)
                yield name, slice(None), LowRankNoise(left=left, right=right)
                continue
            self._numbers.start(seed, "tied" if self._noise.kind == "tied" else name)
            size, step = math.prod(shape), len(self._room)
            for start in range(0, size, step):
                part = slice(start, min(start + step, size))
                yield name, part, self._next(part.stop - start)

    def _next(self, count: int) -> Float[Tensor, " count"]:
        if self._noise.kind == "rademacher":
            return self._numbers.signs(self._room[:count], self._device)
        if self._noise.kind == "tied":
            return self._numbers.normals(self._room[: -(-count // BLOCK) * BLOCK])[:count]
        return self._numbers.normals(self._room[:count])


def dense(noise: Tensor | LowRankNoise) -> Tensor:
    """Noise as a tensor, in the shape of a matrix or end to end."""
    return noise.dense() if isinstance(noise, LowRankNoise) else noise
