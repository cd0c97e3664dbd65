"""Rows of a comparison: every schedule with the same budget, scores that are those of its tasks,
curves and lines, determinism.
"""

from dataclasses import replace

import pytest
import torch

from loclin.models import Problem
from loclin.run.rows import Row
from loclin.run.runner import Session
from loclin.schedules.comparison import ScheduleComparison
from loclin.schedules.names import EVERY, MERGED
from loclin.schedules.plans import train_by
from loclin.studies.schedules.rows import arrays_of, comparison_rows, over_pairs
from tests.schedules.compared import OPTIONS, TASKS, comparison, values


@pytest.fixture(scope="module")
def found(trained: Problem) -> tuple[ScheduleComparison, list[Row]]:
    made = comparison(trained)
    before = made.space.read()
    rows, (cost,) = comparison_rows(made, {"run": 0}, Session())
    assert torch.equal(made.space.read(), before)  # bit for bit
    assert "joint mixed 1.00" in cost
    assert not any(name in cost for name in MERGED)
    return made, rows


def test_every_schedule_takes_the_same_number_of_gradients(
    found: tuple[ScheduleComparison, list[Row]],
) -> None:
    _, rows = found
    for name in OPTIONS.named:
        assert values(rows, "evaluations", schedule=name) == [12]
    steps = {name: values(rows, "steps", schedule=name) for name in OPTIONS.named}
    assert [steps[n] for n in ("alternating", "joint mixed", "sequential", "replay")] == [[12]] * 4
    assert [steps[n] for n in ("raw sum", "PCGrad", "loss-balanced")] == [[6]] * 3
    assert steps["consolidation"] == [10]  # the Fisher of 6 examples is worth 2 batches of 4
    assert steps["projection"] == [10]
    assert steps["average"] == []


def test_curves_have_every_mark_and_lines_end_at_the_specialists(
    found: tuple[ScheduleComparison, list[Row]],
) -> None:
    made, rows = found
    for name in set(OPTIONS.named) - set(MERGED):
        marks = [
            r.context["evaluations"]
            for r in rows
            if r.quantity == "curve_worst_score" and r.context["schedule"] == name
        ]
        assert marks == [0, 4, 8, 12]
    losses = {r.context["alpha"]: r.value for r in rows if r.quantity == "line_loss"}
    assert len(losses) == 11
    for alpha, task in ((0.0, "copy"), (1.0, "swap")):
        scores = made.evaluate_at(made.specialist(task).end, made.curve_sets)
        assert losses[alpha] == pytest.approx(scores[:, 0].mean())
    chord = [(1 - a) * losses[0.0] + a * losses[1.0] for a in losses]  # type: ignore[operator]
    rise = max(v - c for v, c in zip(losses.values(), chord, strict=True))  # type: ignore[operator]
    assert values(rows, "barrier") == [pytest.approx(rise)]


def test_worst_and_mean_are_those_of_the_tasks(found: tuple[ScheduleComparison, list[Row]]) -> None:
    made, rows = found
    for name in OPTIONS.named:
        each = values(rows, "score", schedule=name)
        assert len(each) == 2
        assert values(rows, "worst_score", schedule=name) == [min(each)]
        assert values(rows, "mean_score", schedule=name) == [pytest.approx(sum(each) / 2)]
    end = made.evaluate_at(train_by(made, "alternating").end, made.test_sets)[:, 1]
    assert values(rows, "score", schedule="alternating") == pytest.approx(list(end))
    cosines = values(rows, "gradient_cosine", schedule="raw sum")
    assert len(cosines) == 3
    assert all(-1 <= c <= 1 for c in cosines)
    assert values(rows, "gradient_cosine", schedule="alternating") == []
    assert values(rows, "strength", schedule="average") == []
    for name, grid in (("replay", [0.25, 0.5]), ("TIES", [0.5, 1.0])):
        worst = values(rows, "strength_worst_score", schedule=name)
        assert values(rows, "strength", schedule=name) == [grid[worst[1] > worst[0]]]
        assert len(values(rows, "strength_score", schedule=name)) == 4


def test_arrays_hold_the_scores_of_every_schedule_role_and_strength(
    found: tuple[ScheduleComparison, list[Row]],
) -> None:
    _, rows = found
    rows = [replace(r, context={**r.context, "optimiser": "sgd", "pair": "p"}) for r in rows]
    arrays = arrays_of(rows, 3)
    assert {key.split("/")[-1] for key in arrays} == {"3"}
    assert sum(key.startswith("score/sgd/") for key in arrays) == len(OPTIONS.named)
    assert arrays["first_score/sgd/3"].shape == (1, 1, 2)
    raw = arrays["score/sgd/raw sum/3"]
    assert raw.shape == (1, 1, 2)
    assert list(raw.flat) == values(rows, "score", schedule="raw sum")
    assert arrays["strength_score/sgd/consolidation/3"].shape == (1, 2, 2)


def test_the_same_seed_gives_the_same_rows(
    trained: Problem, found: tuple[ScheduleComparison, list[Row]]
) -> None:
    assert comparison_rows(comparison(trained), {"run": 0}, Session())[0] == found[1]


def test_three_tasks_go_through_every_schedule(trained: Problem) -> None:
    options = replace(OPTIONS, schedules=("all",), evaluations=13, batch=6)
    made = comparison(trained, tasks=(*TASKS, "reverse"), options=options)
    rows, _ = comparison_rows(made, {"run": 0}, Session(), validated=True)
    for quantity in ("worst_score", "validated_worst_score"):
        assert {r.context["schedule"] for r in rows if r.quantity == quantity} == set(EVERY)
    for name in EVERY:  # 13 gradients are 4 for each of 3 tasks
        assert values(rows, "evaluations", schedule=name) == [12]
    assert {r.context["role"] for r in rows if r.quantity == "score"} == {"A", "B", "C"}


def test_over_pairs_is_a_mean_without_what_tells_the_tasks_apart() -> None:
    rows = [
        Row(
            quantity="q",
            value=v,
            null=0.5,
            context={"pair": p, "task": p, "run": 1, "k": 2, **more},
        )
        for p, v in (("a+b", 1.0), ("c+d", 2.0))
        for more in ({}, {"role": "A"})
    ]
    (over,) = over_pairs(rows)
    assert (over.value, over.null) == (1.5, 0.5)
    assert over.context == {"pair": "all", "task": "all", "run": 1, "k": 2}
    (missing,) = over_pairs([rows[0], replace(rows[2], value=None)])
    assert missing.value is None
