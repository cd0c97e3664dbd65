"""Settings of the steering study. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from loclin.errors import LoclinError
from loclin.studies.settings import BUILT_IN, ModelSettings, Profile, check_counts

#: What a run's examples serve; no group of examples is in two of them, nor in two runs.
PARTS = ("labels", "gradient", "shift", "choose", "test")


@dataclass(frozen=True, kw_only=True)
class Config(ModelSettings):
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

    The model is taken as it is: nothing is trained or destroyed. Independent runs are disjoint
    parts of the examples: intervals are over prompts and gradient batches, given the model.
    """

    study: ClassVar[str] = "steering"

    model: str = "statements"
    """statements (460k parameters), built in, or its small twin statements-small; a folder; or a
    hub id such as distilgpt2."""
    data: str | None = None
    """A JSON Lines file of questions with two options, of A/B contrast pairs, or a hub data set
    (google/boolq). A built-in model brings its own, of which what it was trained or chosen on is
    left out."""
    space: str = "full"
    """Weights that step: full; or a shell pattern of parameter names ("*attn*"; several separated
    by commas)."""
    seeds: int = 6
    """Independent runs, each with examples of its own."""

    positive: str | None = None
    """The option that counts as +, where all examples have the same two (" yes" by default);
    otherwise the right one does."""
    layers_path: str | None = None
    """Where the model's blocks are ("model.layers"), where they are not found by themselves."""
    labels: int = 128
    """Examples behind the vector from labels and the gradient of the logits."""
    gradient: int = 64
    """Examples in the gradient step; random search is scored on them too."""
    shift: int = 64
    """Examples on which the shift of activations by a weight step is read."""
    choose: int = 64
    """Examples that choose the layer."""
    test: int = 96
    """Examples on which the effect of a vector is measured."""

    eta: float = 1e-3
    """η, length of the weight step relative to the weights' norm at which claims are decided."""
    etas: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
    """Every η at which the shift is read, both ways; --eta has to be among them."""
    directions: int = 100
    """Random weight directions of every kind, each stepped along both ways."""
    relabelings: int = 100
    """Permutations of the labels of the gradient batch, one gradient step each."""
    permutations: int = 999
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

    strengths: tuple[float, ...] = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
    """Multiples of a vector that are added; slopes are fitted up to 1 either way."""
    random_vectors: int = 20
    """Random directions of activations to hold every effect against."""
    kl: float = 0.1
    """KL divergence on neutral text, in nats a token, at which effects are compared at equal
    damage."""
    neutral: Path | None = None
    """Plain text, one passage a line, to see damage on; the model's own samples by default."""
    neutral_rows: int = 48
    """Passages of it."""
    neutral_tokens: int = 24
    """Tokens of a passage, at most."""

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of every part of a run."""
        return {part: getattr(self, part) for part in PARTS}

    def checked(self) -> Config:
        """This configuration, if it can be run.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        super().checked()
        if self.space == "lora":
            raise LoclinError(
                "expected steps of the model's own weights, found --space lora: use full or a "
                "pattern"
            )
        if self.dtype not in ("float32", "float64"):
            raise LoclinError(
                f"expected float32 or float64 for steps this small, found --dtype {self.dtype}: "
                "change it"
            )
        check_counts(
            self,
            ("directions", "relabelings", "permutations", "tokens", "chance", "random_vectors"),
        )
        check_counts(self, ("candidates", "winners", "neutral_rows"))
        if self.outliers < 0:
            raise LoclinError(
                f"expected a number of coordinates to leave out, found {self.outliers}: change "
                "--outliers"
            )
        for part in PARTS:
            if getattr(self, part) < 8:
                raise LoclinError(
                    f"expected at least 8 examples for {part}, found {getattr(self, part)}: raise "
                    f"--{part}"
                )
        if not self.kl > 0:
            raise LoclinError(f"expected a kl above 0, found {self.kl}: change --kl")
        self._check_steps()
        return self

    def _check_steps(self) -> None:
        if not self.etas or min(self.etas) <= 0 or list(self.etas) != sorted(set(self.etas)):
            raise LoclinError(
                f"expected growing step sizes above 0, found {list(self.etas)}: change --etas"
            )
        if self.eta not in self.etas:
            raise LoclinError(
                f"expected --eta {self.eta:g} among --etas, found {list(self.etas)}: add it"
            )
        if not 0 < self.search_size < 1:
            raise LoclinError(
                f"expected a size of search steps between 0 and 1, found {self.search_size}: "
                "change --search-size"
            )
        if self.winners >= self.candidates:
            raise LoclinError(
                f"expected fewer winners than the {self.candidates} candidates, found "
                f"{self.winners}: lower --winners"
            )
        if list(self.strengths) != sorted(set(self.strengths)) or not {-1.0, 0.0, 1.0} <= set(
            self.strengths
        ):
            raise LoclinError(
                "expected growing strengths with −1, 0 and 1 among them, found "
                f"{list(self.strengths)}: change --strengths"
            )
        if self.neutral_tokens < 2:
            raise LoclinError(
                f"expected neutral text of 2 tokens or more, found {self.neutral_tokens}: raise it"
            )
        if self.neutral is not None and not self.neutral.is_file():
            raise LoclinError(
                f"expected a file of plain text, found none at {self.neutral}: check --neutral"
            )


def preset(profile: Profile, model: str | None = None) -> Config:
    """The defaults of a profile for a model; smoke takes small nulls, with which nothing can be
    supported, and three runs.
    """
    named = model or ("statements-small" if profile == "smoke" else "statements")
    config = Config(model=named, profile=profile)
    if profile == "smoke":
        fewer = replace(
            config, seeds=3, labels=64, gradient=32, shift=32, choose=24, test=40, neutral_rows=24
        )
        smaller = replace(
            fewer,
            etas=(1e-4, 1e-3, 1e-2, 1e-1),
            directions=20,
            relabelings=20,
            permutations=99,
            tokens=20,
        )
        return replace(smaller, candidates=40, winners=8, chance=20, random_vectors=8)
    if profile == "paper" and named in BUILT_IN:
        return replace(config, seeds=8)  # as many as its examples allow
    return config


def settings(profile: Profile) -> tuple[Config, ...]:
    """What `loclin reproduce` runs: the built-in statements, and with "paper" the paper's larger
    model on its own data.
    """
    own = preset(profile)
    return (
        (own, replace(preset(profile, "Qwen/Qwen2.5-0.5B"), data="google/boolq"))
        if profile == "paper"
        else (own,)
    )
