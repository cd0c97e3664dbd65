"""Settings of the Krylov study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from loclin.options import BUILT_IN, SEQUENCE_MODELS
from loclin.studies import presets
from loclin.studies.checks import check_among, check_counts, check_within
from loclin.studies.settings import CurvatureSettings, Profile, Sizes, Work


@dataclass(frozen=True, kw_only=True)
class KrylovSettings(CurvatureSettings):
    """Ask how much of a recovery lies in the Krylov space of gradient and Hessian at the damaged
    point.

    A task is destroyed and trained back with plain SGD and with AdamW, as in the recovery study. At
    the damaged point the gradient g and the Hessian H of the task's mean loss make the space K_k(H,
    g), in which gradient descent on a quadratic would stay. The study reports how much of the way
    it holds, and until which step, against equally many top Hessian eigenvectors, minibatch
    gradients, random directions and first updates; the largest eigenvalues, trace and norm of H;
    and the bound for a descent that was stopped (measures §8, §9). One claim for each optimiser.

    The other defaults depend on --profile and --model: the built-in sequence models are trained on
    all their weights, everything else by LoRA.
    """

    study: ClassVar[str] = "krylov"
    kind: ClassVar[str] = "krylov"
    scales: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("basis_capture", "capture_until", "left_over"), "logit"),
        **dict.fromkeys(("descent_length", "left_over_bound", "gradient_norm"), "log"),
        "frobenius_norm": "log",
        "descent_cosine": "fisher",
        "score": "score",
    }

    k: int = 10
    """The k at which claims are decided and bases compared."""
    ks: tuple[int, ...] = (1, 2, 3, 5, 8, 10, 15)
    """Sizes of the bases."""
    times: tuple[int, ...] = (1, 2, 5, 10, 15, 20, 30, 50, 100, 200)
    """Steps t until which the way is held against the bases of size k."""
    curvature_examples: int = 64
    """Examples of the recovery split behind gradient and Hessian."""
    probes: int = 8
    """Random probes behind trace and Frobenius norm, one product each."""

    def work(self, sizes: Sizes) -> list[Work]:
        """Two recoveries; K_k, eigenvectors and probes at the damaged point; descents."""
        products = 2 * self.most + 4 * self.most + 5 + self.probes
        gradients = 2 * self.steps * self.batch + 2 * self.most * self.batch
        return [
            self.destroying(sizes),
            Work(what="training it back", backward=gradients),
            Work(what="curvature", product=products * self.curvature_examples),
        ]

    def _check(self) -> None:
        super()._check()
        check_counts(self, ("k", "curvature_examples"))
        check_within(self, ("k", "ks", "times"), self.steps, "T", "raise --steps")
        check_among(self)
        check_counts(self, ("probes",), 2)

    @property
    def most(self) -> int:
        """Size of the largest basis."""
        return max(self.ks)


def preset(profile: Profile, model: str | None = None) -> KrylovSettings:
    """The defaults of a profile for a model; smoke takes small bases and a short recovery, standard
    one run on every model.
    """
    settings = KrylovSettings(model=presets.named(profile, model), profile=profile)
    if settings.model not in SEQUENCE_MODELS:
        settings = presets.recovering_by_lora(settings)
        settings = replace(
            settings, times=(1, 2, 5, 10, 15, 20, 30, 50, 100), curvature_examples=32
        )
    if settings.model not in BUILT_IN:
        settings = replace(settings, curvature_chunk=8)
    if presets.costly(settings):
        settings = replace(settings, ks=(1, 2, 3, 5, 8, 10), times=(1, 2, 5, 10, 20, 50))
        settings = replace(settings, curvature_examples=24, probes=4)
    if profile == "smoke" and presets.costly(settings):
        smaller = replace(presets.recovering_quickly(settings), k=4, ks=(1, 2, 4))
        return replace(smaller, times=(1, 2, 5, 10, 20), curvature_examples=16)
    if profile == "smoke":
        smaller = replace(
            presets.recovering_quickly(settings),
            k=5,
            ks=(1, 2, 3, 5, 8),
            times=(1, 2, 5, 10, 20, 50),
        )
        return replace(smaller, curvature_examples=32, probes=4)
    if profile == "paper":
        return presets.exhaustive(settings)
    return replace(settings, seeds=settings.models_per_claim)


#: What `loclin reproduce` runs: the built-in models; with "paper" the paper's own as well.
reproduced = partial(presets.studied, preset)
