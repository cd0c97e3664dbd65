"""What every study is asked: which model and data, which coordinates, how many runs, and how a task
is known and lost.

Imports nothing heavy, so that `--help` is quick. A study's `Config` adds what it measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from loclin.errors import LoclinError

Profile = Literal["smoke", "standard", "paper"]
SEQUENCE_MODELS = ("sequences", "sequences-small")
BUILT_IN = (
    *SEQUENCE_MODELS,
    "statements",
    "statements-small",
)  # names alone: the recipes need torch
M = TypeVar("M", bound="ModelSettings")
S = TypeVar("S", bound="Settings")
R = TypeVar("R", bound="RecoverySettings")
#: The paper's own models and data, in the order of its tables.
PAPER = (
    ("distilgpt2", "sequences"),
    ("gpt2", "sequences"),
    ("distilgpt2", "google/boolq"),
    ("gpt2", "google/boolq"),
    ("Qwen/Qwen2.5-0.5B", "google/boolq"),
)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model and data, which of its weights, and how many runs: what studies ask of a model as
    it is.
    """

    study: ClassVar[str]

    model: str = "sequences"
    """sequences (150k parameters) or statements (460k), both built in, as are their small twins
    sequences-small and statements-small; a folder; or a hub id such as distilgpt2."""
    data: str | None = None
    """A JSON Lines file, a hub data set (google/boolq), sequences, statements, or self: the model's
    own samples as the capability to destroy and recover. A built-in model brings its own."""
    template: str | None = None
    """Prompt made from a record's fields: "{passage}\\nQuestion: {question}?\\nAnswer:"."""
    long: Literal["drop", "fail"] = "drop"
    """What happens to prompts longer than the model's context."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights; small steps of full weights are rounded away below float32, those of LoRA
    factors are not."""
    device_map: str | None = None
    """Spread a large model over devices by accelerate (auto, balanced) instead of --device."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Read it first."""

    space: str = "full"
    """Trained coordinates: full; lora; or a shell pattern of parameter names ("*attn*"; several
    separated by commas)."""
    seeds: int = 6
    """Independent runs: each has its own adapter (or pretraining, for sequences), damage and
    recovery seeds."""
    seed: int = 0
    """The first run's seed; run r uses seed + r."""
    profile: Profile = "standard"
    """Where the defaults come from: smoke (a few minutes), standard (minutes on two cores), paper
    (hours)."""
    out: Path | None = None
    """Run folder; runs/STUDY-MODEL-PROFILE by default. The same folder and settings go on where
    they stopped."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one, the CPU for the built-in models,
    too small to gain."""
    workers: int = 0
    """Runs side by side on the CPU, one thread each; 0 takes every core. The record does not depend
    on it."""

    @property
    def entry(self) -> str:
        """Name of this study in a record: runs on several models and data may stand in one."""
        names = [
            self.model,
            *([self.data] if self.data else []),
            *([] if self.space == "full" else [self.space]),
        ]
        plain = (re.sub(r"\.jsonl?$", "", Path(n).name) for n in names)
        return "-".join(
            [self.study, *(re.sub(r"[^A-Za-z0-9.]+", "-", n).strip("-") for n in plain)]
        )

    def checked(self: M) -> M:
        """These settings, if they can be run.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        if self.seeds < 1:
            raise LoclinError(
                f"expected at least one seed, found {self.seeds}: give --seeds 5 or more"
            )
        if self.model not in BUILT_IN and self.data is None:
            near = get_close_matches(self.model, BUILT_IN, n=1)
            raise LoclinError(
                f"expected --data with the model {self.model!r}, found none: give a JSON Lines "
                "file, sequences, or self"
                + (f"; or did you mean the built-in --model {near[0]}?" if near else "")
            )
        if self.data and self.data.endswith((".jsonl", ".json")) and not Path(self.data).exists():
            raise LoclinError(
                f"expected a file of task data, found nothing at {self.data}: check the path"
            )
        if self.workers < 0:
            raise LoclinError(
                f"expected workers from 0 (every core), found {self.workers}: change --workers"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Settings(ModelSettings):
    """The settings that all studies of a task that is destroyed share (measures §1)."""

    ranks: tuple[int, ...] = (8,)
    """LoRA rank; run r takes the r-th, in turn."""
    alpha: int | None = None
    """LoRA alpha, the adapter's scale being alpha/rank; twice the rank by default."""
    targets: str = "all-linear"
    """LoRA targets: all-linear, or the last parts of module names, separated by commas
    ("q_proj,v_proj")."""
    dropout: float = 0.0
    """LoRA dropout while the adapter is trained."""
    lora_init: Literal["default", "gaussian", "orthogonal", "pissa"] = "default"
    """LoRA initialisation, as peft names it."""
    store: Literal["auto", "memory", "disk", "sketch"] = "auto"
    """Where vectors are kept; sketch keeps --sketch-size random combinations of each, auto takes
    what fits."""
    sketch_size: int = 65536
    """m, numbers kept of every vector when sketched."""

    task: str = "each"
    """The destroyed task, or each: run r destroys the r-th task of the model, in turn."""
    reach: float = 0.9
    """Score on every task from which no more is taught before the damage; an adapter is taught one
    round at least, unless the data are the model's own samples."""
    teach_steps: int = 200
    """AdamW steps in a round of teaching all tasks, five rounds at most."""
    teach_lr: float = 1e-3
    """Learning rate of the teaching."""
    batch: int = 24
    """Examples in a training step after the teaching."""
    damage_steps: int = 100
    """Steps on wrong answers to the task and right ones to all others. Repeated until exact match
    is 0.05 or less (with options: until accuracy is no better than guessing)."""
    damage_lr: float = 1e-3
    """AdamW learning rate of the damage."""

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces captures are measured in, the one that decides claims first.

        With LoRA the weights are ΔW, which the choice of factors does not change; sketched updates
        are of the factors alone. The last one is that of the trained coordinates.
        """
        if self.space != "lora":
            return ("weights",)
        return ("factors",) if self.store == "sketch" else ("weights", "factors")

    def checked(self: S) -> S:
        """These settings, if they can be run; raises as `ModelSettings.checked` does."""
        super().checked()
        check_counts(self, ("batch", "damage_steps", "teach_steps", "sketch_size"))
        check_rates(self, ("teach_lr", "damage_lr"))
        if self.dtype in ("bfloat16", "float16") and self.space != "lora":
            raise LoclinError(
                f"expected float32 for full weights, whose small steps {self.dtype} rounds away, "
                f"found --dtype {self.dtype}: "
                "use float32, or --space lora, whose factors stay in float32"
            )
        if not self.ranks or min(self.ranks) < 1:
            raise LoclinError(
                f"expected LoRA ranks of at least 1, found {list(self.ranks)}: change --ranks"
            )
        if not 0 <= self.dropout < 1:
            raise LoclinError(
                f"expected a dropout from 0 to below 1, found {self.dropout}: change --dropout"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class RecoverySettings(Settings):
    """The same, for studies that train the task back."""

    steps: int = 200
    """T, recovery steps."""
    sgd_lr: float = 1e-2
    """Learning rate of SGD recovery, without momentum."""
    adamw_lr: float = 3e-4
    """Learning rate of AdamW recovery, without weight decay."""
    lr_factors: tuple[float, ...] = (1.0,)
    """Factors on both recovery learning rates; run r takes the r-th, in turn."""

    def checked(self: R) -> R:
        """These settings, if they can be run; raises as `Settings.checked` does."""
        super().checked()
        check_counts(self, ("steps",))
        check_rates(self, ("sgd_lr", "adamw_lr"))
        if not self.lr_factors or not min(self.lr_factors) > 0:
            raise LoclinError(
                f"expected factors above 0, found {list(self.lr_factors)}: change --lr-factors"
            )
        check_sketch(self, self.steps, "T")
        return self

    def learning_rates(self, run: int = 0) -> dict[str, float]:
        """Learning rate by optimiser of one run, in the order of the report."""
        factor = self.lr_factors[run % len(self.lr_factors)]
        return {"sgd": self.sgd_lr * factor, "adamw": self.adamw_lr * factor}


def check_counts(settings: Any, names: Sequence[str]) -> None:
    """Whether some settings are at least 1."""
    for name in names:
        if getattr(settings, name) < 1:
            option = name.replace("_", "-")
            raise LoclinError(
                f"expected {option} of at least 1, found {getattr(settings, name)}: change "
                f"--{option}"
            )


def check_rates(settings: Any, names: Sequence[str]) -> None:
    """Whether some learning rates are above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            option = name.replace("_", "-")
            raise LoclinError(
                f"expected a learning rate above 0, found {getattr(settings, name)}: change "
                f"--{option}"
            )


def check_sketch(settings: Settings, vectors: int, letter: str) -> None:
    """Whether a sketch has room for the span of some vectors."""
    if settings.sketch_size < 4 * vectors:
        raise LoclinError(
            f"expected a sketch of at least 4 {letter} = {4 * vectors} numbers, found "
            f"{settings.sketch_size}: raise --sketch-size"
        )


def check_within(settings: Any, names: Sequence[str], most: int, letter: str, remedy: str) -> None:
    """Whether some lists of counts are from 1 to `most`."""
    for name in names:
        found = getattr(settings, name)
        values = found if isinstance(found, tuple) else (found,)
        if not values or min(values) < 1 or max(values) > most:
            option = name.replace("_", "-")
            raise LoclinError(
                f"expected {option} from 1 to {letter} = {most}, found {list(values)}: change "
                f"--{option} or {remedy}"
            )


def named(profile: Profile, model: str | None) -> str:
    """The model of a profile: the built-in sequence model (a small one for smoke) unless another is
    named.
    """
    return model or ("sequences-small" if profile == "smoke" else "sequences")


def by_lora(config: S) -> S:
    """The defaults for models that are trained by LoRA: everything but the built-in sequence
    models.
    """
    return replace(config, space="lora", ranks=(2, 4, 8), teach_steps=100, batch=16)


def recovering_by_lora(config: R) -> R:
    """The same, with the recovery's."""
    return replace(by_lora(config), steps=100, lr_factors=(1.0, 0.5), sgd_lr=3e-2)


def quick(config: S) -> S:
    """The defaults of the smoke profile: few runs, little teaching."""
    damage_lr = config.damage_lr if config.model in SEQUENCE_MODELS else 3e-3
    return replace(config, seeds=3, teach_steps=100, damage_lr=damage_lr)


def recovering_quickly(config: R) -> R:
    """The same, with a short recovery."""
    return replace(quick(config), steps=50, sgd_lr=3e-2, adamw_lr=1e-3)


def built_in_models(profile: Profile) -> tuple[str, str]:
    """What `loclin reproduce` runs a study on: one model on all weights, one by LoRA."""
    return named(profile, None), "statements-small" if profile == "smoke" else "statements"


def studied(preset: Callable[[Profile, str], S], profile: Profile) -> tuple[S, ...]:
    """A study's settings for everything that `loclin reproduce` runs it on; with "paper" the
    paper's own models and data too.
    """
    built_in = tuple(preset(profile, model) for model in built_in_models(profile))
    if profile != "paper":
        return built_in
    return (*built_in, *(replace(preset(profile, model), data=data) for model, data in PAPER))
