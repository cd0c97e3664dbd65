"""The search route: what the best of many random weight steps do to activations (measures §13,
Figure 9).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from loclin.record import Row
from loclin.seeds import derived
from loclin.steering.searched import chance_vectors, perturbed_shifts, winners_vector
from loclin.studies.steering.material import Layered, Material, angle
from loclin.studies.steering.vectors import Vectors, both


@dataclass(frozen=True, eq=False, kw_only=True)
class Route:
    """What the search found.

    Attributes:
        vector: mean shift of the winners.
        chance: the same of as many candidates drawn without regard to their scores.
        scores: mean log p(toward) of every candidate on the search part, less that of the model as
            it is (nats).
        winners: the mean of it over the winners.
    """

    vector: Layered
    chance: Float[Tensor, "m L d"]
    scores: Float[np.ndarray, " N"]
    winners: float


def searched(material: Material) -> Route:
    """Score on the gradient part, read on the shift part; no example of either tests anything."""
    config = material.config
    found = perturbed_shifts(
        material.model,
        material.space,
        material.parts["gradient"],
        material.parts["shift"],
        count=config.candidates,
        size=config.search_size,
        layers=material.layers,
        seed=derived(material.seed, "search"),
        path=config.layers_path,
        told=lambda share: material.progress("searching at random", share),
    )
    gains = found.scores - found.before
    seed = derived(material.seed, "chance vectors")
    return Route(
        vector=winners_vector(found, config.winners),
        chance=chance_vectors(found, config.winners, draws=config.chance, seed=seed),
        scores=gains,
        winners=float(np.sort(gains)[-config.winners :].mean()),
    )


def route_rows(material: Material, v: Vectors, route: Route, chosen: int) -> Iterator[Row]:
    """Where the search vector lies, with its null, and how much better the winners answer."""
    yield from both(
        material, "cosine", angle(route.vector, v.caa), chosen, of="search", removed="nothing"
    )
    yield from both(
        material, "cosine_with_step", angle(route.vector, v.shifts["E1"]), chosen, of="search"
    )
    null = np.quantile(angle(route.chance, v.caa).numpy(), 0.975, axis=0)
    yield from material.by_layer(
        "null_cosine", null, of="search", null="permuted scores", statistic="97.5 %"
    )
    yield material.row("search_gain", float(np.mean(route.scores)), among="all")
    yield material.row("search_gain", route.winners, among="winners")
