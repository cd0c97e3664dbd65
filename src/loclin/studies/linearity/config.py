"""Settings of the linearity study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from loclin.errors import LoclinError
from loclin.studies.settings import (
    BUILT_IN,
    SEQUENCE_MODELS,
    Profile,
    RecoverySettings,
    check_counts,
    check_within,
    named,
    recovering_by_lora,
    recovering_quickly,
    studied,
)


@dataclass(frozen=True, kw_only=True)
class Config(RecoverySettings):
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

    evaluate: Literal["float64", "same"] = "same"
    """Precision in which the loss is followed: float64 (the model is cast when all training is
    done), or that of --dtype, whose round-off is marked."""
    window_examples: int = 128
    """Examples of the test split whose loss is followed."""
    tolerances: tuple[float, ...] = (0.1, 0.5)
    """τ, relative errors at which a window ends; the first decides the claims."""
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
    curvature_chunk: int = 64
    """Examples in a pass that is differentiated. Where one pass holds all of them, its graph is
    kept from product to product, which saves a third of their time."""
    products: Literal["auto", "finite differences"] = "auto"
    """Hessian-vector products: auto differentiates twice, with attention switched to eager; finite
    differences of gradients are a fallback for models whose attention cannot be switched."""

    def checked(self) -> Config:
        """This configuration, if it can be run.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        super().checked()
        check_counts(
            self, ("window_examples", "per_decade", "task_vector_steps", "k", "curvature_chunk")
        )
        check_counts(self, ("hessian_directions",))
        check_within(self, ("k",), self.steps, "T", "raise --steps")
        check_within(self, ("prefix_vectors",), self.k, "k", "raise --k")
        check_grid(self.smallest, self.largest, self.tolerances)
        if self.dtype in ("bfloat16", "float16", "auto"):
            raise LoclinError(
                "expected float32 or float64, whose round-off leaves a window to be seen, found "
                f"--dtype {self.dtype}: change it"
            )
        return self

    @property
    def precision(self) -> str:
        """What losses are evaluated in."""
        return "float64" if self.evaluate == "float64" else self.dtype

    @property
    def tolerance(self) -> float:
        """The τ that decides."""
        return self.tolerances[0]


def check_grid(smallest: float, largest: float, tolerances: tuple[float, ...]) -> None:
    """Raise for steps that are no range or tolerances that are no shares."""
    if not 0 < smallest < largest:
        raise LoclinError(
            f"expected 0 < smallest < largest, found {smallest} and {largest}: change --smallest "
            "or --largest"
        )
    if not tolerances or not 0 < min(tolerances) <= max(tolerances) < 1:
        raise LoclinError(
            f"expected tolerances between 0 and 1, found {list(tolerances)}: change --tolerances"
        )


def preset(profile: Profile, model: str | None = None) -> Config:
    """The defaults of a profile for a model.

    smoke: short recoveries, few steps on each line, three runs. standard: four runs. paper: 24
    runs, so that intervals come from the bootstrap.
    """
    config = Config(model=named(profile, model), profile=profile)
    if config.model not in SEQUENCE_MODELS:
        config = recovering_by_lora(config)
    config = (
        replace(config, evaluate="float64")
        if config.model in BUILT_IN
        else replace(config, curvature_chunk=8)
    )
    if profile == "smoke":
        return replace(
            recovering_quickly(config),
            window_examples=24,
            per_decade=1,
            task_vector_steps=10,
            k=5,
            prefix_vectors=(1, 5),
        )
    if profile == "paper":
        return replace(config, seeds=24, window_examples=128)
    return replace(config, seeds=4, steps=100, window_examples=24, per_decade=2)


def settings(profile: Profile) -> tuple[Config, ...]:
    """What `loclin reproduce` runs: the built-in models, or with "paper" the paper's own as well."""
    return studied(preset, profile)
