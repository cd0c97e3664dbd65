"""What a candidate adds to the weights: noise that is a function of (seed, tensor name) alone, made
on the CPU in float32, from streams of random numbers as fast as one core makes them.

`ParameterSpace.noise` has torch's stream, made one number after the other by the Mersenne Twister,
which takes half as long again (docs/log.md). A study reads its noise once; a search draws as many
numbers as there are weights for every candidate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError

Kind = Literal["gaussian", "rademacher", "lowrank", "tied"]
BLOCK = 1 << 15  # normal numbers made at a time, so that they stay in the cache from step to step
CHUNK = 2 * BLOCK  # numbers at a time: they stay in the cache until they are added
_TURN = np.float32(2 * math.pi * 2**-32)
#: The eight signs of every byte, its lowest bit first.
_SIGNS = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, 1, -1).astype(np.float32)


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


class Numbers:
    """Random numbers by seed and purpose, made in memory that it keeps: one thread at a time.

    Normal: z = √(−2 ln u)·(cos 2πv, sin 2πv), Box and Muller 1958, with u on a grid of 2⁻²⁵ from
    2⁻²⁴ to 1 and v on one of 2⁻³²; no number is beyond 5.8. The bits are those of SFC64
    (Doty-Humphrey) from a state that is a digest of seed and purpose. They are the same on every
    machine; logarithms, roots and sines are numpy's, the same up to the last places.
    """

    def __init__(self) -> None:
        self._source = np.random.SFC64(0)  # the state is set before every use
        self._state = self._source.state
        self._words = np.zeros(4, np.uint64)
        self._state["state"]["state"] = self._words
        self._radius, self._angle = np.empty((2, BLOCK // 2), np.float32)

    def start(self, seed: int, *purpose: str) -> None:
        """Go to the beginning of the stream of (seed, purpose)."""
        text = ":".join(map(str, (seed, *purpose)))
        words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=24).digest(), "<u8")
        self._words[:3], self._words[3] = words, 1  # the last word of SFC64's state is a counter
        self._source.state = self._state

    def normals(self, into: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Write the next standard normal numbers to memory that is there (float32, on the CPU), and
        give it back.

        Whole blocks of `BLOCK` do not depend on how many numbers follow.
        """
        numbers = into.numpy()
        for start in range(0, len(numbers), BLOCK):
            self._block(numbers[start : start + BLOCK])
        return into

    def signs(self, into: Float[Tensor, " n"], device: torch.device) -> Float[Tensor, " n"]:
        """The next numbers that are +1 or −1, one for each bit, low ones first: written to memory
        that is there, or made on a device of the bits alone.

        Whole words of 64 numbers do not depend on how many follow.
        """
        words = self._source.random_raw(-(-len(into) // 64)).astype("<u8", copy=False)
        bytes_ = words.view(np.uint8)[: -(-len(into) // 8)]
        if device.type != "cpu":
            rows = torch.from_numpy(_SIGNS).to(device)
            return rows[torch.from_numpy(bytes_).to(device).int()].view(-1)[: len(into)]
        whole, numbers = len(into) // 8, into.numpy()
        np.take(_SIGNS, bytes_[:whole], 0, numbers[: 8 * whole].reshape(whole, 8), "clip")
        numbers[8 * whole :] = _SIGNS[bytes_[whole:]].reshape(-1)[: len(into) - 8 * whole]
        return into

    def _block(self, out: np.ndarray) -> None:
        half, rest = -(-len(out) // 2), len(out) // 2
        low, high = self._bits(half)
        radius, angle = self._radius[:half], self._angle[:half]
        np.multiply(low, np.float32(2**-32), out=radius, dtype=np.float32, casting="unsafe")
        radius += np.float32(0.5 + 2**-24)  # from 2⁻²⁴ to 1: the logarithm is finite, not positive
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        np.multiply(high, _TURN, out=angle, dtype=np.float32, casting="unsafe")
        np.cos(angle, out=out[:half])
        np.sin(angle[:rest], out=out[half:])
        out[:half] *= radius
        out[half:] *= radius[:rest]

    def _bits(self, half: int) -> tuple[np.ndarray, np.ndarray]:
        """Two times `half` numbers of 32 bits. By two calls where they do not divide a word: memory
        of less than 128 KB is not asked of the system anew every time.
        """
        if half % 2:
            bits = self._source.random_raw(half).view(np.int32)
            return bits[:half], bits[half:]
        low, high = (self._source.random_raw(half // 2).view(np.int32) for _ in range(2))
        return low, high


def normals(size: int, seed: int, *purpose: str) -> Float[Tensor, " size"]:
    """Standard normal numbers that are a function of size, seed and purpose alone.

    >>> bool((normals(4, 0, "weight") == normals(4, 0, "weight")).all())
    True
    """
    numbers = Numbers()
    numbers.start(seed, *purpose)
    return numbers.normals(torch.empty(size))
