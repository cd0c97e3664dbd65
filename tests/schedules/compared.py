"""A small comparison of schedules, for tests of whatever trains or reads one."""

from typing import Any

from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.run.rows import Row
from loclin.schedules.comparison import ScheduleComparison
from loclin.schedules.options import ComparisonOptions

OPTIONS = ComparisonOptions(
    evaluations=12,
    batch=4,
    points=3,
    curve_examples=8,
    test_examples=12,
    fisher_examples=6,
    old_gradients=2,
    replay_shares=(0.25, 0.5),
    consolidations=(1.0, 10.0),
    merge_scales=(0.5, 1.0),
)
TASKS = ("copy", "swap")


def comparison(problem: Problem, **changed: Any) -> ScheduleComparison:
    space = changed.pop("space", None) or ParameterSpace(problem.model)
    settings: dict[str, Any] = {
        "problem": problem,
        "space": space,
        "tasks": TASKS,
        "start": space.read() + 0.05 * space.noise(seed=1),
        "options": OPTIONS,
        "optimiser": "adamw",
        "lr": 1e-3,
        "train_split": "recovery",
        "seed": 5,
    }
    return ScheduleComparison(**{**settings, **changed})


def values(rows: list[Row], quantity: str, **context: Any) -> list[float]:
    return [
        float(r.value)
        for r in rows
        if r.quantity == quantity
        and r.value is not None
        and all(r.context.get(k) == v for k, v in context.items())
    ]
