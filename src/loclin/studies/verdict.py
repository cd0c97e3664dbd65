"""From a measured estimate to a verdict: what the claims of all studies have in common (measures
§14).

Every rule needs both an interval clear of its threshold and a p-value below 0.05 after Holm's
correction over all claims of one study on one model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from loclin.record import Claim
from loclin.stats import Estimate, holm
from loclin.studies.settings import ModelSettings

LEVEL = 0.05
LABEL = {"sgd": "SGD", "adamw": "AdamW"}
SYMBOL = {"pretrained": "θ₀", "damaged": "θ_D"}


def adjusted(claims: Sequence[Claim]) -> list[Claim]:
    """The claims with their p-values adjusted over all of them, and supports that do not survive it
    taken back.
    """
    tested = [c for c in claims if c.p is not None]
    by_claim = dict(
        zip(map(id, tested), holm([c.p for c in tested if c.p is not None]), strict=True)
    )
    return [confirmed(replace(c, p_holm=by_claim.get(id(c)))) for c in claims]


def confirmed(claim: Claim) -> Claim:
    """A support that does not survive the correction is no support."""
    lost = claim.verdict == "supported" and (claim.p_holm is None or claim.p_holm >= LEVEL)
    return replace(claim, verdict="inconclusive") if lost else claim


def setting(config: ModelSettings, of: str) -> str:
    """What a claim was tested on: model, data where it is not the model's own, LoRA, and the rest."""
    return ", ".join(
        [
            config.model,
            *([config.data] if config.data else []),
            *(["LoRA"] if config.space == "lora" else []),
            of,
        ]
    )


def verdict(supported: bool, refuted: bool) -> str:
    """The verdict of a rule whose two conditions exclude each other."""
    return "supported" if supported else "refuted" if refuted else "inconclusive"


def figures(estimate: Estimate | None) -> dict[str, float | int | None]:
    """An estimate as the fields of a claim; nothing where it is not defined."""
    if estimate is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    finite = math.isfinite(estimate.low)
    return {
        "value": estimate.value,
        "low": estimate.low if finite else None,
        "high": estimate.high if finite else None,
        "n": estimate.n,
    }
