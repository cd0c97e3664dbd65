"""Several tasks in one model: how their gradients are combined, in which order they are trained,
what mends the order.

A schedule says which tasks a step differentiates and how their gradients g_1..g_K make one.
`weights.py` and `library.py` are plain functions from the Gramian G = (g_iᵀg_j) to weights w, the
step being along Σ w_i g_i: they serve any training loop (docs/tutorials/schedules.md). `loop.py`
trains, `plans.py` says what each schedule asks of the loop and what mends the sequential case,
`merging.py` joins specialists, and `comparison.py` is what all have in common: start, batches and
the number of gradients (measures §12).
"""

from typing import TYPE_CHECKING

from loclin.lazy import public

if TYPE_CHECKING:
    from loclin.schedules.library import library_weights as library_weights
    from loclin.schedules.step import backward as backward
    from loclin.schedules.weights import equal_decrease as equal_decrease
    from loclin.schedules.weights import loss_balanced as loss_balanced
    from loclin.schedules.weights import norm_balanced as norm_balanced
    from loclin.schedules.weights import pcgrad as pcgrad
    from loclin.schedules.weights import raw_sum as raw_sum

_WEIGHTS = ("equal_decrease", "loss_balanced", "norm_balanced", "pcgrad", "raw_sum")
__getattr__, __all__ = public(
    "loclin.schedules",
    {"backward": "step", "library_weights": "library", **dict.fromkeys(_WEIGHTS, "weights")},
)
