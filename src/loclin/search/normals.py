"""The streams of random numbers that a search draws from: one for each (seed, purpose), as fast as
one core makes them.

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

BLOCK = 1 << 15  # normal numbers made at a time, so that they stay in the cache from step to step
_TURN = np.float32(2 * math.pi * 2**-32)
#: The eight signs of every byte, its lowest bit first.
_SIGNS = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, 1, -1).astype(np.float32)


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
