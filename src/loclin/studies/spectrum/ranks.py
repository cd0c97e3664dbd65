"""Effective rank of task gradients at θ₀ and θ_D against random sketches, as their number grows (measures §6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.geometry.gramian import gramian
from loclin.geometry.spectrum import centred, effective_ranks, random_sketch
from loclin.parameters import ParameterSpace
from loclin.record import Row
from loclin.seeds import derived


def rank_rows(
    gradients: Float[Tensor, "n D"],
    space: ParameterSpace,
    counts: tuple[int, ...],
    context: Mapping[str, Any],
    *,
    seed: int,
) -> tuple[list[Row], np.ndarray]:
    """Ranks of the first n gradients for every n in `counts`, measured and for two random sketches of the same norms.

    "isotropic" spreads each vector's norm evenly over all coordinates; "per tensor" keeps its norm within every tensor,
    which is the stricter control and the one in the null column.

    Returns:
        The rows, and the Gramian of the gradients.
    """
    whole = gradients.norm(dim=1)[:, None]
    by_tensor = torch.stack([torch.stack([t.norm() for t in space.by_tensor(g).values()]) for g in gradients])
    measured = gramian(gradients)
    spectra = {
        "per tensor": random_sketch(by_tensor, space.sizes, seed=derived(seed, "per tensor")),
        "isotropic": random_sketch(whole, [space.dimension], seed=derived(seed, "isotropic")),
    }
    rows = list(_rows(measured, spectra["per tensor"], counts, {**context, "vectors": "measured"}))
    for name, spectrum in spectra.items():
        rows += _rows(spectrum, None, counts, {**context, "vectors": name})
    return rows, measured


def _rows(
    spectrum: np.ndarray, null: np.ndarray | None, counts: tuple[int, ...], context: Mapping[str, Any]
) -> Iterator[Row]:
    for n in counts:
        for middle, name in ((lambda g: g, "uncentred"), (centred, "centred")):
            ranks = effective_ranks(middle(spectrum[:n, :n]))
            control = effective_ranks(middle(null[:n, :n])) if null is not None else None
            for kind in ("stable", "participation", "entropy"):
                yield Row(
                    quantity=f"{kind}_rank",
                    value=getattr(ranks, kind),
                    null=getattr(control, kind) if control else None,
                    context={**context, "gradients": n, "mean": name},
                )
