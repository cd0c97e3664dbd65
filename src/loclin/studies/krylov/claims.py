"""The claim that the Krylov study decides for each optimiser, by a rule written here before any run
(measures §9, §14).

High capture by a Krylov space is generic to smooth descent, and its first dimension is the mean
gradient, which minibatch gradients share. So the space has to hold most of the way, and more of it
than as many top eigenvectors and than as many minibatch gradients do: curvature has to add
something to the gradient, and the gradient to the curvature. The minibatch gradients see more
examples than gradient and Hessian do: to fall behind them refutes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loclin.run.rows import Claim, Row, by_run
from loclin.stats import over_models
from loclin.studies.krylov.names import EIGENVECTORS, KRYLOV, PRECONDITIONED
from loclin.studies.krylov.settings import KrylovSettings
from loclin.studies.names import MINIBATCH, OPTIMISERS, PREFIX, displacement
from loclin.studies.verdict import Mean, Rule, decided, rule

MOST = 0.5  # "lie in": half


def decide(settings: KrylovSettings, rows: Sequence[Row]) -> list[Claim]:
    """The claim for both optimisers."""
    return decided([krylov(settings, rows, optimiser) for optimiser in settings.learning_rates()])


def krylov(settings: KrylovSettings, rows: Sequence[Row], optimiser: str) -> Rule:
    """The Krylov space holds most of d, and more than as many top eigenvectors and minibatch
    gradients.
    """
    here: dict[str, Any] = {"k": settings.k, "space": settings.spaces[0], "optimiser": optimiser}
    held, own = (
        by_run(rows, "basis_capture", basis=b, of="displacement", **here)
        for b in (KRYLOV, PRECONDITIONED)
    )
    curvature, gradients, prefix = (
        by_run(rows, "capture_excess", over=b, **here) for b in (EIGENVECTORS, MINIBATCH, PREFIX)
    )
    c, g, p = (over_models(v, settings.models) for v in (curvature, gradients, prefix))
    note = f"over top eigenvectors {c}; over minibatch gradients {g}; over the first {settings.k} "
    note += f"updates {p}"
    if optimiser == "adamw":
        note += f"; AdamW's own space K_k(M⁻¹H, M⁻¹g) {over_models(own, settings.models, 'logit')}"
    else:
        premise = by_run(rows, "bound_premise", optimiser=optimiser)
        note += "; spectrum within [0, 2/η], the premise of the bound for stopped descent, in "
        note += f"{int(premise.sum())} of {len(premise)} runs"
    return rule(
        settings,
        OPTIMISERS[optimiser],
        over_models(held, settings.models, "logit"),
        (
            Mean(name="capture", values=held, threshold=MOST, scale="logit"),
            Mean(name="excess over eigenvectors", values=curvature, threshold=0.0),
            Mean(name="excess over gradients", values=gradients, threshold=0.0, refutes=False),
        ),
        id="krylov",
        statement="The way back lies in the Krylov space of gradient and Hessian at the damaged "
        "point.",
        paper="a characterisation, no number (theory)",
        measured=f"capture of {displacement(settings)} by K_k(H, g) at θ_D, k = {settings.k} of "
        f"T = {settings.steps} steps",
        null=f"{MOST}; and as many top Hessian eigenvectors, and as many minibatch gradients, at "
        "θ_D",
        rule=f"supported: the capture above {MOST} (mean on the logit scale), and what it exceeds "
        "that of top eigenvectors and of minibatch gradients by, paired, above 0; refuted: the "
        f"capture below {MOST}, or its excess over top eigenvectors below 0",
        note=note + ("; products by finite differences" if settings.products != "auto" else ""),
    )
