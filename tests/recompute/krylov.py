"""Captures from the Gramian of a basis, its inner products with the updates, and theirs."""

import numpy as np

from tests.recompute import by_run, interval
from tests.recompute.models import models_of

LABELS = {"sgd": "SGD", "adamw": "AdamW"}


def estimates(
    settings: dict, arrays: dict[str, np.ndarray]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """What the first k dimensions of the Krylov space hold of the way back."""
    in_weights = any(key.startswith("update_gramian/weights/") for key in arrays)
    space, found = "weights" if in_weights else "factors", {}
    for optimiser, label in LABELS.items():
        held = captures(settings["k"], arrays, space, optimiser, "Krylov")
        found["krylov", label] = interval(held, models_of(settings), "logit")
    return found


def captures(
    k: int, arrays: dict[str, np.ndarray], space: str, optimiser: str, basis: str
) -> np.ndarray:
    """‖P d‖²/‖d‖² = cᵀG⁻¹c/1ᵀU1 of every run, P projecting on the first k directions of a basis,
    c their inner products with d.
    """
    grams = by_run(arrays, f"basis_gramian/{space}/{basis}")[:, :k, :k]
    along = by_run(arrays, f"basis_updates/{space}/{basis}/{optimiser}")[:, :k].sum(2)
    whole = by_run(arrays, f"update_gramian/{space}/{optimiser}").sum((1, 2))
    inverse = np.linalg.pinv(grams, rcond=1e-12, hermitian=True)
    return np.einsum("ri,rij,rj->r", along, inverse, along) / whole
