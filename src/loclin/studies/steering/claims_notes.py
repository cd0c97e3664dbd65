"""What the steering claims say beside their verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loclin.steering.estimands import Estimand
from loclin.studies.steering import claims_names as names
from loclin.studies.steering.claims_found import Found
from loclin.studies.verdict import LEVEL

if TYPE_CHECKING:
    from loclin.stats import Scale


def effects_beside(found: Found, of: str, at: str) -> str:
    """The effect over CAA's, on the log scale where every run's has one."""
    texts = []
    for quantity in ("slope_ratio", "kl_ratio"):
        values = found.values(quantity, condition=of, at=at)
        scale: Scale = "plain" if (values <= 0).any() else "log"
        texts.append(found.text(values, scale))
    return f"{texts[0]} at equal length, {texts[1]} at equal KL"


def readout_alone(found: Found, of: str) -> str:
    """cos(Δh, g)/cos(CAA, g) at the late block: the ratio of the effects there, were they the
    readout's and nothing else.
    """
    own = found.values("cosine_with_logits_at", of=of, at=names.CHOSEN)
    return found.text(own / found.cosine(names.LOGITS, names.CHOSEN), "plain")


def labels_say(found: Found, of: str, at: str) -> str:
    """Whether labels give the cosine's sign and size: that of permuted labels reaches it in hardly
    a draw; or a dominant axis of the activations gives the size.
    """
    observed, here = found.cosine(of, at), {"of": of, "null": names.CAA_RELABELLED, "at": at}
    level = found.values("null_at", **here)
    above, null = found.estimate(observed), found.estimate(level)
    if above is None or null is None:
        return "permuted labels of CAA not drawn"
    p = found.above(observed, found.draws("null_draw", **here))
    given = "the sign alone, a dominant axis gives the size" if p < LEVEL else "neither"
    given = "sign and size" if p < LEVEL and above.value > null.value else given
    return f"97.5 % of CAA of permuted labels stay below {found.text(level)}: labels give {given}"


def beyond_readout(found: Found, of: str, at: str) -> str:
    """What is left of a cosine without the readout, and how much random steps have left."""
    left = found.cosine(of, at, names.READOUT)
    if found.estimate(left) is None:
        return "beyond the readout not defined"
    p = found.drawn("", left, of, names.BEYOND, at).value
    return (
        f"beyond the readout {found.text(left)}, p {p:.2g} "
        f"against random directions (97.5 % of them "
        f"{found.mean('null_at', of=of, null=names.BEYOND, at=at)})"
    )


def by_layer(found: Found, of: str) -> str:
    """The cosine at every block."""
    cosines = {
        n: found.values("cosine", of=of, removed=names.NOTHING, layer=n) for n in found.layers()
    }
    return ", ".join(f"{n}: {found.text(values)}" for n, values in cosines.items())


def without(found: Found, of: str, at: str) -> list[str]:
    """The cosine without what could make one by itself, but for the readout, which stands apart."""
    return [
        f"{label} {found.text(found.cosine(of, at, removed))}"
        for removed, label in names.REMOVED.items()
        if removed != names.READOUT
    ]


def chosen_layers(found: Found) -> str:
    """The blocks chosen, and in how many runs each."""
    texts = []
    for place, said in ((names.MIDDLE, "middle"), (names.CHOSEN, "late")):
        layers = found.values("layer", at=place)
        counts = zip(*np.unique(layers[~np.isnan(layers)], return_counts=True), strict=True)
        each = ", ".join(f"{int(layer)} ({n} of {found.runs} runs)" for layer, n in counts)
        texts.append(f"{said} {each}")
    return f"blocks chosen: {'; '.join(texts)}"


def form(found: Found) -> str:
    """Of CAA: what there is depends on the data."""
    return "class" if (found.values("class_form") == 1).all() else "paired"


def why_not(found: Found, of: Estimand) -> str:
    """Why an estimand has no cosine."""
    if form(found) == "class":
        return "not measured"
    if of == "E2":
        return "the right answer counts as + in every example: E2 is E1"
    return "examples have no classes"
