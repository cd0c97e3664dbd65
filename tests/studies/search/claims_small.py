"""The smallest settings of the claims about random search, and how their rows are read."""

from dataclasses import replace
from typing import Any

from loclin.run.rows import Row
from loclin.studies.search.claims_settings import preset

SMALL: dict[str, Any] = {
    "seeds": 1,
    "candidates": 8,
    "others": 6,
    "inside": 5,
    "n": 2,
    "best_of": (1, 2, 4),
    "sizes": (0.05, 0.2, 1.0),
    "k": 3,
    "gradients": 6,
    "gradient_batch": 4,
    "select_examples": 16,
    "validate_examples": 32,
    "test_examples": 16,
    "probes": 2,
    "steps": 12,
    "task_vector_steps": 2,
    "votes": (1, 3),
    "tested": 4,
    "noises": ("lowrank:1", "tied"),
}
TINY = replace(preset("smoke"), task="swap", **SMALL).checked()
LORA = replace(preset("smoke", "statements-small"), ranks=(2,), **SMALL).checked()


def value(rows: list[Row], quantity: str, **context: Any) -> float:
    (row,) = [
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    ]
    assert row.value is not None
    return row.value
