"""Settings of the recovery study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from loclin.errors import LoclinError

Profile = Literal["smoke", "standard", "paper"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Destroy a task, train it back, and ask which directions the way back takes.

    A model learns several tasks. One is destroyed (trained on wrong answers) while the others are kept, then trained
    back for T steps with plain SGD and with AdamW. Every update is recorded. The study reports how much of the way back
    lies in bases fixed beforehand, how fast the useful basis drifts, and how much of it the first k updates span, each
    against its nulls and with intervals over independent runs (measures §1-6).
    """

    model: str = "sequences"
    """Built-in model: sequences (150k parameters), or sequences-small."""
    data: str = "sequences"
    """Task data: sequences."""
    space: str = "full"
    """Trained coordinates: full, or a shell pattern of parameter names ("*attn*"; several separated by commas)."""
    seeds: int = 6
    """Independent runs: each has its own pretraining, damage and recovery seeds."""
    seed: int = 0
    """The first run's seed; run r uses seed + r."""
    profile: Profile = "standard"
    """Where the defaults come from: smoke (a minute), standard (ten minutes), paper (hours)."""
    out: Path | None = None
    """Run folder; runs/recovery-PROFILE by default. The same folder and settings go on where they stopped."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the CPU for the built-in models, which are too small to gain from an accelerator."""
    workers: int = 0
    """Runs side by side on the CPU, one thread each; 0 takes every core. The record does not depend on it."""

    task: str = "each"
    """The destroyed task, or each: run r destroys the r-th task of the model, in turn."""
    batch: int = 32
    """Examples in a damage, recovery or projected training step."""
    damage_steps: int = 200
    """Steps on wrong answers to the task and right ones to all others. Repeated until exact match is below 0.05."""
    damage_lr: float = 1e-3
    """AdamW learning rate of the damage."""
    steps: int = 200
    """T, recovery steps."""
    sgd_lr: float = 1e-2
    """Learning rate of SGD recovery, without momentum."""
    adamw_lr: float = 3e-4
    """Learning rate of AdamW recovery, without weight decay."""
    k: int = 10
    """The k at which claims are decided and bases compared."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50)
    """Prefix lengths of the curves (T is added)."""
    times: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    """Steps t at which drift is measured."""
    gradients: int = 64
    """Minibatch gradients behind every gradient basis."""
    gradient_batch: int = 8
    """Examples in each of those gradients."""
    rank_gradients: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers n of gradients at which effective ranks are measured."""
    hessian_batch: int = 128
    """Examples behind the Hessian eigenvectors."""
    task_vector_steps: int = 25
    """AdamW steps from the pretrained point behind each task vector."""
    project_steps: int = 100
    """Steps of training confined to a basis, and of the unconfined training that it is held against."""
    project_ks: tuple[int, ...] = (3, 5, 10, 20, 50)
    """Prefix lengths k that training is confined to."""
    shuffles: int = 99
    """Shuffled orders of the updates drawn as a null."""

    def checked(self) -> Config:
        """This configuration, if it can be run.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        if self.seeds < 1:
            raise LoclinError(f"expected at least one seed, found {self.seeds}: give --seeds 5 or more")
        if self.data != "sequences":
            raise LoclinError(f"unknown data {self.data!r}: expected sequences")
        if self.workers < 0:
            raise LoclinError(f"expected workers from 0 (every core), found {self.workers}: change --workers")
        for name in (
            "batch",
            "damage_steps",
            "steps",
            "gradients",
            "gradient_batch",
            "hessian_batch",
            "project_steps",
            "task_vector_steps",
            "k",
            "shuffles",
        ):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise LoclinError(f"expected {option} of at least 1, found {getattr(self, name)}: change --{option}")
        for name in ("damage_lr", "sgd_lr", "adamw_lr"):
            if not getattr(self, name) > 0:
                raise LoclinError(
                    f"expected a learning rate above 0, found {getattr(self, name)}: change --{name.replace('_', '-')}"
                )
        self._check_lengths()
        return self

    def _check_lengths(self) -> None:
        for name, values in (("k", (self.k,)), ("ks", self.ks), ("project-ks", self.project_ks), ("times", self.times)):
            if not values or min(values) < 1 or max(values) > self.steps:
                raise LoclinError(
                    f"expected {name} from 1 to T = {self.steps} steps, found {list(values)}: change --{name} or raise --steps"
                )
        if self.k not in self.ks:
            raise LoclinError(f"expected --k to be one of --ks {list(self.ks)}, found {self.k}: add it there")
        if self.k > self.gradients:
            raise LoclinError(f"expected k of at most {self.gradients} gradients, found {self.k}: raise --gradients")
        if len(self.rank_gradients) < 2 or min(self.rank_gradients) < 2:
            raise LoclinError(
                f"expected at least two numbers of gradients, each 2 or more, found {list(self.rank_gradients)}: "
                "change --rank-gradients"
            )

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rate by optimiser, in the order of the report."""
        return {"sgd": self.sgd_lr, "adamw": self.adamw_lr}

    @property
    def all_ks(self) -> tuple[int, ...]:
        """The prefix lengths reported, T included."""
        return tuple(sorted({*self.ks, self.steps}))


def preset(profile: Profile) -> Config:
    """The defaults of a profile.

    smoke: small models, short recoveries, three runs: real numbers with wide intervals. paper: twenty runs, so that
    intervals come from the bootstrap, and finer gradient bases.
    """
    standard = Config(profile=profile)
    if profile == "smoke":
        return replace(
            standard,
            model="sequences-small",
            seeds=3,
            steps=50,
            damage_steps=100,
            k=5,
            ks=(1, 2, 3, 5, 8, 10, 15, 20, 30),
            times=(1, 2, 5, 10, 20, 50),
            sgd_lr=3e-2,
            adamw_lr=1e-3,
            gradients=16,
            gradient_batch=6,
            rank_gradients=(4, 8, 16, 32),
            hessian_batch=64,
            project_steps=30,
            project_ks=(2, 5, 10, 20),
            task_vector_steps=10,
            shuffles=19,
        )
    if profile == "paper":
        return replace(standard, seeds=24, gradients=96, rank_gradients=(8, 16, 32, 64, 128, 192), shuffles=999)
    return standard
