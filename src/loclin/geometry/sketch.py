"""Count sketches: m numbers that keep the inner products of vectors too long to keep.

Every coordinate goes to one of m buckets with a random sign (Charikar, Chen and Farach-Colton 2002,
"Finding frequent items in data streams"). Coordinates are taken m at a time; such a row keeps its
order and is turned by a random offset, so that two coordinates share a bucket with probability 1/m,
or never where they share a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.seeds import derived

_BLOCK = 1 << 20  # coordinates whose signs are drawn at a time


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A linear map S from R^D to R^m with E⟨Su, Sv⟩ = ⟨u, v⟩.

    A coordinate's bucket and sign are a function of (seed, m, tensor name, place in the tensor)
    alone, whatever the other tensors and the device. The error of a product is about 1/√m of the
    norms, √((⟨u,v⟩² + ‖u‖²‖v‖²)/m) at most (the same source); `theory.sketched_capture` has that of
    a capture.

    Attributes:
        size: m.
        seed: of the signs and buckets; only vectors under one seed can be compared.

    >>> sketch = Sketch(size=1024, seed=0)
    >>> u = {"weight": torch.ones(300, 300), "bias": torch.ones(300)}
    >>> squared_norm = float(sketch.of(u).square().sum())  # 90300, up to √(2/m) = 4 %
    >>> abs(squared_norm / 90300 - 1) < 0.15
    True
    """

    size: int
    seed: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise LoclinError(
                f"expected a sketch of at least 1 number, found {self.size}: give a larger size"
            )

    def add(
        self, total: Float[Tensor, " m"], name: str, values: Tensor, *, scale: float = 1.0
    ) -> None:
        """Add `scale` times the sketch of one tensor to `total`, in place, in the dtype of `total`.

        In float64, sketches of two near points far from the origin can be subtracted. Raises
        `LoclinError` where `total` has another length than m.
        """
        if total.shape != (self.size,):
            raise LoclinError(
                f"expected a sketch of {self.size} numbers, found shape {tuple(total.shape)}: make "
                "it anew"
            )
        turned = total.new_zeros(2 * self.size)  # the second half wraps round
        for row, offset in self._rows(name, values.detach().reshape(-1), total.dtype):
            turned[offset : offset + len(row)] += row
        total.add_(turned[: self.size] + turned[self.size :], alpha=scale)

    def of(self, pieces: Mapping[str, Tensor]) -> Float[Tensor, " m"]:
        """The sketch of a vector, tensor by tensor, in float32; `LoclinError` for no tensors."""
        if not pieces:
            raise LoclinError(
                "expected at least one tensor to sketch, found none: give the parts of a vector"
            )
        total = torch.zeros(self.size, device=next(iter(pieces.values())).device)
        for name, values in pieces.items():
            self.add(total, name, values)
        return total

    def _rows(self, name: str, flat: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, int]]:
        """The tensor's coordinates with their signs, m at a time, and the offset of each row."""
        rows = max(1, _BLOCK // self.size)
        for block, values in enumerate(flat.split(rows * self.size)):
            stream = np.random.PCG64(derived(self.seed, name, block))
            offsets = (stream.random_raw(rows) % np.uint64(self.size)).tolist()
            signed = values.to(dtype) * _signs(stream, len(values), values.device)
            yield from zip(signed.split(self.size), offsets, strict=False)


def _signs(stream: np.random.PCG64, count: int, device: torch.device) -> Tensor:
    """`count` random signs, one for each bit of the stream."""
    drawn = stream.random_raw(-(-count // 64)).astype("<u8").view(np.uint8)
    return _sign_table(device)[torch.from_numpy(drawn).to(device).int()].reshape(-1)[:count]


@cache
def _sign_table(device: torch.device) -> Float[Tensor, "256 8"]:
    """The eight signs that a byte spells."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.from_numpy(1.0 - 2.0 * bits.astype(np.float32)).to(device)
