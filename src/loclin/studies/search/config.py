"""Settings of the search study. Imports nothing heavy, so that `--help` is quick."""

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
    """Put the Gaussian local-linear law of random search to the test, and see what the best
    candidates are worth.

    A task is destroyed and trained half back. At the damaged point and at the halfway point
    candidates θ + σz are scored on fixed examples whose gradient and Hessian are measured too. The
    study holds the gain of the best of N against the law over N and σ, over spaces of very
    different dimension and over kinds of noise; the gain of every candidate against its alignment
    with the recovery gradient and its overlap with the static plane; the gain of searches inside
    subspaces against their signal density; and, on test examples that selected nothing, votes of
    the best candidates against the best one, the model itself and the model sampled as often
    (measures §10, §11).

    Every σ is relative to the reference σ of the point: where the law expects the most of the
    largest N, or, where that is smaller or there is no such σ, where the curvature's fluctuation is
    as large as the slope.

    The other defaults depend on --profile and --model: the built-in sequence models are searched in
    all their weights, everything else in LoRA's factors.
    """

    study: ClassVar[str] = "search"

    candidates: int = 200
    """Candidates at the reference σ of the damaged point."""
    others: int = 90
    """Candidates at every other σ of both points."""
    inside: int = 32
    """Candidates in every other space, at each σ there, and of every other kind of noise."""
    sizes: tuple[float, ...] = (0.03, 0.2, 0.5, 1.0, 3.0)
    """σ over the reference σ; 1 has to be among them."""
    size: float = 0.2
    """The one of them at which spaces and kinds of noise are compared."""
    best_of: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    """Every N of a best of N, as far as there are as many candidates."""
    n: int = 10
    """The N at which claims are decided."""
    stacked: int = 1
    """Candidates that go through the model in one pass, where they move tensors rather than lie in
    a subspace."""
    noises: tuple[str, ...] = ("lowrank:1", "lowrank:4", "tied")
    """Kinds of noise to hold against gaussian noise."""
    edge: float = 0.2
    """Relative departure from a gain linear in σ at which curvature is said to take over."""

    select_examples: int = 32
    """Examples that candidates are scored by; gradient and Hessian are those of the same ones."""
    validate_examples: int = 128
    """Examples that say when half of the score is back, at most."""
    test_examples: int = 96
    """Examples that ensembles are compared on, at most."""
    halfway_every: int = 4
    """Recovery steps between two looks at the score on the way to the halfway point."""
    probes: int = 12
    """Random probes behind trace and Frobenius norm, one Hessian-vector product each."""
    curvature_chunk: int = 64
    """Examples in a pass that is differentiated. Where one pass holds all of them, its graph is
    kept from product to product, which saves a third of the time."""
    products: Literal["auto", "finite differences"] = "auto"
    """Hessian-vector products: auto differentiates twice, with attention switched to eager; finite
    differences of gradients are a fallback for models whose attention cannot be switched."""

    k: int = 10
    """Dimensions of the static plane and of every subspace that is searched."""
    gradient_batch: int = 16
    """Examples in each gradient behind a subspace."""
    gradients: int = 20
    """Gradients whose top k principal directions make a subspace."""
    task_vector_steps: int = 15
    """AdamW steps from the pretrained point behind each task vector."""

    votes: tuple[int, ...] = (1, 5, 10)
    """Numbers of candidates in a vote; the last one decides."""
    temperature: float = 0.7
    """At which the model itself is sampled, as often as an ensemble votes."""
    asked: int = 40
    """Candidates asked all test examples, for pass@N."""

    def checked(self) -> Config:
        """This configuration, if it can be run.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        super().checked()
        counts = (
            "select_examples",
            "validate_examples",
            "test_examples",
            "halfway_every",
            "gradient_batch",
            "stacked",
        )
        check_counts(self, (*counts, "k", "task_vector_steps", "curvature_chunk"))
        check_within(self, ("k",), self.steps, "T", "raise --steps")
        if self.probes < 2:
            raise LoclinError(
                f"expected at least 2 probes for an interval, found {self.probes}: raise --probes"
            )
        if self.gradients < self.k:
            raise LoclinError(
                f"expected at least k = {self.k} gradients, found {self.gradients}: raise "
                "--gradients"
            )
        if self.dtype in ("bfloat16", "float16", "auto"):
            raise LoclinError(
                f"expected float32 or float64 for gains this small, found --dtype {self.dtype}: "
                "change it"
            )
        self._check_search()
        return self

    def _check_search(self) -> None:
        if not 2 <= self.n <= min(self.candidates, self.others, self.inside):
            raise LoclinError(
                "expected n from 2 to the fewest candidates, "
                f"{min(self.candidates, self.others, self.inside)}, found {self.n}: "
                "change --n, or raise --candidates, --others or --inside"
            )
        if not self.sizes or min(self.sizes) <= 0 or list(self.sizes) != sorted(set(self.sizes)):
            raise LoclinError(
                f"expected growing sizes above 0, found {list(self.sizes)}: change --sizes"
            )
        if not {1.0, self.size} <= set(self.sizes):
            raise LoclinError(
                f"expected 1 and --size {self.size} among --sizes, found {list(self.sizes)}: add "
                "them"
            )
        if self.size > 0.25:
            raise LoclinError(
                f"expected a size of at most 0.25, within the law's domain, found {self.size}: "
                "lower --size"
            )
        if self.n not in self.best_of or min(self.best_of) < 1:
            raise LoclinError(
                f"expected --n {self.n} among --best-of, from 1 on, found {list(self.best_of)}: "
                "add it"
            )
        if not 0 < self.edge < 1:
            raise LoclinError(f"expected an edge between 0 and 1, found {self.edge}: change --edge")
        if len(self.votes) < 2 or self.votes[0] != 1 or list(self.votes) != sorted(set(self.votes)):
            raise LoclinError(
                f"expected growing votes that begin with 1, found {list(self.votes)}: change "
                "--votes"
            )
        if not max(self.votes) <= self.asked <= self.others:
            raise LoclinError(
                f"expected from {max(self.votes)} (the largest vote) to {self.others} candidates "
                "to be asked, found "
                f"{self.asked}: change --asked"
            )
        if not self.temperature > 0:
            raise LoclinError(
                f"expected a temperature above 0, found {self.temperature}: change --temperature"
            )
        if len(set(self.noises)) < len(self.noises) or "gaussian" in self.noises:
            raise LoclinError(
                f"expected noises beside gaussian, each once, found {list(self.noises)}: change "
                "--noises"
            )


def preset(profile: Profile, model: str | None = None) -> Config:
    """The defaults of a profile for a model; smoke takes few candidates and three runs, paper 24
    runs.
    """
    config = Config(model=named(profile, model), profile=profile)
    if config.model not in SEQUENCE_MODELS:
        config = replace(recovering_by_lora(config), gradient_batch=8)
    if config.model not in BUILT_IN:
        config = replace(config, test_examples=64, probes=8, curvature_chunk=8)
    if profile == "smoke":
        fewer = replace(
            recovering_quickly(config),
            sizes=(0.03, 0.2, 1.0, 3.0),
            n=5,
            best_of=(1, 2, 5, 10, 20),
            k=4,
        )
        smaller = replace(
            fewer,
            candidates=24,
            others=12,
            inside=8,
            noises=("lowrank:1", "tied"),
            probes=4,
            gradients=8,
        )
        return replace(smaller, select_examples=32, test_examples=48, votes=(1, 5), asked=12)
    config = replace(config, steps=100)
    return replace(config, seeds=24) if profile == "paper" else config


def settings(profile: Profile) -> tuple[Config, ...]:
    """What `loclin reproduce` runs: the built-in models, or with "paper" the paper's own as well."""
    return studied(preset, profile)
