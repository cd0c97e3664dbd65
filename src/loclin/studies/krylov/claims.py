"""The claim that the Krylov study decides for each optimiser, by a rule written here before any run
(measures §9, §14).

High capture by a Krylov space is generic to smooth descent, and its first dimension is the mean
gradient, which minibatch gradients share. So the space has to hold most of the way, and more of it
than as many top eigenvectors and than as many minibatch gradients do: curvature has to add
something to the gradient, and the gradient to the curvature. The minibatch gradients see more
examples than gradient and Hessian do: to fall behind them refutes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import mean_above, over_runs
from loclin.studies.krylov.names import EIGENVECTORS, FALLBACK, KRYLOV, PRECONDITIONED
from loclin.studies.krylov.settings import KrylovSettings
from loclin.studies.names import MINIBATCH, OPTIMISERS, PREFIX, displacement
from loclin.studies.verdict import adjusted, figures, setting, verdict

MOST = 0.5  # "lie in": half


def decide(settings: KrylovSettings, rows: Sequence[Row]) -> list[Claim]:
    """The claim for both optimisers, p-values adjusted over the two."""
    return adjusted([krylov(settings, rows, optimiser) for optimiser in settings.learning_rates()])


def krylov(settings: KrylovSettings, rows: Sequence[Row], optimiser: str) -> Claim:
    """The Krylov space holds most of d, and more than as many top eigenvectors and minibatch
    gradients.
    """
    here: dict[str, Any] = {"k": settings.k, "space": settings.spaces[0], "of": "displacement"}
    held, curvature, gradients, prefix = (
        by_run(rows, "basis_capture", basis=b, optimiser=optimiser, **here)
        for b in (KRYLOV, EIGENVECTORS, MINIBATCH, PREFIX)
    )
    e, c, g = over_runs(held), over_runs(held - curvature), over_runs(held - gradients)
    p = (
        mean_above(held, MOST),
        mean_above(held - curvature, 0.0),
        mean_above(held - gradients, 0.0),
    )
    return Claim(
        id="krylov",
        statement="The way back lies in the Krylov space of gradient and Hessian at the damaged "
        "point.",
        setting=setting(settings, OPTIMISERS[optimiser]),
        paper="a characterisation, no number (theory)",
        measured=f"capture of {displacement(settings)} by K_k(H, g) at θ_D, k = {settings.k} of "
        f"T = {settings.steps} steps",
        null=f"{MOST}; and as many top Hessian eigenvectors, and as many minibatch gradients, at "
        "θ_D",
        p=max(p),
        p_holm=None,
        rule=f"supported: lower limits of the capture above {MOST} and of its excess over top "
        "eigenvectors and over minibatch gradients above 0; refuted: the upper limit of the "
        f"capture below {MOST}, or of its excess over top eigenvectors below 0",
        verdict=verdict(e.low > MOST and c.low > 0 and g.low > 0, e.high < MOST or c.high < 0),
        note=f"over top eigenvectors {c}; over minibatch gradients {g}; over the first "
        f"{settings.k} updates {over_runs(held - prefix)}"
        + _beside(settings, rows, optimiser, here),
        **figures(e),  # type: ignore[arg-type]
    )


def _beside(
    settings: KrylovSettings, rows: Sequence[Row], optimiser: str, here: Mapping[str, Any]
) -> str:
    """What does not decide: AdamW's own space, the bound's premise, how products were made."""
    if optimiser == "adamw":
        own = by_run(rows, "basis_capture", basis=PRECONDITIONED, optimiser=optimiser, **here)
        text = f"; AdamW's own space K_k(M⁻¹H, M⁻¹g) {over_runs(own)}"
    else:
        premise = by_run(rows, "bound_premise", optimiser=optimiser)
        text = (
            "; spectrum within [0, 2/η], the premise of the bound for stopped descent, in "
            f"{int(premise.sum())} of {len(premise)} runs"
        )
    fallback = settings.products == FALLBACK
    return text + ("; products by finite differences" if fallback else "")
