"""Settings of `loclin radius`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loclin.errors import LoclinError
from loclin.studies.settings import BUILT_IN, check_counts

GRADIENT = "gradient"


@dataclass(frozen=True, kw_only=True)
class Config:
    """How large a step along one direction can be before its effect on the loss is no longer
    gradient times step?

    For anyone who adds a task vector, merges an adapter or takes one large step: the largest step,
    both ways along the direction, up to which the change of the loss stays within a tolerance of
    what the gradient predicts. Given as a share of the weights' length, as a length, and as a
    multiple of the direction itself (λ of a task vector; the learning rate of one plain step along
    the gradient); measured, and predicted from curvature; with an interval over disjoint groups of
    examples; with the loss and the score there, and whether the whole vector, λ = 1, is inside.
    Nothing is trained.

    Example: loclin radius --model path/to/base --data my-task.jsonl --direction
    path/to/base..path/to/tuned
    """

    direction: str
    """gradient; PATH.safetensors, the changes of named weights; BASE..TUNED, two folders of weights
    or two adapters; or the folder of one LoRA adapter, whose ΔW moves the full weights."""
    model: str
    """The model that is moved: a folder, a hub id, or a built-in model (sequences, statements)."""
    data: str | None = None
    """What it is asked: a JSON Lines file, a hub data set (google/boolq), sequences, statements, or
    self. A built-in model brings its own."""
    task: str | None = None
    """Whose loss; all tasks together by default."""
    space: str = "full"
    """Weights that move: full, or a shell pattern of parameter names ("*attn*"; several separated
    by commas)."""
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

    template: str | None = None
    """Prompt made from a record's fields: "{passage}\\nQuestion: {question}?\\nAnswer:"."""
    long: Literal["drop", "fail"] = "drop"
    """What happens to prompts longer than the model's context."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the weights; in float64 round-off begins at far smaller steps."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one."""
    device_map: str | None = None
    """Spread a large model over devices by accelerate (auto, balanced) instead of --device."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Read it first."""
    seed: int = 0
    """Of the choice of examples."""
    out: Path | None = None
    """Run folder of the report; runs/radius-MODEL-DIRECTION by default."""

    @property
    def entry(self) -> str:
        """Name of the run folder."""
        names = (
            Path(self.model).name,
            *(Path(part).name for part in self.direction.rsplit("..", 1)),
        )
        return "-".join(
            [
                "radius",
                *(
                    re.sub(r"[^A-Za-z0-9.]+", "-", n.removesuffix(".safetensors")).strip("-.")
                    for n in names
                ),
            ]
        )

    def checked(self) -> Config:
        """This configuration, if it can be measured.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        if self.model not in BUILT_IN and self.data is None:
            raise LoclinError(
                f"expected --data with the model {self.model!r}, found none: give a JSON Lines "
                "file, sequences, or self"
            )
        check_counts(self, ("examples", "batch", "per_decade"))
        if self.folds < 2:
            raise LoclinError(f"expected at least 2 folds, found {self.folds}: raise --folds")
        if not 0 < self.tolerance < 1:
            raise LoclinError(
                f"expected a tolerance between 0 and 1, found {self.tolerance}: change --tolerance"
            )
        if not 0 < self.precision < 1:
            raise LoclinError(
                f"expected a precision between 0 and 1, found {self.precision}: change --precision"
            )
        if not 0 < self.smallest < self.largest:
            raise LoclinError(
                f"expected 0 < smallest < largest, found {self.smallest} and {self.largest}: "
                "change --smallest or --largest"
            )
        return self
