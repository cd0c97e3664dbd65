"""From a measured estimate to a verdict: what the claims of all studies have in common (measures
§14).

Every rule needs both an interval clear of its threshold and a p-value below 0.05 after Holm's
correction over all claims of one study on one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loclin.run.rows import Claim, finite
from loclin.stats import Estimate, holm
from loclin.studies.settings import StudySettings

LEVEL = 0.05


def adjusted(claims: Sequence[Claim]) -> list[Claim]:
    """The claims with p-values adjusted over all of them; supports that do not survive are taken
    back.
    """
    tested = {i: c.p for i, c in enumerate(claims) if c.p is not None}
    by_claim = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [confirmed(replace(c, p_holm=by_claim.get(i))) for i, c in enumerate(claims)]


def confirmed(claim: Claim) -> Claim:
    """A support that does not survive the correction is no support."""
    lost = claim.verdict == "supported" and (claim.p_holm is None or claim.p_holm >= LEVEL)
    return replace(claim, verdict="inconclusive") if lost else claim


def setting(settings: StudySettings, of: str) -> str:
    """What a claim was tested on: model, data unless they are the model's own, LoRA, the rest."""
    lora = ["LoRA"] if settings.space == "lora" else []
    return ", ".join([settings.model, *settings.data, *lora, of])


def verdict(supported: bool, refuted: bool) -> str:
    """The verdict of a rule whose two conditions exclude each other."""
    return "supported" if supported else "refuted" if refuted else "inconclusive"


def figures(estimate: Estimate | None) -> dict[str, float | int | None]:
    """An estimate as the fields of a claim; nothing where it is not defined."""
    if estimate is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = finite(estimate.low), finite(estimate.high)
    return {"value": estimate.value, "low": low, "high": high, "n": estimate.n}
