"""Settings of `loclin radius`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from loclin.errors import LoclinError
from loclin.studies.checks import check_counts
from loclin.studies.linearity.settings import check_line
from loclin.studies.settings import ModelSettings, Sizes, Work, digest_of


@dataclass(frozen=True, kw_only=True)
class RadiusSettings(ModelSettings):
    """How large a step along one direction can be before its effect on the loss is no longer
    gradient times step?

    For anyone who adds a task vector, merges an adapter or takes one large step: the largest step,
    both ways along the direction, up to which the change of the loss stays within a tolerance of
    what the gradient predicts. Given as a share of the weights' length, as a length, and as a
    multiple of the direction itself (λ of a task vector; the learning rate of one plain step along
    the gradient); measured, and predicted from curvature; with an interval over disjoint groups of
    examples; with the loss and the score there, and whether the whole vector, λ = 1, is inside.
    Nothing is trained. In float64 (--dtype) round-off begins at far smaller steps.

    Example: loclin radius --model path/to/base --data my-task.jsonl --direction
    path/to/base..path/to/tuned
    """

    study: ClassVar[str] = "radius"
    kind: ClassVar[str] = "radius"
    in_process: ClassVar[bool] = True

    lowered: ClassVar[Mapping[str, int]] = {"examples": 10}
    scored: ClassVar[tuple[str, ...]] = ("examples",)

    workers: Annotated[int, tyro.conf.Suppress] = 0  # there is nothing to share out
    ray: Annotated[str | None, tyro.conf.Suppress] = None

    direction: str
    """gradient; PATH.safetensors, the changes of named weights; BASE..TUNED, two folders of weights
    or two adapters; or the folder of one LoRA adapter, whose ΔW moves the full weights."""
    space: str = "full"
    """Weights that move: full, or a shell pattern of parameter names ("*attn*"; several separated
    by commas)."""
    task: str | None = None
    """Whose loss; all tasks together by default."""
    tolerance: float = 0.1
    """τ, the relative error of the prediction at which a step is too large."""
    examples: int = 128
    """How many examples are asked, at most."""
    folds: int = 5
    """Disjoint groups of examples behind the intervals."""
    batch: int = 16
    """Examples in a pass that is differentiated; lower it where memory is short."""
    curvature: Literal["auto", "double backward", "finite differences"] = "auto"
    """How curvature is taken: auto switches attention to one that can be differentiated twice, and
    falls back on differences."""
    smallest: float = 1e-6
    """The smallest step tried first, as a share of the weights' length."""
    largest: float = 1.0
    """The largest step tried."""
    per_decade: int = 2
    """Steps in every decade, before the edge is closed in on."""
    precision: float = 0.01
    """Relative precision to which the edge is closed in on."""

    @property
    def names(self) -> tuple[str, ...]:
        """Model, data, space and direction."""
        return (*super().names, *self.direction.rsplit("..", 1))

    def work(self, sizes: Sizes) -> list[Work]:
        """Slope and curvature; a grid, its scatter and two edges that are closed in on."""
        n = min(self.examples, sizes.tasks * sizes.examples)
        decades = math.log10(self.largest / self.smallest)
        closing = 2 * math.log2(math.log(10) / self.per_decade / self.precision)
        steps = 2 * (decades * self.per_decade + 1) + closing + 10
        own = n if self.direction == "gradient" else 0
        return [
            Work(what="slope and curvature", backward=n + own, product=n),
            Work(what="following the loss", forward=steps * n),
        ]

    def fingerprint(self) -> dict[str, Any]:
        """The settings, and digests of files that were named, the direction's too."""
        path = Path(self.direction)
        digest = {"direction_digest": digest_of([path])} if path.is_file() else {}
        return {**super().fingerprint(), **digest}

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("examples", "batch", "per_decade"))
        check_counts(self, ("folds",), 2)
        for name in ("tolerance", "precision"):
            if not 0 < getattr(self, name) < 1:
                raise LoclinError(
                    f"expected a {name} between 0 and 1, found {getattr(self, name)}: change "
                    f"--{name}"
                )
        check_line(self)
