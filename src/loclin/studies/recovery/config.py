"""Settings of the recovery study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from loclin.errors import LoclinError

Profile = Literal["smoke", "standard", "paper"]
SEQUENCE_MODELS = ("sequences", "sequences-small")
BUILT_IN = (*SEQUENCE_MODELS, "statements", "statements-small")  # names alone: the recipes need torch


@dataclass(frozen=True, kw_only=True)
class Config:
    """Destroy a task, train it back, and ask which directions the way back takes.

    A model, or a LoRA adapter on it, knows several tasks. One is destroyed (trained on wrong answers) while the others are
    kept, then trained back for T steps with plain SGD and with AdamW. Every update is recorded. The study reports how much
    of the way back lies in bases fixed beforehand, how fast the useful basis drifts, and how much of it the first k updates
    span, each against its nulls and with intervals over independent runs (measures §1-6).

    The other defaults depend on --profile and --model: the built-in sequence models are trained on all their weights,
    everything else by LoRA.
    """

    model: str = "sequences"
    """sequences (150k parameters) or statements (460k), both built in; a folder; or a hub id such as distilgpt2."""
    data: str | None = None
    """A JSON Lines file, a hub data set (google/boolq), sequences, statements, or self: the model's own samples as the
    capability to destroy and recover. A built-in model brings its own."""
    template: str | None = None
    """Prompt made from a record's fields: "{passage}\\nQuestion: {question}?\\nAnswer:"."""
    long: Literal["drop", "fail"] = "drop"
    """What happens to prompts longer than the model's context."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights; small steps of full weights are rounded away below float32, those of LoRA factors are not."""
    device_map: str | None = None
    """Spread a large model over devices by accelerate (auto, balanced) instead of --device."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Read it first."""

    space: str = "full"
    """Trained coordinates: full; lora; or a shell pattern of parameter names ("*attn*"; several separated by commas)."""
    ranks: tuple[int, ...] = (8,)
    """LoRA rank; run r takes the r-th, in turn."""
    alpha: int | None = None
    """LoRA alpha, the adapter's scale being alpha/rank; twice the rank by default."""
    targets: str = "all-linear"
    """LoRA targets: all-linear, or the last parts of module names, separated by commas ("q_proj,v_proj")."""
    dropout: float = 0.0
    """LoRA dropout while the adapter is trained."""
    lora_init: Literal["default", "gaussian", "orthogonal", "pissa"] = "default"
    """LoRA initialisation, as peft names it."""
    store: Literal["auto", "memory", "disk", "sketch"] = "auto"
    """Where the updates are kept; sketch keeps --sketch-size random combinations of each, auto takes what fits."""
    sketch_size: int = 65536
    """m, numbers kept of every update when sketched."""

    seeds: int = 6
    """Independent runs: each has its own adapter (or pretraining, for sequences), damage and recovery seeds."""
    seed: int = 0
    """The first run's seed; run r uses seed + r."""
    profile: Profile = "standard"
    """Where the defaults come from: smoke (a few minutes), standard (ten minutes), paper (hours)."""
    out: Path | None = None
    """Run folder; runs/recovery-PROFILE by default. The same folder and settings go on where they stopped."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one, the CPU for the built-in models, too small to gain."""
    workers: int = 0
    """Runs side by side on the CPU, one thread each; 0 takes every core. The record does not depend on it."""

    task: str = "each"
    """The destroyed task, or each: run r destroys the r-th task of the model, in turn."""
    reach: float = 0.9
    """Score on every task from which no more is taught before the damage; an adapter is taught one round at least, unless
    the data are the model's own samples."""
    teach_steps: int = 200
    """AdamW steps in a round of teaching all tasks, five rounds at most."""
    teach_lr: float = 1e-3
    """Learning rate of the teaching."""
    batch: int = 24
    """Examples in a damage, recovery or projected training step."""
    damage_steps: int = 100
    """Steps on wrong answers to the task and right ones to all others. Repeated until exact match is below 0.05 (with
    options: until accuracy is below that of guessing)."""
    damage_lr: float = 1e-3
    """AdamW learning rate of the damage."""
    steps: int = 200
    """T, recovery steps."""
    sgd_lr: float = 1e-2
    """Learning rate of SGD recovery, without momentum."""
    adamw_lr: float = 3e-4
    """Learning rate of AdamW recovery, without weight decay."""
    lr_factors: tuple[float, ...] = (1.0,)
    """Factors on both recovery learning rates; run r takes the r-th, in turn."""
    k: int = 10
    """The k at which claims are decided and bases compared."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50)
    """Prefix lengths of the curves (T is added)."""
    times: tuple[int, ...] = (1, 5, 20, 50, 100)
    """Steps t at which drift is measured."""
    gradients: int = 40
    """Minibatch gradients behind every gradient basis."""
    gradient_batch: int = 8
    """Examples in each of those gradients."""
    rank_gradients: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Numbers n of gradients at which effective ranks are measured."""
    hessian_batch: int = 64
    """Examples behind the Hessian eigenvectors, at most those of the recovery split."""
    task_vector_steps: int = 15
    """AdamW steps from the pretrained point behind each task vector."""
    project_steps: int = 50
    """Steps of training confined to a basis, and of the unconfined training that it is held against."""
    project_ks: tuple[int, ...] = (5, 10, 20, 50)
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
        if self.model not in BUILT_IN and self.data is None:
            raise LoclinError(
                f"expected --data with the model {self.model!r}, found none: give a JSON Lines file, sequences, or self"
            )
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
            "teach_steps",
            "sketch_size",
            "k",
            "shuffles",
        ):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise LoclinError(f"expected {option} of at least 1, found {getattr(self, name)}: change --{option}")
        for name in ("teach_lr", "damage_lr", "sgd_lr", "adamw_lr"):
            if not getattr(self, name) > 0:
                raise LoclinError(
                    f"expected a learning rate above 0, found {getattr(self, name)}: change --{name.replace('_', '-')}"
                )
        if self.dtype in ("bfloat16", "float16") and self.space != "lora":
            raise LoclinError(
                f"expected float32 for full weights, whose small steps {self.dtype} rounds away, found --dtype {self.dtype}: "
                "use float32, or --space lora, whose factors stay in float32"
            )
        self._check_lora()
        self._check_lengths()
        return self

    def _check_lora(self) -> None:
        if not self.ranks or min(self.ranks) < 1:
            raise LoclinError(f"expected LoRA ranks of at least 1, found {list(self.ranks)}: change --ranks")
        if not self.lr_factors or not min(self.lr_factors) > 0:
            raise LoclinError(f"expected factors above 0, found {list(self.lr_factors)}: change --lr-factors")
        if not 0 <= self.dropout < 1:
            raise LoclinError(f"expected a dropout from 0 to below 1, found {self.dropout}: change --dropout")
        if self.sketch_size < 4 * self.steps:
            raise LoclinError(
                f"expected a sketch of at least 4 T = {4 * self.steps} numbers, found {self.sketch_size}: raise --sketch-size"
            )

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
        if min(self.times) > 100:
            raise LoclinError(f"expected a time of at most 100 steps, found {list(self.times)}: add one to --times")
        if len(set(self.rank_gradients)) < 2 or min(self.rank_gradients) < 2:
            raise LoclinError(
                f"expected at least two different numbers of gradients, each 2 or more, found {list(self.rank_gradients)}: "
                "change --rank-gradients"
            )

    def learning_rates(self, run: int = 0) -> dict[str, float]:
        """Learning rate by optimiser of one run, in the order of the report."""
        factor = self.lr_factors[run % len(self.lr_factors)]
        return {"sgd": self.sgd_lr * factor, "adamw": self.adamw_lr * factor}

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces captures are measured in, the one that decides claims first.

        With LoRA the weights are ΔW, which the choice of factors does not change; sketched updates are of the factors alone.
        The last one is that of the trained coordinates.
        """
        if self.space != "lora":
            return ("weights",)
        return ("factors",) if self.store == "sketch" else ("weights", "factors")

    @property
    def all_ks(self) -> tuple[int, ...]:
        """The prefix lengths reported, T included."""
        return tuple(sorted({*self.ks, self.steps}))

    @property
    def entry(self) -> str:
        """Name of this study in a record: runs on several models and data may stand in one."""
        names = [self.model, *([self.data] if self.data else []), *([] if self.space == "full" else [self.space])]
        plain = (re.sub(r"\.jsonl?$", "", Path(n).name) for n in names)
        return "-".join(["recovery", *(re.sub(r"[^A-Za-z0-9.]+", "-", n).strip("-") for n in plain)])


def preset(profile: Profile, model: str | None = None) -> Config:
    """The defaults of a profile for a model, the built-in sequence model (a small one for smoke) unless another is named.

    smoke: short recoveries, three runs: real numbers with wide intervals. paper: 24 runs, so that intervals come from the
    bootstrap.
    """
    config = Config(model=model or ("sequences-small" if profile == "smoke" else "sequences"), profile=profile)
    if config.model not in SEQUENCE_MODELS:
        config = _by_lora(config)
    if profile == "smoke":
        return _smoke(config)
    if profile == "paper":
        return replace(config, seeds=24, shuffles=999)
    return config


def _by_lora(config: Config) -> Config:
    return replace(
        config,
        space="lora",
        ranks=(2, 4, 8),
        steps=100,
        teach_steps=100,
        batch=16,
        hessian_batch=32,
        project_steps=30,
        lr_factors=(1.0, 0.5),
        gradients=24,
        gradient_batch=4,
        rank_gradients=(6, 12, 24, 48),
        sgd_lr=3e-2,
    )


def _smoke(config: Config) -> Config:
    sequences = config.model in SEQUENCE_MODELS
    return replace(
        config,
        seeds=3,
        steps=50,
        teach_steps=100,
        k=5,
        ks=(1, 2, 3, 5, 8, 10, 15, 20, 30),
        times=(1, 5, 20, 50),
        damage_lr=config.damage_lr if sequences else 3e-3,
        sgd_lr=3e-2,
        adamw_lr=1e-3,
        gradients=16 if sequences else 10,
        gradient_batch=6 if sequences else 4,
        rank_gradients=(4, 8, 16, 32) if sequences else (4, 8, 16),
        hessian_batch=32,
        project_steps=30,
        project_ks=(2, 5, 10, 20),
        task_vector_steps=10,
        shuffles=19,
    )


def settings(profile: Profile) -> tuple[Config, ...]:
    """What `loclin reproduce` runs: the built-in models, or with "paper" the paper's own as well."""
    built_in = (preset(profile), preset(profile, "statements-small" if profile == "smoke" else "statements"))
    if profile != "paper":
        return built_in
    language = [
        replace(preset(profile, model), data=data)
        for model, data in (
            ("distilgpt2", "sequences"),
            ("gpt2", "sequences"),
            ("distilgpt2", "google/boolq"),
            ("gpt2", "google/boolq"),
            ("Qwen/Qwen2.5-0.5B", "google/boolq"),
        )
    ]
    return (*built_in, *language)
