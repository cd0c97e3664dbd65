"""Weights by torchjd: MGDA, UPGrad, IMTL-G, Aligned-MTL, CAGrad, Nash-MTL, scaled as this project's
own (measures §12).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from loclin.errors import LoclinError
from loclin.geometry.gramian import cosines
from loclin.schedules.names import LIBRARY
from loclin.schedules.weights import Products, Weights

CAGRAD_RADIUS = 0.5  # c, between the 0.4 and 0.6 of the runs of Liu et al. 2021 (arXiv 2110.14048)
NASH_ROUNDS = 20  # of the inner problem: torchjd's own


def library_weights(name: str, tasks: int) -> Callable[[Products], Weights]:
    """A function from K×K Gramians to K weights, by torchjd (measures §12).

    MGDA (Désidéri 2012; Sener and Koltun 2018), UPGrad (Quinton and Rey 2024, arXiv 2406.16232),
    IMTL-G (Liu et al. 2021), Aligned-MTL (Senushkin et al. 2023), CAGrad (arXiv 2110.14048, c =
    0.5), Nash-MTL (Navon et al. 2022, arXiv 2202.01017). They average, and are multiplied by K, so
    that equal gradients give the raw sum (CAGrad's is 1 + c times as long); Nash-MTL's weights have
    no length of their own and are scaled to Σ w_i = K. Nash-MTL starts from its last solution: take
    a new function for every training.

    Args:
        name: one of `names.LIBRARY`.
        tasks: K.

    Raises:
        LoclinError: an unknown name, or a package that is not installed; by Nash-MTL's function,
            gradients that are all zero.

    >>> library_weights("MGDA", 2)(np.diag([1.0, 3.0]))
    array([1.5, 0.5])
    """
    if name not in LIBRARY:
        raise LoclinError(
            f"unknown schedule {name!r} of torchjd: expected one of {', '.join(LIBRARY)}"
        )
    try:
        from torchjd import aggregation  # a second of imports, which other schedules do not need

        if name == "UPGrad":
            aggregation.UPGradWeighting()  # whether its solver is there
            return _projecting(aggregation.UPGradWeighting)
        if name == "Nash-MTL":
            return _bargaining(
                aggregation.NashMTL(n_tasks=tasks, max_norm=0.0, optim_niter=NASH_ROUNDS)
            )
        if name == "CAGrad":
            return _averaging(aggregation.CAGradWeighting(c=CAGRAD_RADIUS), tasks)
        return _averaging(getattr(aggregation, f"{name.replace('-', '')}Weighting")(), tasks)
    except ImportError as error:
        missing = str(error).strip().splitlines()[0].partition(" Install them")[0].rstrip(".")
        raise LoclinError(
            f"expected the packages behind the schedule {name}, found {missing}: pip install "
            "'loclin[schedules]'"
        ) from None


def _averaging(weighting: Any, tasks: int) -> Callable[[Products], Weights]:
    def weigh(gramian: Products) -> Weights:
        return np.asarray(
            tasks * weighting(torch.from_numpy(_of_length_one(gramian))).numpy(), dtype=float
        )

    return weigh


def _projecting(make: Any) -> Callable[[Products], Weights]:
    """UPGrad in a unit for each gradient in which it has length 1.

    The cone that gradients are projected on does not depend on their lengths, and a projection
    grows with what is projected: π(g_i) = ‖g_i‖ π(g_i/‖g_i‖). The library's solver adds 1e-4 to the
    Gramian, which at unequal lengths is more than the shorter gradient.
    """

    def weigh(gramian: Products) -> Weights:
        lengths = np.sqrt(np.diag(gramian))
        lengths[lengths == 0] = 1.0  # zero in every unit
        units = torch.from_numpy(cosines(gramian, 0.0))
        weights = make(pref_vector=torch.from_numpy(lengths))(units).numpy()
        return np.asarray(weights / lengths, dtype=float)

    return weigh


def _bargaining(aggregator: Any) -> Callable[[Products], Weights]:
    def weigh(gramian: Products) -> Weights:
        if not gramian.any():
            raise LoclinError(
                "expected gradients to bargain over, found zero alone: leave out tasks that have "
                "nothing to learn"
            )
        # rows with these products, as the solver wants them
        values, vectors = np.linalg.eigh(_of_length_one(gramian))
        rows = torch.from_numpy(vectors * np.sqrt(np.maximum(values, 0.0)))
        with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):  # 1/0
            for message in (
                "You are solving a parameterized problem that is not DPP",
                "Solution may be inaccurate",
            ):
                warnings.filterwarnings("ignore", message=message)
            weights = aggregator.weighting(rows).numpy()
        return np.asarray(len(weights) * weights / weights.sum(), dtype=float)

    return weigh


def _of_length_one(gramian: Products) -> Products:
    """In a unit in which the mean square length is 1, as the solvers' tolerances expect."""
    return np.asarray(gramian / (np.diag(gramian).mean() or 1.0))
