"""The claim that the spectrum study decides, at two points, by a rule written here before any run
(measures §14).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import mean_above, over_runs
from loclin.studies.names import POINTS
from loclin.studies.spectrum.names import CENTRED, MEASURED, UNIT_NORM
from loclin.studies.spectrum.settings import SpectrumSettings
from loclin.studies.verdict import adjusted, figures, setting, verdict

MOST = 0.5  # "well under": half
#: Doubling n multiplies the rank of isotropic vectors by 2, of vectors of fixed rank by 1.
SATURATED = math.sqrt(2)


def decide(settings: SpectrumSettings, rows: Sequence[Row]) -> list[Claim]:
    """The claim at both points, p-values adjusted over the two."""
    return adjusted([low_rank_gradients(settings, rows, point) for point in POINTS])


def low_rank_gradients(settings: SpectrumSettings, rows: Sequence[Row], point: str) -> Claim:
    """The participation ratio of centred gradients is well under that of random vectors with the
    same norms, and no longer grows with n.
    """
    most, half, symbol = settings.counts[-1], settings.counts[-2], POINTS[point]

    def ranks(n: int, vectors: str = MEASURED, column: str = "value") -> Float[np.ndarray, " S"]:
        here = {"point": point, "vectors": vectors, "mean": CENTRED, "gradients": n}
        return by_run(rows, "participation_rank", column, **here)

    rank = ranks(most)
    ratio = rank / ranks(most, column="null")
    unit = over_runs(ranks(most, UNIT_NORM) / ranks(most, UNIT_NORM, "null"))
    # growth over one doubling, whatever the step between the two largest n
    growth = (rank / ranks(half)) ** (math.log(2) / math.log(most / half))
    e, g = over_runs(ratio), over_runs(growth)
    k = max((k for k in settings.ks if k <= settings.k), default=min(settings.ks))
    energy = by_run(rows, "crossfit_energy", point=point, vectors=MEASURED, k=k)
    return Claim(
        id="low-rank-gradients",
        statement=f"Task gradients at {symbol} have low-rank structure beyond a random sketch with "
        "the same norms.",
        setting=setting(settings, symbol),
        paper="rank well under the control (Fig. 5)",
        measured=f"participation ratio over the control's, n = {most} centred minibatch gradients",
        null="1: gradients that share nothing but their norm in every tensor",
        p=max(mean_above(-ratio, -MOST), mean_above(-growth, -SATURATED)),
        p_holm=None,
        rule=f"supported: ratio's upper limit below {MOST} and growth per doubling of n below √2; "
        f"refuted: ratio's lower limit above {MOST}, or growth's above √2",
        verdict=verdict(e.high < MOST and g.high < SATURATED, e.low > MOST or g.low > SATURATED),
        note=f"participation ratio {over_runs(rank)}; growth per doubling {g} (isotropic vectors: "
        f"about 2); scaled to unit norm, ratio {unit}; the top {k} directions of half of them hold "
        f"{over_runs(energy)} of the energy of the other half",
        **figures(e),  # type: ignore[arg-type]
    )
