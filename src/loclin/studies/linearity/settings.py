"""Settings of the linearity study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

from loclin.errors import LoclinError
from loclin.options import BUILT_IN, SEQUENCE_MODELS
from loclin.studies import presets
from loclin.studies.checks import check_counts, check_within
from loclin.studies.settings import CurvatureSettings, Profile, Sizes, Work


@dataclass(frozen=True, kw_only=True)
class LinearitySettings(CurvatureSettings):
    """Over which steps is the loss straight? The first-order window along gradients, task vectors,
    recoveries and noise.

    At the pretrained point and at the damaged one, the loss and the score of the task are followed
    along straight lines, both ways, over steps from a millionth of the weights' length to all of
    it. The window is the largest step up to which the change of the loss stays within a tolerance
    of gradient times step; it is held against what curvature predicts, against the length of real
    displacements, and against the step at which round-off begins. Pairs of directions: up to which
    size is the effect of the sum the sum of the effects? (measures §7)

    Every step is relative: ε moves the weights by ε times their length along a unit direction; with
    LoRA the weights are the factors A and B.

    The other defaults depend on --profile and --model: the losses of the built-in models are
    followed in float64.
    """

    study: ClassVar[str] = "linearity"
    kind: ClassVar[str] = "linearity"
    scales: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("score", "score_here", "edge_score", "whole_score"), "score"),
        "edge_loss_change": "log",
    }

    untouched: bool = False
    """Measure the model as it is: nothing is taught or destroyed, and θ₀ is the only point."""
    evaluate: Literal["float64", "same"] = "same"
    """Precision in which the loss is followed: float64 (the model is cast when all training is
    done), or that of --dtype, whose round-off is marked."""
    window_examples: int = 128
    """Examples of the test split whose loss is followed."""
    tolerances: tuple[float, ...] = (0.1, 0.5)
    """τ, relative errors at which a window ends; the first is that of the reported window."""
    smallest: float = 1e-6
    """The smallest step ε."""
    largest: float = 1.0
    """The largest step ε."""
    per_decade: int = 3
    """Steps in every decade."""
    task_vector_steps: int = 15
    """AdamW steps from the pretrained point behind each task vector."""
    k: int = 10
    """First updates of a recovery whose sum is a direction too."""
    prefix_vectors: tuple[int, ...] = (1, 10)
    """Which vectors of the prefix basis, the orthonormalised first k updates of each recovery, are
    directions too."""
    hessian_directions: int = 3
    """How many eigenvectors of the largest Hessian eigenvalues are directions, at both points."""

    def work(self, sizes: Sizes) -> list[Work]:
        """Two points; a direction has a product, and a line of steps, their scatter and edges."""
        decades = math.log10(self.largest / self.smallest)
        steps, n = 2 * (decades * self.per_decade + 1) + 12, self.window_examples
        directions = (
            2 * (3 + self.hessian_directions) + sizes.tasks + 2 * (2 + len(self.prefix_vectors))
        )
        trained = (2 * self.steps + sizes.tasks * self.task_vector_steps) * self.batch
        products = directions + 2 * (8 * self.hessian_directions + 5)
        return [
            self.destroying(sizes),
            Work(what="training", backward=trained),
            Work(what="curvature", product=products * n),
            Work(what="following the loss", forward=directions * steps * n),
        ]

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("window_examples", "per_decade", "task_vector_steps", "k"))
        check_counts(self, ("hessian_directions",))
        check_within(self, ("k",), self.steps, "T", "raise --steps")
        check_within(self, ("prefix_vectors",), self.k, "k", "raise --k")
        if not self.tolerances or not 0 < min(self.tolerances) <= max(self.tolerances) < 1:
            raise LoclinError(
                f"expected tolerances between 0 and 1, found {list(self.tolerances)}: change "
                "--tolerances"
            )
        check_line(self)

    @property
    def tolerance(self) -> float:
        """The τ of the reported window."""
        return self.tolerances[0]


def moved(space: str) -> str:
    """What a step moves: with LoRA it is the factors."""
    return "factors" if space == "lora" else "weights"


def check_line(settings: Any) -> None:
    """Whether there are steps to follow a loss over, in a precision that leaves a window."""
    if not 0 < settings.smallest < settings.largest:
        raise LoclinError(
            f"expected 0 < smallest < largest, found {settings.smallest} and {settings.largest}: "
            "change --smallest or --largest"
        )
    if settings.dtype not in ("float32", "float64"):
        raise LoclinError(
            "expected float32 or float64, whose round-off leaves a window to be seen, found "
            f"--dtype {settings.dtype}: change it"
        )


def preset(profile: Profile, model: str | None = None) -> LinearitySettings:
    """The defaults of a profile for a model.

    smoke: short recoveries, few steps on each line. standard: one run on every model, few steps.
    """
    settings = LinearitySettings(model=presets.named(profile, model), profile=profile)
    if settings.model not in SEQUENCE_MODELS:
        settings = presets.recovering_by_lora(settings)
    own: dict[str, Any] = {"evaluate": "float64"} if settings.model in BUILT_IN else {}
    settings = replace(settings, **(own or {"curvature_chunk": 8}))
    if profile == "paper":
        return presets.exhaustive(settings)
    settings = replace(settings, window_examples=24, per_decade=1)
    if presets.costly(settings):
        settings = replace(settings, window_examples=16, hessian_directions=1, smallest=1e-5)
    if profile == "standard":
        return replace(settings, seeds=settings.models_per_claim, steps=min(settings.steps, 100))
    settings = replace(presets.recovering_quickly(settings), task_vector_steps=10)
    return replace(settings, k=5, prefix_vectors=(1, 5))


#: What `loclin reproduce` runs: the built-in models, and a pretrained one as it is; with "paper"
#: the paper's own as well.
reproduced = partial(
    presets.studied,
    preset,
    pretrained={"window_examples": 4, "smallest": 1e-4, "task_vector_steps": 2},
)
