"""What gradients share: the energy of new gradients in the space of old ones, and how far tasks'
spaces overlap (measures §5, §6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.geometry.spectrum import principal_coefficients
from loclin.record import Row


def crossfitted(
    products: Float[np.ndarray, "n n"], old: slice, new: slice, k: int
) -> tuple[float, float]:
    """Shares of new gradients' energy in the top-k space P of independent old ones (measures §6).

    signal: E[g₁ᵀPg₂]/E[g₁ᵀg₂] over pairs of different new gradients, the share of ‖E g‖² that P
    holds; NaN where the denominator, an unbiased estimate of ‖E g‖², is not positive. energy:
    E‖Pg‖²/E‖g‖². Both are k/D for a random space.

    Args:
        products: Gramian of all gradients.
        old, new: which of them span P, and which are projected; they must not meet.
        k: dimensions of P.
    """
    weights = principal_coefficients(products[old, old], k)
    held = weights.T @ products[old, new]
    inside, whole = held.T @ held, products[new, new]
    pairs = [float(g.sum() - np.trace(g)) for g in (inside, whole)]
    signal = pairs[0] / pairs[1] if pairs[1] > 0 else np.nan
    return signal, float(np.trace(inside) / np.trace(whole))


def crossfit_rows(
    products: Float[np.ndarray, "n n"],
    control: Float[np.ndarray, "n n"],
    ks: Sequence[int],
    columns: int,
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """`crossfitted` at every k, the first half of the gradients spanning; null k/D, and the same
    for the control's vectors.
    """
    half = len(products) // 2
    old, new = slice(0, half), slice(half, 2 * half)
    for name, gram in (("measured", products), ("per tensor", control)):
        for k in ks:
            signal, energy = crossfitted(gram, old, new, k)
            here = {**context, "vectors": name, "k": k}
            null = min(k / columns, 1.0)
            yield Row(quantity="crossfit_energy", value=energy, null=null, context=here)
            if name == "measured":
                value = None if np.isnan(signal) else signal
                yield Row(quantity="crossfit_signal", value=value, null=null, context=here)


def overlap_rows(
    products: Float[np.ndarray, "n n"],
    control: Float[np.ndarray, "n n"],
    sets: Mapping[str, tuple[slice, slice]],
    k: int,
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """Overlap of the top-k spaces of every two tasks; a task with itself by its two independent
    sets of gradients.

    Of two tasks, the mean over the two pairings of different sets. Null: the same of random vectors
    that share nothing but the gradients' norms within every tensor. It is well above k/D, since
    gradients crowd into a few tensors.

    Args:
        products: Gramian of all gradients.
        control: Gramian of as many random vectors with the same norms.
        sets: where each task's two sets are.
        k: dimensions of a space.
        context: of the rows.
    """
    measured, null = _overlaps(products, sets, k), _overlaps(control, sets, k)
    for (a, b), value in measured.items():
        here = {**context, "a": a, "b": b}
        yield Row(quantity="task_overlap", value=value, null=null[a, b], context=here)
    for name, alike in (("within", True), ("between", False)):
        chosen = [pair for pair in measured if (pair[0] == pair[1]) is alike]
        if chosen:
            value, chance = (
                float(np.mean([found[pair] for pair in chosen])) for found in (measured, null)
            )
            yield Row(quantity=f"overlap_{name}", value=value, null=chance, context=dict(context))


def _overlaps(
    products: Float[np.ndarray, "n n"], sets: Mapping[str, tuple[slice, slice]], k: int
) -> dict[tuple[str, str], float]:
    spaces = {
        task: [(part, principal_coefficients(products[part, part], k)) for part in parts]
        for task, parts in sets.items()
    }

    def overlap(first: tuple[slice, np.ndarray], second: tuple[slice, np.ndarray]) -> float:
        between = first[1].T @ products[first[0], second[0]] @ second[1]
        return float(min(np.sum(between**2) / k, 1.0))

    found = {}
    for a, one in spaces.items():
        for b, other in spaces.items():
            found[a, b] = (overlap(one[0], other[1]) + overlap(one[1], other[0])) / 2
    return found
