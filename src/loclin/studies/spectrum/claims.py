"""The claim that the spectrum study decides, at two points, by a rule written here before any run
(measures §6, §14).

Where a few examples carry the energy, gradients are of low rank by their norms alone, and so are
random vectors with these norms: what decides is scaled to unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import Estimate, Scale, over_models
from loclin.studies.names import POINTS, points
from loclin.studies.spectrum.names import ISOTROPIC, MEASURED, OWN, PER_TENSOR, UNIT
from loclin.studies.spectrum.settings import SpectrumSettings
from loclin.studies.verdict import Mean, Rule, decided, rule

MOST = 0.5  # "well under": half
#: The rank grows as this power of n: 1 for isotropic vectors, 0 for those of fixed rank.
SATURATED = 0.5
Values = Float[np.ndarray, " S"]


def decide(settings: SpectrumSettings, rows: Sequence[Row]) -> list[Claim]:
    """The claim at both points."""
    at = points(untouched=settings.untouched)
    return decided([low_rank_gradients(settings, rows, point) for point in at])


def low_rank_gradients(settings: SpectrumSettings, rows: Sequence[Row], point: str) -> Rule:
    """The participation ratio of centred gradients of unit length is well under that of random
    vectors, and hardly grows with n any more.
    """
    n, symbol = settings.counts[-1], POINTS[point]

    def of(quantity: str, **context: Any) -> Values:
        return by_run(rows, quantity, point=point, **context)

    def mean(values: Values, scale: Scale = "log") -> Estimate:
        return over_models(values, settings.models, scale)

    ratio, strict = (of("rank_ratio", norms=UNIT, control=c) for c in (ISOTROPIC, PER_TENSOR))
    growth, control = (of("rank_growth", norms=UNIT, vectors=v) for v in (MEASURED, ISOTROPIC))
    matched = mean(of("rank_ratio", norms=OWN, control=ISOTROPIC))
    matched_growth = mean(of("rank_growth", norms=OWN, vectors=MEASURED))
    k = max((k for k in settings.ks if k <= settings.k), default=min(settings.ks))
    energy = of("crossfit_energy", vectors=MEASURED, k=k)
    well_under = Mean(name="ratio", values=ratio, threshold=MOST, below=True, scale="log")
    return rule(
        settings,
        symbol,
        mean(ratio),
        (
            well_under,
            replace(well_under, name="ratio by tensor", values=strict, refutes=False),
            Mean(name="power of n", values=np.log2(growth), threshold=SATURATED, below=True),
        ),
        id="low-rank-gradients",
        statement=f"Task gradients at {symbol} have low-rank structure beyond a random sketch, "
        "their norms apart.",
        paper="rank well under the control (Fig. 5)",
        measured=f"participation ratio over that of isotropic vectors, n = {n} centred minibatch "
        "gradients, all scaled to unit length",
        null="1: vectors of unit length that share nothing, or nothing but their norms by tensor",
        rule=f"supported: the ratio to isotropic vectors below {MOST}, so that to vectors with the "
        "same norms by tensor, and the growth per doubling of n below √2 (as n^½); refuted: the "
        f"first above {MOST}, or the growth above √2; means on a log scale",
        note=f"growth per doubling {mean(growth)} (isotropic vectors: {mean(control)}); ratio to "
        f"vectors with the same norms by tensor {mean(strict)}; not scaled, against isotropic "
        f"vectors of the same norms, ratio {matched} and growth {matched_growth} (where a few "
        "gradients carry the energy, random vectors with their norms are of low rank too); the top "
        f"{k} directions of half of them hold {mean(energy, 'logit')} of the energy of the other "
        "half",
    )
