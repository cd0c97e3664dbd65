"""The stream of standard normal numbers that a search draws from: one for each (seed, purpose), as
fast as one core makes them.

`ParameterSpace.noise` has torch's stream, made one number after the other by the Mersenne Twister,
which takes half as long again (docs/log.md). A study reads its noise once; a search draws as many
numbers as there are weights for every candidate.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1 << 15  # numbers made at a time, so that they stay in the cache from step to step
_TURN = np.float32(2 * math.pi * 2**-32)


class Normals:
    """Standard normal numbers by seed and purpose, made in memory that it keeps: one thread at a
    time.

    z = √(−2 ln u)·(cos 2πv, sin 2πv), Box and Muller 1958, with u on a grid of 2⁻²⁵ from 2⁻²⁴ to 1
    and v on one of 2⁻³²; no number is beyond 5.8. The bits are those of SFC64 (Doty-Humphrey) from
    a state that is a digest of seed and purpose. They are the same on every machine; logarithms,
    roots and sines are numpy's, the same up to the last places.
    """

    def __init__(self) -> None:
        self._source = np.random.SFC64(0)  # the state is set before every use
        self._state = self._source.state
        self._words = np.zeros(4, np.uint64)
        self._state["state"]["state"] = self._words
        self._radius, self._angle = np.empty((2, BLOCK // 2), np.float32)

    def fill(self, into: Float[Tensor, " n"], seed: int, *purpose: str) -> Float[Tensor, " n"]:
        """Write the numbers of (seed, purpose) to memory that is there (float32, on the CPU), and
        give it back.

        They are a function of n, seed and purpose alone; whole blocks of `BLOCK` do not depend on
        how many numbers follow.
        """
        text = ":".join(map(str, (seed, *purpose)))
        words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=24).digest(), "<u8")
        self._words[:3], self._words[3] = words, 1  # the last word of SFC64's state is a counter
        self._source.state = self._state
        numbers = into.numpy()
        for start in range(0, len(numbers), BLOCK):
            self._block(numbers[start : start + BLOCK])
        return into

    def _block(self, out: np.ndarray) -> None:
        half, rest = -(-len(out) // 2), len(out) // 2
        bits = self._source.random_raw(half).view(np.int32)
        radius, angle = self._radius[:half], self._angle[:half]
        np.multiply(bits[:half], np.float32(2**-32), out=radius, dtype=np.float32, casting="unsafe")
        radius += np.float32(0.5 + 2**-24)  # from 2⁻²⁴ to 1: the logarithm is finite, not positive
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        np.multiply(bits[half:], _TURN, out=angle, dtype=np.float32, casting="unsafe")
        np.cos(angle, out=out[:half])
        np.sin(angle[:rest], out=out[half:])
        out[:half] *= radius
        out[half:] *= radius[:rest]


def normals(size: int, seed: int, *purpose: str) -> Float[Tensor, " size"]:
    """Standard normal numbers that are a function of size, seed and purpose alone.

    >>> bool((normals(4, 0, "weight") == normals(4, 0, "weight")).all())
    True
    """
    return Normals().fill(torch.empty(size), seed, *purpose)
