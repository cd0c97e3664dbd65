"""Settings of the recovery study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from loclin.errors import LoclinError
from loclin.options import SEQUENCE_MODELS
from loclin.studies import presets
from loclin.studies.checks import check_among, check_counts, check_within
from loclin.studies.settings import Profile, Sizes, TrainBackSettings, Work


@dataclass(frozen=True, kw_only=True)
class RecoverySettings(TrainBackSettings):
    """Destroy a task, train it back, and ask which directions the way back takes.

    A model, or a LoRA adapter on it, knows several tasks. One is destroyed (trained on wrong
    answers) while the others are kept, then trained back for T steps with plain SGD and with AdamW.
    Every update is recorded. The study reports how much of the way back lies in bases fixed
    beforehand, how fast the useful basis drifts, and how much of it the first k updates span, each
    against its nulls and with intervals over independent runs (measures §1-5).

    The other defaults depend on --profile and --model: the built-in sequence models are trained on
    all their weights, everything else by LoRA.
    """

    study: ClassVar[str] = "recovery"
    kind: ClassVar[str] = "recovery"
    scales: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("prefix_capture", "future_capture", "basis_capture"), "logit"),
        **dict.fromkeys(("prefix_capture_null", "future_capture_null"), "logit"),
        **dict.fromkeys(("reset_prefix_capture", "reset_future_capture"), "logit"),
        **dict.fromkeys(("regained_by_capture", "overlap", "overlap_floor"), "logit"),
        **dict.fromkeys(("regained_score", "score"), "score"),
    }

    k: int = 10
    """The k at which claims are decided and bases compared."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50)
    """Prefix lengths of the curves (T is added)."""
    times: tuple[int, ...] = (1, 20, 100)
    """Steps t at which drift is measured."""
    gradients: int = 40
    """Minibatch gradients behind every gradient basis."""
    gradient_batch: int = 8
    """Examples in each of those gradients."""
    hessian_batch: int = 64
    """Examples behind the Hessian eigenvectors, at most those of the recovery split."""
    task_vector_steps: int = 15
    """AdamW steps from the pretrained point behind each task vector."""
    project_steps: int = 50
    """Steps of training confined to a basis, and of the unconfined training that it is held
    against."""
    project_ks: tuple[int, ...] = (5, 50)
    """Further prefix lengths that training is confined to, in the first run on every model."""
    project_repeats: int = 1
    """Data orders in which unconfined training, and that confined to the prefix of k or to a fixed
    basis, is done: a claim is about their difference."""
    shuffles: int = 49
    """Shuffled orders of the updates drawn as a null."""

    def work(self, sizes: Sizes) -> list[Work]:
        """Two recoveries and one that is reset; bases of gradients; training confined to bases."""
        confined = (
            2 * self.project_steps * (9 + len(self.project_ks) + 4 * (self.project_repeats - 1))
        )
        bases = 8 + 4 * len(self.times)
        return [
            self.destroying(sizes),
            Work(what="training it back", backward=(3 * self.steps + confined) * self.batch),
            Work(what="bases", backward=bases * self.gradients * self.gradient_batch),
            Work(what="curvature", product=(4 * self.k + 5) * self.hessian_batch),
        ]

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("gradients", "gradient_batch", "hessian_batch", "project_steps"))
        check_counts(self, ("task_vector_steps", "k", "shuffles", "project_repeats"))
        check_within(self, ("k", "ks", "project_ks", "times"), self.steps, "T", "raise --steps")
        check_among(self)
        if self.k > self.gradients:
            raise LoclinError(
                f"expected k of at most {self.gradients} gradients, found {self.k}: raise "
                "--gradients"
            )
        if min(self.times) > 100:
            raise LoclinError(
                f"expected a time of at most 100 steps, found {list(self.times)}: add one to "
                "--times"
            )

    @property
    def all_ks(self) -> tuple[int, ...]:
        """The prefix lengths reported, T included."""
        return tuple(sorted({*self.ks, self.steps}))

    @property
    def first_runs(self) -> int:
        """Runs that measure what no claim rests on as well: one on every model, in turn."""
        return self.models if self.models > 1 else self.runs

    @property
    def head(self) -> int:
        """How many of the first updates are kept exactly: the longest prefix asked about."""
        return max((*self.ks, *self.project_ks))


def preset(profile: Profile, model: str | None = None) -> RecoverySettings:
    """The defaults of a profile for a model.

    smoke: short recoveries, three runs: real numbers with wide intervals. paper: 24 runs on 12
    models.
    """
    settings = RecoverySettings(model=presets.named(profile, model), profile=profile)
    if settings.model not in SEQUENCE_MODELS:
        settings = replace(presets.recovering_by_lora(settings), gradients=24, gradient_batch=4)
        settings = replace(settings, hessian_batch=32, project_steps=30)
    if presets.costly(settings):
        settings = replace(settings, gradients=12, gradient_batch=2, hessian_batch=16)
        settings = replace(settings, times=(1, 20, 50), project_ks=(5,), project_steps=20)
    if profile == "smoke":
        return _smoke(settings)
    if profile == "paper":
        return replace(presets.exhaustive(settings), project_repeats=2, shuffles=999)
    return settings


def _smoke(settings: RecoverySettings) -> RecoverySettings:
    sequences, settings = settings.model in SEQUENCE_MODELS, presets.recovering_quickly(settings)
    if presets.costly(settings):
        settings = replace(settings, gradients=8, project_steps=8, project_ks=(2,), shuffles=19)
        return replace(settings, k=4, ks=(1, 2, 4, 8, 16), times=(1, 12), task_vector_steps=5)
    return replace(
        settings,
        k=5,
        ks=(1, 2, 3, 5, 8, 10, 15, 20, 30),
        times=(1, 5, 20, 50),
        gradients=16 if sequences else 10,
        gradient_batch=6 if sequences else 4,
        hessian_batch=32,
        project_steps=30,
        project_ks=(2, 20),
        task_vector_steps=10,
        shuffles=19,
    )


#: What `loclin reproduce` runs: the built-in models; with "paper" the paper's own as well.
reproduced = partial(presets.studied, preset)
