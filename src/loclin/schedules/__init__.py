"""Several tasks in one model: how their gradients are combined, in which order they are trained,
what mends the order.

A schedule says which tasks a step differentiates and how their gradients g_1..g_K make one.
`weights.py` and `library.py` are plain functions from the Gramian G = (g_iᵀg_j) to weights w, the
step being along Σ w_i g_i: they serve any training loop (docs/tutorials/schedules.md). `loop.py`
trains, `remedies.py` mends the sequential case, `merging.py` joins specialists, `contest.py` trains
from one start by every schedule at equal gradient evaluations (measures §12).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loclin.schedules.library import library_weights as library_weights
    from loclin.schedules.weights import equal_decrease as equal_decrease
    from loclin.schedules.weights import loss_balanced as loss_balanced
    from loclin.schedules.weights import norm_balanced as norm_balanced
    from loclin.schedules.weights import pcgrad as pcgrad
    from loclin.schedules.weights import raw_sum as raw_sum

#: Public name -> the file it lives in. Imported on first use, so that `loclin --help` need not wait
#: for torch.
_HOMES = {
    "equal_decrease": "weights",
    "library_weights": "library",
    "loss_balanced": "weights",
    "norm_balanced": "weights",
    "pcgrad": "weights",
    "raw_sum": "weights",
}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loclin.schedules' has no attribute {name!r}")
    return getattr(import_module(f"loclin.schedules.{_HOMES[name]}"), name)
