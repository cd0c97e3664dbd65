"""Settings of the schedules study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from loclin.errors import LoclinError
from loclin.schedules.terms import Optimiser, Terms
from loclin.studies.settings import (
    BUILT_IN,
    PAPER,
    SEQUENCE_MODELS,
    Profile,
    Settings,
    built_in_models,
    by_lora,
    check_counts,
    check_rates,
    named,
    quick,
)

#: Pairs of tasks by the cosine of their gradients at θ₀: the largest, of the others the nearest to
#: 0, and the smallest.
KINDS = ("agreeing", "neutral", "conflicting")


@dataclass(frozen=True, kw_only=True)
class Config(Terms, Settings):
    """Destroy two tasks, train both back by every schedule at equal gradient evaluations, and see
    where the worse one ends.

    A model, or a LoRA adapter on it, knows several tasks. Pairs of them are chosen by a rule from
    the cosines of their gradients at θ₀: one that agrees, one that is neutral, one that conflicts.
    Both tasks of a pair are destroyed while the others are kept; from there every schedule trains
    them with the same batches and the same number of gradients: summed with weights, in turn,
    mixed, one after the other in both orders, the first order with a remedy, and specialists of
    each joined without training (measures §12).

    The other defaults depend on --profile and --model: the built-in sequence models are trained on
    all their weights, everything else by LoRA.
    """

    study: ClassVar[str] = "schedules"

    seeds: int = 6
    """Independent runs: each has its own adapter (or pretraining, for sequences), damage and order
    of the data."""
    pairs: tuple[str, ...] = KINDS
    """Pairs of tasks: agreeing, neutral, conflicting, by their gradients at θ₀; or two tasks by
    name (copy+swap)."""
    optimisers: tuple[Optimiser, ...] = ("adamw",)
    """By which every schedule trains: adamw, sgd, or both."""
    adamw_lr: float = 1e-3
    """Learning rate of AdamW, the same for all schedules."""
    sgd_lr: float = 3e-2
    """Learning rate of SGD, without momentum."""
    cosine_examples: int = 256
    """Examples behind a task's gradient in the choice of pairs, at most."""
    k: int = 10
    """First updates of a specialist that span its space, for the overlap of two."""

    def checked(self) -> Config:
        """This configuration, if it can be run.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        super().checked()
        self.check_terms(2)
        check_counts(self, ("k", "cosine_examples"))
        check_rates(self, ("adamw_lr", "sgd_lr"))
        if self.task != "each":
            raise LoclinError(
                f"expected pairs of tasks, found --task {self.task}: name them by --pairs A+B"
            )
        if not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise LoclinError(f"expected different pairs, found {list(self.pairs)}: change --pairs")
        for pair in self.pairs:
            if pair not in KINDS and len(set(pair.split("+"))) != 2:
                raise LoclinError(
                    f"expected {', '.join(KINDS)} or two tasks such as copy+swap, found {pair!r}: "
                    "change --pairs"
                )
        if not self.optimisers or len(set(self.optimisers)) < len(self.optimisers):
            raise LoclinError(
                f"expected adamw, sgd or both, found {list(self.optimisers)}: change --optimisers"
            )
        if self.k > self.evaluations // 2:
            raise LoclinError(
                f"expected k of at most {self.evaluations // 2}, the updates of a specialist, "
                f"found {self.k}: lower --k"
            )
        return self

    @property
    def rates(self) -> dict[Optimiser, float]:
        """Learning rate by optimiser, in the order of the report."""
        every: dict[Optimiser, float] = {"adamw": self.adamw_lr, "sgd": self.sgd_lr}
        return {name: every[name] for name in self.optimisers}


def preset(profile: Profile, model: str | None = None) -> Config:
    """The defaults of a profile for a model; paper: 24 runs, both optimisers and torchjd's
    schedules too.
    """
    config = Config(model=named(profile, model), profile=profile, batch=24)
    if config.model not in SEQUENCE_MODELS:
        config = replace(by_lora(config), adamw_lr=3e-3, sgd_lr=1e-1)
    if config.model == "statements-small":  # it knows two tasks
        config = replace(config, pairs=("colour+town",))
    if profile == "smoke":
        return quick(replace(config, adamw_lr=3e-3))
    if profile == "paper":
        return replace(config, seeds=24, optimisers=("adamw", "sgd"), schedules=("all",))
    if config.model == "statements":  # for time alone: its pairs are few and alike
        config = replace(config, pairs=("agreeing", "conflicting"))
    return config


def settings(profile: Profile) -> tuple[Config, ...]:
    """What `loclin reproduce` runs: the built-in models, and with "paper" those of the paper's that
    it trained on several tasks.
    """
    found = tuple(preset(profile, model) for model in built_in_models(profile))
    several = [(model, data) for model, data in PAPER if data in BUILT_IN]  # BoolQ is one task
    return (
        found
        if profile != "paper"
        else (*found, *(replace(preset(profile, m), data=d) for m, d in several))
    )
