"""What many gradients say, as rows: effective ranks (measures §6), the energy of new gradients in
the space of old ones, the overlap of tasks' spaces (§5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.geometry.spectrum import centred, effective_ranks, principal_coefficients, random_sketch
from loclin.run.rows import Row, finite
from loclin.seeds import derived
from loclin.studies.spectrum.gradients import Gradients, place_of
from loclin.studies.spectrum.names import (
    CENTRED,
    ISOTROPIC,
    MEASURED,
    OWN,
    PER_TENSOR,
    UNCENTRED,
    UNIT,
)

Gramian = Float[np.ndarray, "n n"]
Context = Mapping[str, Any]
Sets = Mapping[str, tuple[slice, slice]]


def rank_rows(
    measured: Gramian, controls: Mapping[str, Gramian], counts: Sequence[int], context: Context
) -> Iterator[Row]:
    """Ranks of the first n gradients for every n in `counts`, and of each control, with their own
    norms and scaled to unit length; the null column is the isotropic control.

    Where a few examples carry most of the energy, vectors with their norms are of low rank whatever
    their directions, and so is the control: what decides is of unit length. `rank_ratio` and
    `rank_growth` are of centred participation ratios at the last two n, the growth per doubling.
    """
    every, (half, most) = {MEASURED: measured, **controls}, counts[-2:]
    for norms, scaled in ((UNIT, unit_norm), (OWN, np.asarray)):
        ranks = {
            (name, n, mean): effective_ranks(middle(scaled(products)[:n, :n]))
            for name, products in every.items()
            for n in counts
            for mean, middle in ((UNCENTRED, np.asarray), (CENTRED, centred))
        }
        for (name, n, mean), rank in ranks.items():
            control = ranks[ISOTROPIC, n, mean] if name == MEASURED else None
            here = {**context, "vectors": name, "norms": norms, "gradients": n, "mean": mean}
            for kind in ("stable", "participation", "entropy"):
                value, null = getattr(rank, kind), getattr(control, kind, None)
                yield Row(quantity=f"{kind}_rank", value=value, null=null, context=here)
        for name in every:
            last = ranks[name, most, CENTRED].participation
            step = math.log(2) / math.log(most / half)  # whatever is between the two n
            growth = (last / ranks[name, half, CENTRED].participation) ** step
            here = {**context, "vectors": name, "norms": norms}
            yield Row(quantity="rank_growth", value=growth, context=here)
            if name != MEASURED:
                ratio = ranks[MEASURED, most, CENTRED].participation / last
                here = {**context, "control": name, "norms": norms}
                yield Row(quantity="rank_ratio", value=ratio, null=1.0, context=here)


def unit_norm(products: Gramian) -> Gramian:
    """Gramian of the same vectors scaled to unit length; those of zeros stay so."""
    norms = np.sqrt(np.diag(products))
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    result: np.ndarray = products * np.outer(scale, scale)
    return result


def spectrum_rows(
    measured: Gramian, controls: Mapping[str, Gramian], most: int, context: Context
) -> Iterator[Row]:
    """The largest shares p_i = σ_i²/Σσ² of the centred gradients, and of each control; not the last
    one of n, which centring makes 0.
    """
    for name, products in {MEASURED: measured, **controls}.items():
        energy = np.clip(np.linalg.eigvalsh(centred(products))[::-1], 0, None)
        for i, share in enumerate(energy[: min(most, len(energy) - 1)] / energy.sum(), 1):
            here = {**context, "vectors": name, "i": i}
            yield Row(quantity="energy_share", value=float(share), context=here)


def layer_rows(
    gradients: Gradients, tensors: Mapping[str, Gramian], context: Context, *, seed: int
) -> Iterator[Row]:
    """Participation ratio of the gradients within every layer and kind of weight, scaled to unit
    length there and centred, its control, and its share of the energy.

    Weight and bias of a module count as one kind. A place whose gradients vanish has no ratio.
    """
    names, sizes = gradients.space.names, gradients.space.sizes
    places: dict[tuple[int, str], list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(place_of(name), []).append(i)
    whole = sum(float(np.trace(g)) for g in tensors.values())
    for (layer, kind), members in sorted(places.items()):
        here = {**context, "layer": layer, "kind": kind}
        products = np.sum([tensors[names[i]] for i in members], axis=0)
        yield Row(quantity="layer_energy", value=float(np.trace(products)) / whole, context=here)
        rank, null, ratio = None, None, None
        if np.trace(centred(products)) > 0:
            own, of = derived(seed, layer, kind), [sizes[i] for i in members]
            drawn = random_sketch(gradients.norms[:, members], of, seed=own)
            rank, null = (
                effective_ranks(centred(unit_norm(g))).participation for g in (products, drawn)
            )
            ratio = rank / null
            yield Row(quantity="layer_rank", value=rank, null=null, context=here)
        yield Row(quantity="layer_rank_ratio", value=ratio, null=1.0, context=here)


def crossfitted(products: Gramian, old: slice, new: slice, k: int) -> tuple[float, float]:
    """Shares of new gradients' energy in the top-k space P of independent old ones (measures §6).

    signal: E[g₁ᵀPg₂]/E[g₁ᵀg₂] over pairs of different new gradients, the share of ‖E g‖² that P
    holds; NaN where the denominator, an unbiased estimate of ‖E g‖², is not positive. energy:
    E‖Pg‖²/E‖g‖². Both are k/D for a random space. From the Gramian of all; `old` and `new` must not
    meet.
    """
    weights = principal_coefficients(products[old, old], k)
    held = weights.T @ products[old, new]
    inside, whole = held.T @ held, products[new, new]
    pairs = [float(g.sum() - np.trace(g)) for g in (inside, whole)]
    signal = pairs[0] / pairs[1] if pairs[1] > 0 else np.nan
    return signal, float(np.trace(inside) / np.trace(whole))


def crossfit_rows(
    products: Gramian, control: Gramian, ks: Sequence[int], columns: int, context: Context
) -> Iterator[Row]:
    """`crossfitted` at every k, the first half spanning; null k/D, and the same for the control."""
    half = len(products) // 2
    old, new = slice(0, half), slice(half, 2 * half)
    for name, gram in ((MEASURED, products), (PER_TENSOR, control)):
        for k in ks:
            signal, energy = crossfitted(gram, old, new, k)
            here, null = {**context, "vectors": name, "k": k}, min(k / columns, 1.0)
            yield Row(quantity="crossfit_energy", value=energy, null=null, context=here)
            if name == MEASURED:
                yield Row(quantity="crossfit_signal", value=finite(signal), null=null, context=here)


def overlap_rows(
    products: Gramian, control: Gramian, sets: Sets, k: int, context: Context
) -> Iterator[Row]:
    """Overlap of the top-k spaces of every two tasks; of a task with itself by its two sets.

    Of two tasks, the mean over the two pairings of different sets. Null: the same of random vectors
    that share nothing but the gradients' norms within every tensor (`control`). It is well above
    k/D, since gradients crowd into a few tensors.
    """
    measured, null = _overlaps(products, sets, k), _overlaps(control, sets, k)
    for (a, b), value in measured.items():
        here = {**context, "a": a, "b": b}
        yield Row(quantity="task_overlap", value=value, null=null[a, b], context=here)
    for name, same in (("within", True), ("between", False)):
        if pairs := [pair for pair in measured if (pair[0] == pair[1]) is same]:
            value, chance = (float(np.mean([of[p] for p in pairs])) for of in (measured, null))
            yield Row(quantity=f"overlap_{name}", value=value, null=chance, context=context)


def _overlaps(products: Gramian, sets: Sets, k: int) -> dict[tuple[str, str], float]:
    spaces = {
        task: [(part, principal_coefficients(products[part, part], k)) for part in parts]
        for task, parts in sets.items()
    }

    def overlap(first: tuple[slice, np.ndarray], second: tuple[slice, np.ndarray]) -> float:
        between = first[1].T @ products[first[0], second[0]] @ second[1]
        return float(min(np.sum(between**2) / k, 1.0))

    return {
        (a, b): (overlap(one[0], other[1]) + overlap(one[1], other[0])) / 2
        for a, one in spaces.items()
        for b, other in spaces.items()
    }
