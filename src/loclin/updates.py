"""Where recorded updates go: into memory, into a file mapped into memory, or into sketches."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.sketch import Sketch
from loclin.parameters import ParameterSpace

Store = Literal["auto", "memory", "disk", "sketch"]
#: Of what is free: a study holds a few families of vectors beside the updates.
SHARE_OF_MEMORY, SHARE_OF_DISK = 0.25, 0.5


@dataclass(frozen=True, kw_only=True)
class UpdateStorage:
    """Where the updates of one run go.

    Attributes:
        store: "auto" takes what fits, once `resolved`.
        folder: of the mapped file; the system's temporary folder where None.
        sketch: of sketched updates, and of all vectors they are held against.
    """

    store: Store = "memory"
    folder: Path | None = None
    sketch: Sketch = field(default_factory=lambda: Sketch(size=65536, seed=0))

    def resolved(
        self, space: ParameterSpace, steps: int, *, sharing: int = 1, full: bool = False
    ) -> UpdateStorage:
        """The same with "auto" decided: memory, else disk, else a sketch (not if `full`).

        By what is free here, shared by `sharing` runs side by side.
        """
        if self.store != "auto":
            return self
        needed = _size(space, steps) * sharing
        if needed <= SHARE_OF_MEMORY * free_memory(space.parameters[0].device):
            return replace(self, store="memory")
        if full or needed <= SHARE_OF_DISK * shutil.disk_usage(self._place()).free:
            return replace(self, store="disk")
        return replace(self, store="sketch")

    def describe(self, space: ParameterSpace, count: int, named: str = "updates") -> str:
        """What is kept where, in a sentence."""
        full = f"{count}×D = {count}×{space.dimension} {named} ({_bytes(_size(space, count))})"
        if self.store == "sketch":
            return (
                f"{full} do not fit or are not wanted: {self.sketch.size} sketched numbers of "
                f"each, relative error about {1 / math.sqrt(self.sketch.size):.1%}"
            )
        return f"{full} are kept {'in memory' if self.store == 'memory' else 'in a file'}"

    def allocate(
        self, space: ParameterSpace, count: int, *, full: bool = False
    ) -> Float[Tensor, "n columns"]:
        """Room for `count` updates: m numbers each where sketched and not `full`, else D."""
        like = space.parameters[0]
        if self.store == "sketch" and not full:
            return torch.zeros(count, self.sketch.size, device=like.device)
        if self.store == "memory":
            return torch.empty(count, space.dimension, dtype=like.dtype, device=like.device)
        return self._mapped(count * space.dimension, like.dtype).view(count, space.dimension)

    def as_stored(
        self, space: ParameterSpace, rows: Float[Tensor, "n D"]
    ) -> Float[Tensor, "n columns"]:
        """Vectors to hold against stored updates: sketched alike, or as they are."""
        if self.store != "sketch":
            return rows
        return torch.stack([self.sketch.of(space.by_tensor(row)) for row in rows])

    def _place(self) -> Path:
        place = self.folder or Path(tempfile.gettempdir())
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _mapped(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """A tensor in a file without a name: it goes when the process does, however it ends."""
        size = numbers * dtype.itemsize
        file, name = tempfile.mkstemp(prefix=".updates-", dir=self._place())
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash later
                os.posix_fallocate(file, 0, size)
            else:
                os.ftruncate(file, size)
            return torch.from_file(name, shared=True, size=numbers, dtype=dtype)
        except OSError as error:
            raise LoclinError(
                f"expected {_bytes(size)} of room in {self._place()} for the updates, found "
                f"{error.strerror or error}: make room, or choose --store sketch"
            ) from error
        finally:
            os.close(file)
            os.unlink(name)


def free_memory(device: torch.device) -> int:
    """Bytes free on a device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_room(space: ParameterSpace, vectors: int, remedy: str) -> None:
    """Whether vectors as long as the space fit into memory; an error with the remedy if not."""
    needed = vectors * space.dimension * space.parameters[0].element_size()
    free = free_memory(space.parameters[0].device)
    if needed > free:
        raise LoclinError(
            f"expected room for about {vectors} directions of {space.dimension} coordinates "
            f"({needed / 1e9:.0f} GB), found {free / 1e9:.0f} GB of free memory: {remedy}"
        )


def _size(space: ParameterSpace, count: int) -> int:
    return count * space.dimension * space.parameters[0].element_size()


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
