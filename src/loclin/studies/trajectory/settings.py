"""Settings of `loclin trajectory`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from loclin.errors import LoclinError
from loclin.studies.settings import RunSettings

#: Prefix lengths of the curves; those above the number of segments are left out.
KS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 100, 200)
SHUFFLES = 199


@dataclass(frozen=True, kw_only=True)
class TrajectorySettings(RunSettings):
    """Measure a training run from its checkpoints: which directions did it take, and did the first
    ones tell?

    Reads the folders checkpoint-N of any Hugging Face Trainer or peft run, full weights or
    adapters, as safetensors, one tensor at a time. The way from one checkpoint to the next is a
    segment. Reported, each with its nulls: how much of the whole way, and of the way still to come,
    lies in the span of the first k segments; how far the direction turns; how many dimensions the
    way uses; which tensors moved. For LoRA, in the factors and in the weights that they make.

    Example: loclin trajectory outputs/my-run --start path/to/base-model
    """

    study: ClassVar[str] = "trajectory"
    kind: ClassVar[str] = "trajectory"
    in_process: ClassVar[bool] = True
    kept: ClassVar[bool] = False  # there may be more checkpoints the next time
    workers: ClassVar[int] = 1
    ray: ClassVar[str | None] = None

    folder: Annotated[Path, tyro.conf.Positional]
    """The run's folder (the Trainer's output_dir), with folders checkpoint-N."""
    start: Path | None = None
    """Weights before the first step: the base model's folder, or the initial adapter's; otherwise
    the first checkpoint."""
    pattern: str = "*"
    """Tensors to measure, by shell-style patterns of their names ("*attn*"; several separated by
    commas)."""
    ks: tuple[int, ...] = KS
    """Prefix lengths k of the curves, in segments; those above the number of segments are left out.
    """
    shuffles: int = SHUFFLES
    """Shuffled orders of the segments drawn as a null."""
    momentum: float | None = None
    """Momentum of the run's SGD, or β₁ of its Adam (0.9 where you did not change it): its memory
    goes into the null of a drift. Checkpoints do not say; without it segments have none."""

    @property
    def names(self) -> tuple[str, ...]:
        """The run's folder."""
        return (self.folder.resolve().name,)

    @property
    def run_folder(self) -> Path:
        """Where the record goes."""
        return self.out or Path("runs") / f"trajectory-{self.folder.resolve().name}"

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide the record."""
        return {**super().fingerprint(), "folder": self.folder.resolve()}

    def _check(self) -> None:
        super()._check()
        check(self.ks, self.shuffles)
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise LoclinError(
                f"expected a momentum from 0 to below 1, found {self.momentum}: change --momentum"
            )


def check(ks: tuple[int, ...], shuffles: int) -> None:
    """Raise for prefix lengths or shuffles that cannot be measured."""
    if not ks or min(ks) < 1:
        raise LoclinError(f"expected k of at least 1, found {list(ks)}: change --ks")
    if shuffles < 1:
        raise LoclinError(f"expected shuffles of at least 1, found {shuffles}: change --shuffles")
