"""Changes of a model by so much, and what is read under them: a vector that is added costs the
blocks after it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Literal, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from loclin.activations.adding import added
from loclin.activations.blocks import blocks, chosen_layers
from loclin.activations.suffix import Known, remembered, resumable, resumed

T = TypeVar("T")
#: Vectors by layer, 0-based.
ByLayer = Mapping[int, Float[Tensor, " d"]]
#: For a strength, a context inside which the model is changed by so much.
Change = Callable[[float], AbstractContextManager[object]]
#: A change, and by how much.
Dose = tuple[Change, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Adding:
    """Adds strength·v_L to the output of every block L that has a vector; `path` and `only` as
    `added` takes them.
    """

    model: nn.Module
    vectors: ByLayer
    path: str | None = None
    only: Literal["every", "last"] = "every"

    def __call__(self, strength: float) -> AbstractContextManager[object]:
        """Inside, the model with strength·v_L added."""
        scaled = {layer: strength * v for layer, v in self.vectors.items()}
        return added(self.model, scaled, only=self.only, path=self.path)

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks of the model."""
        return blocks(self.model, self.path)

    @property
    def first(self) -> int:
        """The first block that a vector is added to."""
        return min(chosen_layers(len(self.layers), list(self.vectors)))


def adding(
    model: nn.Module,
    vectors: ByLayer,
    *,
    path: str | None = None,
    only: Literal["every", "last"] = "every",
) -> Adding:
    """The change that adds these vectors."""
    return Adding(model=model, vectors=vectors, path=path, only=only)


def as_it_is(read: Callable[[], T], changes: Sequence[Change]) -> tuple[T, Known]:
    """What one pass reads of the model as it is, and what `under` needs to begin at these changes;
    nothing where the model's passes cannot be resumed.
    """
    adders = [c for c in changes if isinstance(c, Adding) and c.vectors]
    if not adders or not resumable(adders[0].model, adders[0].path):
        return read(), {}
    with remembered(adders[0].layers, sorted({c.first for c in adders})) as known:
        return read(), known


def under(read: Callable[[], T], dose: Dose, known: Known) -> T:
    """What one pass over the same rows reads under a change: only the blocks after it are run."""
    change, strength = dose
    with ExitStack() as stack:
        if isinstance(change, Adding) and change.vectors and change.first in known:
            stack.enter_context(resumed(change.layers, change.first, known))
        with change(strength):
            return read()
