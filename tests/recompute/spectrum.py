"""Ranks of gradients from their Gramians and those of random vectors with the same norms."""

import numpy as np

from tests.recompute import by_run, interval
from tests.recompute.models import models_of

POINTS = {"pretrained": "θ₀", "damaged": "θ_D"}


def estimates(
    settings: dict, arrays: dict[str, np.ndarray]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Participation ratio of n centred gradients of unit length over that of isotropic vectors."""
    found = {}
    for point, symbol in POINTS.items():
        gradients, random = (
            [participation(g, settings["counts"][-1]) for g in by_run(arrays, f"{name}/{point}")]
            for name in ("gradient_gramian", "control_gramian/isotropic")
        )
        ratios = np.array(gradients) / np.array(random)
        found["low-rank-gradients", symbol] = interval(ratios, models_of(settings), "log")
    return found


def participation(products: np.ndarray, n: int) -> float:
    """(Σσ²)²/Σσ⁴ of the first n vectors, scaled to unit length and centred."""
    lengths = np.sqrt(np.diag(products))[:n]
    unit = products[:n, :n] / np.outer(lengths, lengths)
    centring = np.eye(n) - 1 / n
    energy = np.linalg.eigvalsh(centring @ unit @ centring)
    return float(energy.sum() ** 2 / (energy**2).sum())
