"""What `loclin steer` and `loclin steer claims` are asked alike. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loclin.errors import LoclinError
from loclin.studies.settings import ModelSettings, digest_of
from loclin.studies.steering.names import PARTS

S = TypeVar("S", bound="SteeringSettings")


@dataclass(frozen=True, kw_only=True)
class SteeringSettings(ModelSettings):
    """Settings of a command about steering."""

    data: tuple[str, ...] = ()
    """JSON Lines files of questions with two options or of A/B contrast pairs, hub data sets
    (google/boolq), or statements. A built-in model brings its own, of which what it was trained or
    chosen on is left out."""
    space: str = "full"
    """Weights that step: full, or a shell pattern of parameter names ("*attn*"; several separated
    by commas)."""

    positive: str | None = None
    """The option that counts as +, with its space (" yes", which is the default where all have it).
    Without one the right answer of each example does."""
    layers_path: str | None = None
    """Where the list of blocks is in the model ("model.layers"), if it is not found by itself."""
    eta: float = 1e-3
    """η, the length of the gradient step over the length of the weights."""

    labels: int = 128
    """Examples for the vector from labels, and for the gradient of the logits."""
    gradient: int = 128
    """Examples for the gradient, and for the scores of the search."""
    shift: int = 128
    """Prompts on which the shift of a step is read."""
    choose: int = 64
    """Examples that choose the layer."""
    test: int = 128
    """Examples that measure the effect, in the end."""

    strengths: tuple[float, ...] = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
    """Multiples of a vector that are added; slopes are fitted up to 1 either way."""
    kl: float = 0.1
    """Damage in nats a token at which effects are compared too."""
    neutral: Path | None = None
    """Plain text, one passage a line, on which damage is measured; by default the model's own
    samples."""

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each part."""
        return {name: int(getattr(self, name)) for name in PARTS}

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide the record, and digests of the files that were named."""
        digest = {"neutral_digest": digest_of([self.neutral])} if self.neutral else {}
        return {**super().fingerprint(), **digest}

    def checked(self: S) -> S:
        """These settings, if they can be run; raises as `RunSettings.checked` does."""
        super().checked()
        if self.space == "lora":
            raise LoclinError(
                "expected --space full or a pattern of parameter names, found lora: merge the "
                "adapter into the model, or give a pattern"
            )
        for name in ("eta", "kl"):
            if not 0 < getattr(self, name) < math.inf:
                raise LoclinError(
                    f"expected {name} above 0, found {getattr(self, name)}: change --{name}"
                )
        different = set(self.strengths)
        finite = all(map(math.isfinite, self.strengths))
        if not {-1.0, 0.0, 1.0} <= different or not finite or len(different) < len(self.strengths):
            raise LoclinError(
                "expected different finite strengths with −1, 0 and 1 among them, found "
                f"{list(self.strengths)}: change --strengths"
            )
        if self.neutral is not None and not self.neutral.is_file():
            raise LoclinError(
                f"expected a file for --neutral, found nothing at {self.neutral}: check the path"
            )
        return self
