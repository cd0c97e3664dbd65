"""The claim that the spectrum study decides, at two points, by a rule written here before any run
(measures §14).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loclin.record import Claim, Row
from loclin.stats import Estimate, mean_above, over_runs
from loclin.studies.spectrum.config import Config
from loclin.studies.table import by_run
from loclin.studies.verdict import SYMBOL, adjusted, figures, setting, verdict

MOST = 0.5  # "well under": half
SATURATED = math.sqrt(
    2
)  # doubling n multiplies the rank of isotropic vectors by 2, of vectors of fixed rank by 1


def decide(config: Config, rows: Sequence[Row]) -> list[Claim]:
    """The claim at both points, p-values adjusted over the two."""
    return adjusted([low_rank_gradients(config, rows, point) for point in SYMBOL])


def low_rank_gradients(config: Config, rows: Sequence[Row], point: str) -> Claim:
    """PR of centred gradients well under the per-tensor random sketch, and no longer growing with
    n.
    """
    most, half = config.counts[-1], config.counts[-2]
    here: dict[str, Any] = {"point": point, "vectors": "measured", "mean": "centred"}
    rank = by_run(rows, "participation_rank", gradients=most, **here)
    ratio = rank / by_run(rows, "participation_rank", column="null", gradients=most, **here)
    # growth over one doubling, whatever the step between the two largest n
    growth = (rank / by_run(rows, "participation_rank", gradients=half, **here)) ** (
        math.log(2) / math.log(most / half)
    )
    e, g, k = (
        over_runs(ratio),
        over_runs(growth),
        max((k for k in config.ks if k <= config.k), default=min(config.ks)),
    )
    energy = by_run(rows, "crossfit_energy", point=point, vectors="measured", k=k)
    symbol = SYMBOL[point]
    return Claim(
        id="low-rank-gradients",
        statement=f"Task gradients at {symbol} have low-rank structure beyond a random sketch with "
        "the same norms.",
        setting=setting(config, symbol),
        paper="rank well under the control (Fig. 5)",
        measured=f"participation ratio over the control's, n = {most} centred minibatch gradients",
        null="1: gradients that share nothing but their norm in every tensor",
        p=max(mean_above(-ratio, -MOST), mean_above(-growth, -SATURATED)),
        p_holm=None,
        rule=f"supported: ratio's upper limit below {MOST} and growth per doubling of n below √2; "
        f"refuted: ratio's lower limit above {MOST}, or growth's above √2",
        verdict=verdict(e.high < MOST and g.high < SATURATED, e.low > MOST or g.low > SATURATED),
        note=f"participation ratio {over_runs(rank)}; growth per doubling {g} (isotropic vectors: "
        "about 2); scaled to unit norm, "
        f"ratio {_unit_norm(rows, most, point)}; the top {k} directions of half of them hold "
        f"{over_runs(energy)} of the energy of "
        f"the other half",
        **figures(e),  # type: ignore[arg-type]
    )


def _unit_norm(rows: Sequence[Row], most: int, point: str) -> Estimate:
    """The same ratio for gradients scaled to unit norm."""
    here: dict[str, Any] = {
        "point": point,
        "vectors": "measured, unit norm",
        "mean": "centred",
        "gradients": most,
    }
    rank = by_run(rows, "participation_rank", **here)
    return over_runs(rank / by_run(rows, "participation_rank", column="null", **here))
