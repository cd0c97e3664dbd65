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

from loclin.record import Claim, Row
from loclin.stats import mean_above, over_runs
from loclin.studies.krylov.config import Config
from loclin.studies.table import by_run
from loclin.studies.verdict import LABEL, adjusted, figures, setting, verdict

MOST = 0.5  # "lie in": half


def decide(config: Config, rows: Sequence[Row]) -> list[Claim]:
    """The claim for both optimisers, p-values adjusted over the two."""
    return adjusted([krylov(config, rows, optimiser) for optimiser in config.learning_rates()])


def krylov(config: Config, rows: Sequence[Row], optimiser: str) -> Claim:
    """The Krylov space holds most of d, and more than as many top eigenvectors and minibatch
    gradients.
    """
    space = config.spaces[0]
    here: dict[str, Any] = {
        "optimiser": optimiser,
        "k": config.k,
        "space": space,
        "of": "displacement",
    }
    held = by_run(rows, "basis_capture", basis="Krylov", **here)
    over_curvature = held - by_run(rows, "basis_capture", basis="top eigenvectors", **here)
    over_gradients = held - by_run(rows, "basis_capture", basis="minibatch gradients", **here)
    e, c, g = over_runs(held), over_runs(over_curvature), over_runs(over_gradients)
    way = "d" if config.space != "lora" else "d in ΔW" if space == "weights" else "d in the factors"
    return Claim(
        id="krylov",
        statement="The way back lies in the Krylov space of gradient and Hessian at the damaged "
        "point.",
        setting=setting(config, LABEL[optimiser]),
        paper="a characterisation, no number (theory)",
        measured=f"capture of {way} by K_k(H, g) at θ_D, k = {config.k} of T = {config.steps} "
        "steps",
        null=f"{MOST}; and as many top Hessian eigenvectors, and as many minibatch gradients, at "
        "θ_D",
        p=max(
            mean_above(held, MOST), mean_above(over_curvature, 0.0), mean_above(over_gradients, 0.0)
        ),
        p_holm=None,
        rule=f"supported: lower limits of the capture above {MOST} and of its excess over top "
        "eigenvectors and over minibatch "
        f"gradients above 0; refuted: the upper limit of the capture below {MOST}, or of its "
        "excess over top eigenvectors below 0",
        verdict=verdict(e.low > MOST and c.low > 0 and g.low > 0, e.high < MOST or c.high < 0),
        note=f"over top eigenvectors {c}; over minibatch gradients {g}"
        + _beside(config, rows, optimiser, here),
        **figures(e),  # type: ignore[arg-type]
    )


def _beside(config: Config, rows: Sequence[Row], optimiser: str, here: dict[str, Any]) -> str:
    """What does not decide: the prefix, AdamW's own space, whether the bound's premise held, how
    products were made.
    """
    held = by_run(rows, "basis_capture", basis="Krylov", **here)
    over_prefix = over_runs(held - by_run(rows, "basis_capture", basis="prefix", **here))
    text = f"; over the first {config.k} updates {over_prefix}"
    if optimiser == "adamw":
        own = by_run(rows, "basis_capture", basis="preconditioned Krylov", **here)
        text += f"; AdamW's own space K_k(M⁻¹H, M⁻¹g) {over_runs(own)}"
    else:
        premise = by_run(rows, "bound_premise", optimiser=optimiser)
        text += (
            "; spectrum within [0, 2/η], the premise of the bound for stopped descent, in "
            f"{int(premise.sum())} of "
            f"{len(premise)} runs"
        )
    return text + (
        "; products by finite differences" if config.products == "finite differences" else ""
    )
