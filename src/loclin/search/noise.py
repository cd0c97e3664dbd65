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
        if text == "gaussian":
            return Noise()
        if text == "tied":
            return Noise(kind="tied")
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

    Attributes:
        left: one row for each row of E.
        right: one row for each column of E.
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


def draw(
    noise: Noise,
    seed: int,
    name: str,
    shape: tuple[int, ...],
    *,
    numbers: Normals | None = None,
    scratch: Float[Tensor, " room"] | None = None,
) -> Tensor | LowRankNoise:
    """The noise of one tensor: a function of noise, seed, name and shape alone, whatever else is
    drawn, and in what order.

    Args:
        noise: how.
        seed: of the candidate.
        name: of the tensor.
        shape: of the tensor.
        numbers: who draws; a new one where left out.
        scratch: memory to write gaussian or tied noise to, of at least `room(shape)` numbers:
            memory that is new costs a third of the drawing. What is given back is then good until
            the next use of it.

    Returns:
        Float32 on the CPU.
    """
    numbers = numbers or Normals()
    if noise.kind == "lowrank" and len(shape) == 2:
        left, right = (
            numbers.fill(torch.empty(sum(shape) * noise.rank), seed, name)
            .view(-1, noise.rank)
            .split(shape)
        )
        return LowRankNoise(left=left, right=right)
    into, size = torch.empty(room(shape)) if scratch is None else scratch, math.prod(shape)
    if (
        noise.kind == "tied"
    ):  # in whole blocks: the numbers of a shorter tensor are then the first of a longer one
        return numbers.fill(into[: room(shape)], seed, "tied")[:size].view(shape)
    return numbers.fill(into[:size], seed, name).view(shape)


def room(shape: tuple[int, ...]) -> int:
    """How many numbers drawing a tensor of this shape may write."""
    return -(-math.prod(shape) // BLOCK) * BLOCK


def values(found: Tensor | LowRankNoise) -> Tensor:
    """Noise as a tensor in the shape of the weights."""
    return found.dense() if isinstance(found, LowRankNoise) else found


class Drawing:
    """Draws the noise of the same tensors for one seed after the other, into memory that it keeps.

    Args:
        noise: how.
        shapes: of the tensors, by name.
    """

    def __init__(self, noise: Noise, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._noise, self._shapes = noise, dict(shapes)
        self._numbers, self._scratch = Normals(), torch.empty(max(map(room, self._shapes.values())))

    def of(self, seed: int) -> Iterator[tuple[str, Tensor | LowRankNoise]]:
        """What `draw` gives for every tensor in turn, each good until the next is asked for.

        By one thread: a second one that draws ahead gets in the way of torch's own, which wait for
        work by spinning.
        """
        if (
            self._noise.kind == "tied"
        ):  # one stream: the numbers of the longest tensor are those of all
            whole = draw(
                self._noise,
                seed,
                "",
                tuple(self._scratch.shape),
                numbers=self._numbers,
                scratch=self._scratch,
            )
            assert isinstance(whole, Tensor)
            yield from (
                (name, whole[: math.prod(shape)].view(shape))
                for name, shape in self._shapes.items()
            )
            return
        for name, shape in self._shapes.items():
            yield (
                name,
                draw(self._noise, seed, name, shape, numbers=self._numbers, scratch=self._scratch),
            )
