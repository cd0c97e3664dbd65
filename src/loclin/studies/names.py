"""Names that rows of several studies share, and what claims and pages call them: once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loclin.options import BUILT_IN
from loclin.run.rows import Row
from loclin.studies.settings import DamageSettings

OPTIMISERS = {"sgd": "SGD", "adamw": "AdamW"}
POINTS = {"pretrained": "θ₀", "damaged": "θ_D"}
#: What a model knows before anything is trained (measures §16).
KNOWN, ZERO_SHOT, BLIND = "known", "zero_shot_score", "blind_score"
AREA, MASS = "zero_shot_auc", "option_mass"
#: Bases that several studies hold a recovery against.
PREFIX, MINIBATCH, RANDOM = "prefix", "minibatch gradients", "random"
#: Nulls of a prefix's capture of the future, and of d (measures §3), in the order of a figure. With
#: momentum a drift may have its share in the first steps, or come from rest through the optimiser.
DRIFT, FROM_REST, SHUFFLED = FUTURE_NULLS = "drift", "drift from rest", "shuffled order"
OWN_NORMS, WHITE, HEAVY_BALL = "white, own norms", "white", "heavy ball"
PREFIX_NULLS = (DRIFT, FROM_REST, OWN_NORMS, WHITE, HEAVY_BALL, SHUFFLED)


def own(settings: Mapping[str, Any]) -> bool:
    """Whether a study was run on a user's own model, for whom something follows."""
    return settings.get("model", BUILT_IN[0]) not in BUILT_IN


def points(*, untouched: bool) -> dict[str, str]:
    """Where a study measures, by name and symbol: θ₀ alone where nothing is destroyed."""
    return {
        name: symbol for name, symbol in POINTS.items() if name == "pretrained" or not untouched
    }


def displacement(settings: DamageSettings) -> str:
    """What claims call the displacement in the space that decides."""
    if settings.space != "lora":
        return "d"
    return "d in ΔW" if settings.spaces[0] == "weights" else "d in the factors"


def deciding_space(rows: Sequence[Row]) -> str:
    """The space that decides: the weights (with LoRA ΔW) where captures were measured there, else
    the trained coordinates.
    """
    return "weights" if "weights" in {r.context.get("space") for r in rows} else "factors"


def two_spaces(rows: Sequence[Row]) -> bool:
    """Whether captures were measured in ΔW and in the factors."""
    return {"weights", "factors"} <= {r.context.get("space") for r in rows}
