"""Settings of the claims about random search. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from loclin.errors import LoclinError
from loclin.options import BUILT_IN, SEQUENCE_MODELS
from loclin.studies.checks import check_counts, check_within
from loclin.studies.presets import (
    costly,
    exhaustive,
    named,
    recovering_by_lora,
    recovering_quickly,
    studied,
)
from loclin.studies.search.names import GAUSSIAN
from loclin.studies.settings import CurvatureSettings, Profile

EXAMPLES = ("select_examples", "validate_examples", "test_examples", "gradient_batch")
COUNTS = (*EXAMPLES, "halfway_every", "k", "task_vector_steps")
DOMAIN = 0.25  # the largest size that is surely in the law's domain: `local_law.DOMAIN`


@dataclass(frozen=True, kw_only=True)
class SearchClaimsSettings(CurvatureSettings):
    """Put the Gaussian local-linear law of random search to the test, and see what the best
    candidates are worth (measures §10, §11).

    A task is destroyed and trained half back. At both points candidates θ + σz are scored on fixed
    examples whose gradient and Hessian are measured too. The gain of the best of N is held against
    the law and its slope alone, over N and σ, over spaces and kinds of noise; the gain of every
    candidate against its alignment with the recovery gradient and its overlap with the static
    plane; the gain inside subspaces, each at its own best σ, against the law's there; and votes of
    the best, on test examples that selected nothing, against the best one, the model itself and the
    model sampled as often.

    Every σ is relative to the reference σ of the point: where the law expects the most of the
    largest N, but at most where the curvature's fluctuation is as large as the slope.

    The other defaults depend on --profile and --model: the built-in sequence models are searched in
    all their weights, everything else in LoRA's factors.
    """

    study: ClassVar[str] = "search"
    kind: ClassVar[str] = "search-claims"
    scales: ClassVar[Mapping[str, str]] = {
        "score": "score",
        "table_score": "score",
        "alignment_correlation": "fisher",
        "overlap_correlation": "fisher",
        "gradient_cosine": "fisher",
        "signal_lift": "log",
    }

    candidates: int = 100
    """Candidates at the reference σ of the damaged point."""
    others: int = 48
    """Candidates at every other σ of both points."""
    inside: int = 24
    """Candidates in every other space, at each σ there (half of them at equal radius), and of every
    other kind of noise."""
    sizes: tuple[float, ...] = (0.03, 0.2, 0.5, 1.0, 3.0)
    """σ over the reference σ; 1 has to be among them."""
    size: float = 0.2
    """The one of them at which kinds of noise are compared; subspaces at equal radius are at so
    much of the smallest of their reference σ."""
    best_of: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    """Every N of a best of N, as far as there are as many candidates."""
    n: int = 10
    """The N at which claims are decided."""
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

    k: int = 10
    """Dimensions of the static plane and of every subspace that is searched."""
    gradient_batch: int = 16
    """Examples in each gradient behind a subspace."""
    gradients: int = 20
    """Gradients whose first k principal directions make a subspace, and the next k another."""
    task_vector_steps: int = 15
    """AdamW steps from the pretrained point behind each task vector."""

    votes: tuple[int, ...] = (1, 5, 10)
    """Numbers of candidates in a vote; the last one decides."""
    temperature: float = 0.7
    """At which the model itself is sampled, as often as an ensemble votes."""
    tested: int = 30
    """Candidates that answer all test examples, for pass@N."""

    def _check(self) -> None:
        super()._check()
        check_counts(self, COUNTS)
        check_within(self, ("k",), self.steps, "T", "raise --steps")
        for expected, holds in (self._rules() | self._vote_rules()).items():
            if not holds:
                raise LoclinError(f"expected {expected}")

    def _rules(self) -> dict[str, bool]:
        least = min(self.candidates, self.others, self.inside)
        sizes, best, noises = list(self.sizes), list(self.best_of), list(self.noises)
        return {
            f"at least 2 probes for an interval, found {self.probes}: raise --probes": (
                self.probes > 1
            ),
            f"at least 2 k = {2 * self.k} gradients, found {self.gradients}: raise --gradients": (
                self.gradients >= 2 * self.k
            ),
            f"float32 or float64 for gains this small, found --dtype {self.dtype}: change it": (
                self.dtype not in ("bfloat16", "float16", "auto")
            ),
            f"n from 2 to the fewest candidates, {least}, found {self.n}: change --n, or raise "
            "--candidates, --others or --inside": 2 <= self.n <= least,
            f"growing sizes above 0, found {sizes}: change --sizes": _grow(sizes),
            f"1 and --size {self.size} among --sizes, found {sizes}: add them": (
                {1.0, self.size} <= set(sizes)
            ),
            f"a size of at most {DOMAIN}, within the law's domain, found {self.size}: lower "
            "--size": self.size <= DOMAIN,
            f"--n {self.n} among --best-of, from 1 on, found {best}: add it": (
                self.n in best and min(best) > 0
            ),
            f"an edge between 0 and 1, found {self.edge}: change --edge": 0 < self.edge < 1,
            f"noises beside gaussian, each once, found {noises}: change --noises": (
                len(set(noises)) == len(noises) and GAUSSIAN not in noises
            ),
        }

    def _vote_rules(self) -> dict[str, bool]:
        votes, most = list(self.votes), max(self.votes, default=0)
        return {
            f"growing votes that begin with 1, found {votes}: change --votes": (
                len(votes) > 1 and votes[0] == 1 and _grow(votes)
            ),
            f"from {most} (the largest vote) to {self.others} candidates to be tested, found "
            f"{self.tested}: change --tested": most <= self.tested <= self.others,
            f"a temperature above 0, found {self.temperature}: change --temperature": (
                self.temperature > 0
            ),
        }


def _grow(values: Sequence[float | int]) -> bool:
    return len(values) > 0 and min(values) > 0 and list(values) == sorted(set(values))


def preset(profile: Profile, model: str | None = None) -> SearchClaimsSettings:
    """The defaults of a profile for a model."""
    settings = SearchClaimsSettings(model=named(profile, model), profile=profile)
    if settings.model not in SEQUENCE_MODELS:
        settings = replace(recovering_by_lora(settings), gradient_batch=8, candidates=150)
    if settings.model not in BUILT_IN:
        settings = replace(settings, test_examples=64, probes=8, curvature_chunk=8)
    if costly(settings):
        return _of_your_own(settings)
    if profile == "smoke":
        return replace(
            recovering_quickly(settings),
            sizes=(0.03, 0.2, 1.0, 3.0),
            n=5,
            best_of=(1, 2, 5, 10, 20),
            k=4,
            candidates=24,
            others=12,
            inside=8,
            noises=("lowrank:1", "tied"),
            probes=4,
            gradients=8,
            select_examples=32,
            test_examples=48,
            votes=(1, 5),
            tested=12,
        )
    settings = replace(settings, steps=100)
    return exhaustive(settings) if profile == "paper" else settings


def _of_your_own(settings: SearchClaimsSettings) -> SearchClaimsSettings:
    """Few candidates, and what needs few examples."""
    settings = replace(settings, gradient_batch=2, select_examples=24, validate_examples=32)
    settings = replace(settings, sizes=(0.03, 0.2, 1.0, 3.0), noises=("lowrank:1", "tied"))
    settings = replace(settings, test_examples=32, votes=(1, 5))
    if settings.profile == "smoke":
        settings = replace(recovering_quickly(settings), candidates=12, others=6, inside=4, n=4)
        settings = replace(settings, best_of=(1, 2, 4, 8), k=4, gradients=8, probes=2)
        return replace(settings, select_examples=12, test_examples=16, tested=6)
    settings = replace(settings, candidates=60, others=24, inside=12, tested=12, seeds=4)
    return replace(settings, best_of=(1, 2, 5, 10, 20, 50), probes=6)


#: What `loclin reproduce` runs: the built-in models; with "paper" the paper's own as well.
reproduced = partial(studied, preset)
