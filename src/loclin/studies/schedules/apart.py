"""How far apart two specialists went: overlap of the spaces of their first updates, cosine of their
displacements (measures §5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from loclin.geometry.gramian import span_overlap
from loclin.record import Row
from loclin.schedules.contest import Contest
from loclin.studies.bench import Bench
from loclin.studies.families import products, steps_family
from loclin.studies.schedules.config import Config

#: A specialist of the same task with its data in another order: how near two can come that differ
#: by noise alone.
AGAIN = "A and A again"
TWO = "A and B"


def apart_rows(bench: Bench[Config], contest: Contest) -> Iterator[Row]:
    """Overlap and cosine of the specialists of two tasks, and of one task twice, in every space of
    the study.

    The space of a specialist is the span of its first k updates; the null of an overlap is k/D (two
    random k-subspaces).
    """
    first, second = contest.tasks
    others = {TWO: contest.specialist(second), AGAIN: contest.specialist(first, order="again")}
    path = contest.specialist(first).path
    assert path is not None
    mine = steps_family(bench, path)
    own = products(bench, mine)
    for between, other in others.items():
        assert other.path is not None
        theirs = steps_family(bench, other.path)
        beside, across = products(bench, theirs), products(bench, mine, theirs)
        for space in own:
            here = {**contest.context, "between": between, "space": space}
            yield from _rows(
                own[space],
                across[space],
                beside[space],
                bench.config.k,
                bench.dimension(space),
                here,
            )


def _rows(
    own: np.ndarray,
    across: np.ndarray,
    beside: np.ndarray,
    k: int,
    dimension: int,
    here: Mapping[str, Any],
) -> Iterator[Row]:
    overlap = span_overlap(own[:k, :k], across[:k, :k], beside[:k, :k])
    yield Row(quantity="overlap", value=overlap, null=k / dimension, context={**here, "k": k})
    cosine = float(across.sum() / np.sqrt(own.sum() * beside.sum()))
    yield Row(quantity="displacement_cosine", value=cosine, null=0.0, context=here)
