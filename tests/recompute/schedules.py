"""Claims on schedules from scores: `score/OPTIMISER/SCHEDULE/RUN` is pairs x 1 x roles."""

from itertools import combinations

import numpy as np

from tests.recompute import by_run, interval

BUILT_IN = ("sequences", "sequences-small", "statements", "statements-small")
TOGETHER = (
    *("alternating", "raw sum", "norm-balanced", "PCGrad", "equal decrease", "loss-balanced"),
    "joint mixed",
)
ORDERS = ("sequential", "sequential reversed")
LABELS = {"sgd": "SGD", "adamw": "AdamW"}


def estimates(
    settings: dict, arrays: dict[str, np.ndarray]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """The better order less the lowest simultaneous schedule; the widest difference of two."""
    models = min(settings["models_per_claim"], settings["seeds"])
    models = models if settings["model"] in BUILT_IN else 1
    found = {}
    for optimiser in settings["optimisers"] if settings["pairs"] else ():

        def worst(schedule: str, optimiser: str = optimiser) -> np.ndarray | None:
            prefix = f"score/{optimiser}/{schedule}"
            if not any(key.startswith(prefix + "/") for key in arrays):
                return None
            return by_run(arrays, prefix).min(-1)[..., 0]  # run x pair

        together = [w for name in TOGETHER if (w := worst(name)) is not None]
        orders = [w for name in ORDERS if (w := worst(name)) is not None]
        if len(together) < 2 or len(orders) < 2:
            continue
        better = np.maximum(*orders)
        below = [interval((better - w).mean(1), models) for w in together]
        apart = [interval((a - b).mean(1), models) for a, b in combinations(together, 2)]
        label = LABELS[optimiser]
        found["sequential-last", label] = max(below)
        found["simultaneous-differ-little", label] = max(apart, key=lambda e: abs(e[0]))
    return found
