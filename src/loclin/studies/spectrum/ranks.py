"""Effective ranks of gradients and of their controls as their number grows; by layer and kind of
weight (measures §6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from loclin.geometry.spectrum import centred, effective_ranks, random_sketch
from loclin.record import Row
from loclin.seeds import derived
from loclin.studies.spectrum.gather import Gathered, place_of

Gramian = Float[np.ndarray, "n n"]


def rank_rows(
    measured: Gramian,
    controls: Mapping[str, Gramian],
    counts: tuple[int, ...],
    context: Mapping[str, Any],
) -> Iterator[Row]:
    """Ranks of the first n gradients for every n in `counts`, measured and for each control.

    The null column of what was measured is the control "per tensor". The same is given for
    gradients scaled to unit norm: where a few examples carry most of the energy, vectors with those
    norms are of low rank whatever their directions.
    """
    yield from _ranks(measured, controls["per tensor"], counts, {**context, "vectors": "measured"})
    unit, null = _unit(measured), _unit(controls["per tensor"])
    yield from _ranks(unit, null, counts, {**context, "vectors": "measured, unit norm"})
    for name, products in controls.items():
        yield from _ranks(products, None, counts, {**context, "vectors": name})


def _unit(products: Gramian) -> Gramian:
    norms = np.sqrt(np.diag(products))
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    result: np.ndarray = products * np.outer(scale, scale)
    return result


def _ranks(
    products: Gramian, null: Gramian | None, counts: tuple[int, ...], context: Mapping[str, Any]
) -> Iterator[Row]:
    for n in counts:
        for middle, name in ((lambda g: g, "uncentred"), (centred, "centred")):
            ranks = effective_ranks(middle(products[:n, :n]))
            control = effective_ranks(middle(null[:n, :n])) if null is not None else None
            for kind in ("stable", "participation", "entropy"):
                yield Row(
                    quantity=f"{kind}_rank",
                    value=getattr(ranks, kind),
                    null=getattr(control, kind) if control else None,
                    context={**context, "gradients": n, "mean": name},
                )


def spectrum_rows(
    measured: Gramian, controls: Mapping[str, Gramian], most: int, context: Mapping[str, Any]
) -> Iterator[Row]:
    """The largest shares p_i = σ_i²/Σσ² of the centred gradients, and of each control."""
    for name, products in {"measured": measured, **controls}.items():
        energy = np.clip(np.linalg.eigvalsh(centred(products))[::-1], 0, None)
        for i, share in enumerate(energy[:most] / energy.sum(), 1):
            yield Row(
                quantity="energy_share",
                value=float(share),
                context={**context, "vectors": name, "i": i},
            )


def layer_rows(
    found: Gathered, tensors: Mapping[str, Gramian], context: Mapping[str, Any], *, seed: int
) -> Iterator[Row]:
    """Participation ratio of the centred gradients within every layer and kind of weight, its
    control, and its share of the energy.

    Weight and bias of a module count as one kind. A place whose gradients vanish has no ratio.
    """
    places: dict[tuple[int, str], list[int]] = {}
    for i, name in enumerate(found.space.names):
        places.setdefault(place_of(name), []).append(i)
    whole = sum(float(np.trace(g)) for g in tensors.values())
    for (layer, kind), members in sorted(places.items()):
        here = {**context, "layer": layer, "kind": kind}
        names, sizes = (
            [found.space.names[i] for i in members],
            [found.space.sizes[i] for i in members],
        )
        products = np.sum([tensors[n] for n in names], axis=0)
        yield Row(quantity="layer_energy", value=float(np.trace(products)) / whole, context=here)
        spread = centred(products)
        if np.trace(spread) <= 0:
            yield Row(quantity="layer_rank_ratio", value=None, null=1.0, context=here)
            continue
        drawn = random_sketch(found.norms[:, members], sizes, seed=derived(seed, layer, kind))
        rank, null = (
            effective_ranks(spread).participation,
            effective_ranks(centred(drawn)).participation,
        )
        yield Row(quantity="layer_rank", value=rank, null=null, context=here)
        yield Row(quantity="layer_rank_ratio", value=rank / null, null=1.0, context=here)
