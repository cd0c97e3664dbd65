"""Bases that a recovery is held against, and what legends call them."""

from __future__ import annotations

from loclin.studies.names import MINIBATCH, PREFIX, RANDOM

KRYLOV, PRECONDITIONED = "Krylov", "preconditioned Krylov"
EIGENVECTORS = "top eigenvectors"
LEGEND = {
    KRYLOV: "Krylov K_k(H, g)",
    PRECONDITIONED: "AdamW's own, K_k(M⁻¹H, M⁻¹g)",
    EIGENVECTORS: "top Hessian eigenvectors",
    MINIBATCH: "minibatch gradients at θ_D",
    PREFIX: "first k updates",
    RANDOM: "random",
}
