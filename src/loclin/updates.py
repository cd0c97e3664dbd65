"""Where recorded updates are kept: in memory, in a file mapped into memory, or sketched."""

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
SHARE_OF_MEMORY = (
    0.25  # of what is free: a study holds a few families of vectors beside the updates
)
SHARE_OF_DISK = 0.5


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How the updates of one run are kept.

    Attributes:
        store: "memory", "disk" or "sketch"; "auto" takes what fits (`settled`).
        folder: of the mapped file; the system's temporary folder where None.
        sketch: the map that sketched updates go through; all vectors they are held against must go
            through the same.
    """

    store: Store = "memory"
    folder: Path | None = None
    sketch: Sketch = field(default_factory=lambda: Sketch(size=65536, seed=0))

    def settled(
        self, space: ParameterSpace, steps: int, *, sharing: int = 1, exactly: bool = False
    ) -> Keeping:
        """The same with "auto" decided: memory, else disk, else a sketch, by what is free here.

        Args:
            space: whose updates.
            steps: T.
            sharing: runs side by side that share the memory and the disk.
            exactly: never sketch: what is measured needs the updates themselves.
        """
        if self.store != "auto":
            return self
        needed = steps * space.dimension * space.parameters[0].element_size() * sharing
        if needed <= SHARE_OF_MEMORY * free_memory(space.parameters[0].device):
            store: Store = "memory"
        elif exactly or needed <= SHARE_OF_DISK * shutil.disk_usage(self._place()).free:
            store = "disk"
        else:
            store = "sketch"
        return replace(self, store=store)

    def sentence(self, space: ParameterSpace, count: int, named: str = "updates") -> str:
        """What is kept where, for people."""
        size = count * space.dimension * space.parameters[0].element_size()
        full = f"{count}×D = {count}×{space.dimension} {named} ({_bytes(size)})"
        if self.store == "sketch":
            error = 1 / math.sqrt(self.sketch.size)
            return f"{full} do not fit or are not wanted: {self.sketch.size} sketched numbers of each, relative error about {error:.1%}"
        return f"{full} are kept {'in memory' if self.store == 'memory' else 'in a file'}"

    def rows(
        self, space: ParameterSpace, count: int, *, exact: bool = False
    ) -> Float[Tensor, "n columns"]:
        """Room for `count` updates: D wide, or m wide where they are sketched and not asked for
        exactly.
        """
        like = space.parameters[0]
        if self.store == "sketch" and not exact:
            return torch.zeros(count, self.sketch.size, device=like.device)
        if self.store == "memory":
            return torch.empty(count, space.dimension, dtype=like.dtype, device=like.device)
        return self._mapped(count * space.dimension, like.dtype).view(count, space.dimension)

    def seen(self, space: ParameterSpace, rows: Float[Tensor, "n D"]) -> Float[Tensor, "n columns"]:
        """Vectors as the kept updates are: sketched alike, or as they are."""
        if self.store != "sketch":
            return rows
        return torch.stack([self.sketch.of(space.by_tensor(row)) for row in rows])

    def _place(self) -> Path:
        place = self.folder or Path(tempfile.gettempdir())
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _mapped(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """A tensor in a file that has no name any more: it goes when the process does, however it
        ends.
        """
        size = numbers * torch.empty(0, dtype=dtype).element_size()
        file, name = tempfile.mkstemp(prefix=".updates-", dir=self._place())
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(
                    file, 0, size
                )  # a full disk is an error now, not a crash in the middle
            else:
                os.ftruncate(file, size)
            return torch.from_file(name, shared=True, size=numbers, dtype=dtype)
        except OSError as error:
            raise LoclinError(
                f"expected {_bytes(size)} of room in {self._place()} for the updates, found "
                f"{error.strerror or error}: "
                "make room, or choose --store sketch"
            ) from error
        finally:
            os.close(file)
            os.unlink(name)


def free_memory(device: torch.device) -> int:
    """Bytes free on a device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
