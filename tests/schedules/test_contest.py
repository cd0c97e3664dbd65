"""Contests of schedules on a small model: equal budgets, equal starts, the sequential one step by
step, rows, determinism.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.record import Row
from loclin.schedules.contest import Contest
from loclin.schedules.courses import _gradients, by_schedule
from loclin.schedules.loop import train_tasks
from loclin.schedules.merging import arithmetic
from loclin.schedules.remedies import fisher_diagonal
from loclin.schedules.rows import _merged, contest_rows
from loclin.schedules.terms import EVERY, LIBRARY, MERGED, REMEDIES, SIMULTANEOUS, Terms
from loclin.tasks.batch import answer_loss
from loclin.training import make_optimiser
from loclin.updates import Keeping

TERMS = Terms(
    evaluations=12,
    batch=4,
    points=3,
    curve_examples=8,
    test_examples=12,
    fisher_examples=6,
    old_gradients=2,
    scales=(0.5, 1.0),
)
TASKS = ("copy", "swap")


def contest(problem: Problem, **changed: Any) -> Contest:
    space = changed.pop("space", None) or ParameterSpace(problem.model)
    settings: dict[str, Any] = {
        "problem": problem,
        "space": space,
        "tasks": TASKS,
        "start": space.read() + 0.05 * space.noise(seed=1),
        "terms": TERMS,
        "optimiser": "adamw",
        "rate": 1e-3,
        "lessons": "recovery",
        "seed": 5,
        "context": {"run": 0},
    }
    return Contest(**{**settings, **changed})


@pytest.fixture(scope="module")
def found(trained: Problem) -> tuple[Contest, list[Row]]:
    made = contest(trained)
    before = made.space.read()
    rows, seconds = contest_rows(made, lambda stage, share: None)
    assert torch.equal(made.space.read(), before)  # bit for bit
    assert set(seconds) == set(TERMS.named) - set(MERGED)
    return made, rows


def values(rows: list[Row], quantity: str, **context: Any) -> list[float]:
    return [
        float(r.value)
        for r in rows
        if r.quantity == quantity
        and r.value is not None
        and all(r.context.get(k) == v for k, v in context.items())
    ]


def test_every_schedule_takes_the_same_number_of_gradients(
    found: tuple[Contest, list[Row]],
) -> None:
    _, rows = found
    for name in TERMS.named:
        assert values(rows, "evaluations", schedule=name) == [12]
    steps = {name: values(rows, "steps", schedule=name) for name in TERMS.named}
    assert [steps[n] for n in ("alternating", "joint mixed", "sequential", "replay")] == [[12]] * 4
    assert [steps[n] for n in ("raw sum", "PCGrad", "loss-balanced")] == [[6]] * 3
    assert steps["consolidation"] == [10]  # the Fisher of 6 examples is worth 2 batches of 4
    assert steps["projection"] == [10]
    assert steps["average"] == []


def test_gradients_taken_are_gradients_counted(
    trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def counted(model: Any, batch: Any) -> Any:
        taken.append(len(batch))
        return answer_loss(model, batch)

    monkeypatch.setattr("loclin.schedules.contest.answer_loss", counted)
    for name in ("PCGrad", "alternating", "joint mixed", "sequential", "replay", "projection"):
        taken.clear()
        course = by_schedule(contest(trained), name)
        assert len(taken) == course.evaluations == 12
        assert set(taken) == {4}  # of one batch each


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("alternating", ["c", "s"] * 6),
        ("joint mixed", ["ccss"] * 12),
        ("raw sum", ["c", "s"] * 6),
        ("sequential", ["c"] * 6 + ["s"] * 6),
        ("sequential reversed", ["s"] * 6 + ["c"] * 6),
        ("replay", ["c"] * 6 + ["sssc"] * 6),
        ("projection", ["c"] * 8 + ["s"] * 4),
    ],
)
def test_every_step_is_asked_of_the_tasks_of_its_schedule(
    name: str, asked: list[str], trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    letters = {int(trained.tokenizer.convert_tokens_to_ids(task)): task[0] for task in TASKS}

    def watched(model: Any, batch: Any) -> Any:
        seen.append(
            "".join(letters[int(row[0])] for row in batch.input_ids)
        )  # the task is the first word of a prompt
        return answer_loss(model, batch)

    monkeypatch.setattr("loclin.schedules.contest.answer_loss", watched)
    by_schedule(contest(trained), name)
    assert seen == [word if len(word) > 1 else 4 * word for word in asked]


def test_the_scale_of_merged_specialists_is_chosen_on_validation_examples(trained: Problem) -> None:
    made, other = contest(trained, rate=1e-2), {}
    for better in (0.5, 1.0):

        def told(point: Any, exams: Any, better: float = better) -> np.ndarray:
            if exams is not made.choosing:
                return np.full((2, 2), 0.5)
            ends = [made.specialist(task).end for task in TASKS]
            near = torch.equal(point, arithmetic(made.start, ends, better))
            return np.full((2, 2), 1.0 if near else 0.2)

        object.__setattr__(made, "at", told)
        other[better] = _merged(made, "task arithmetic")[1]
    assert other == {0.5: 0.5, 1.0: 1.0}


def test_examples_that_choose_scales_do_not_choose_schedules(trained: Problem) -> None:
    made = contest(trained, terms=replace(TERMS, curve_examples=1000))
    for chosen, validated, task in zip(made.choosing, made.validating, TASKS, strict=True):
        rows = [{tuple(r) for r in exam.batch.input_ids.tolist()} for exam in (chosen, validated)]
        assert not rows[0] & rows[1]
        assert sum(map(len, rows)) == len(trained.examples["validate"][task])


def test_one_after_the_other_is_training_on_the_second_from_where_the_first_ended(
    trained: Problem,
) -> None:
    made = contest(trained)
    first = made.specialist("copy")
    space, streams = made.space, {"swap": made.stream("swap")}
    with space.restored():
        space.write(first.end)
        train_tasks(
            space, streams, made.loss(), make_optimiser("adamw", space, 1e-3), [("swap",)] * 6
        )
        by_hand = space.read()
    assert torch.equal(by_schedule(made, "sequential").end, by_hand)
    reverse = by_schedule(made, "sequential reversed")
    assert not torch.equal(reverse.end, by_hand)
    assert [c.steps for c in reverse.courses] == [6, 6]


def test_a_step_of_the_raw_sum_is_one_on_the_sum_of_the_losses(trained: Problem) -> None:
    made = contest(
        trained,
        optimiser="sgd",
        rate=0.1,
        terms=replace(TERMS, evaluations=2, points=1, old_gradients=1),
    )
    end = by_schedule(made, "raw sum").end
    space = made.space
    with space.restored():
        space.write(made.start)
        each = [space.gradient(made.loss(), [next(made.stream(task))]) for task in TASKS]
    assert torch.allclose(end, made.start - 0.1 * (each[0] + each[1]), atol=1e-7)


def test_projection_leaves_what_the_old_tasks_gradients_span(trained: Problem) -> None:
    made = contest(trained)
    first = made.specialist("copy")
    span = _gradients(made, "copy", first.end)
    moved = by_schedule(made, "projection").end - first.end
    plain = by_schedule(made, "sequential").end - first.end
    cosine = torch.nn.functional.cosine_similarity(span, moved[None]).abs()
    assert cosine.max() < 1e-4
    assert torch.nn.functional.cosine_similarity(span, plain[None]).abs().max() > 1e-3


def test_consolidation_holds_back_what_the_old_task_needs(trained: Problem) -> None:
    made = contest(trained, optimiser="sgd", rate=1e-2)
    end = made.specialist("copy").end
    with made.space.restored():
        made.space.write(end)
        data = trained.batch("recovery", "copy").rows(slice(0, 24))
        fisher = fisher_diagonal(trained.model, made.space, data, seed=0)
    needed = fisher > fisher.quantile(0.99)
    ways = {}
    for strength in (1e-6, 30.0):
        strong = replace(
            made, terms=replace(TERMS, consolidation=strength, fisher_examples=4, evaluations=48)
        )
        moved = by_schedule(strong, "consolidation").end - strong.specialist("copy").end
        ways[strength] = float(moved[needed].norm() / moved.norm())
    assert ways[30.0] < 0.9 * ways[1e-6]


def test_curves_have_every_mark_and_lines_end_at_the_specialists(
    found: tuple[Contest, list[Row]],
) -> None:
    made, rows = found
    for name in set(TERMS.named) - set(MERGED):
        marks = [
            r.context["evaluations"]
            for r in rows
            if r.quantity == "curve_worst_score" and r.context["schedule"] == name
        ]
        assert marks == [0, 4, 8, 12]
    losses = {r.context["alpha"]: r.value for r in rows if r.quantity == "line_loss"}
    assert len(losses) == 11
    for alpha, task in ((0.0, "copy"), (1.0, "swap")):
        assert losses[alpha] == pytest.approx(
            made.at(made.specialist(task).end, made.quick)[:, 0].mean()
        )
    chord = [(1 - a) * losses[0.0] + a * losses[1.0] for a in losses]  # type: ignore[operator]
    rise = max(v - c for v, c in zip(losses.values(), chord, strict=True))  # type: ignore[operator]
    assert values(rows, "barrier") == [pytest.approx(rise)]


def test_worst_and_mean_are_those_of_the_tasks(found: tuple[Contest, list[Row]]) -> None:
    made, rows = found
    for name in TERMS.named:
        each = values(rows, "score", schedule=name)
        assert len(each) == 2
        assert values(rows, "worst_score", schedule=name) == [min(each)]
        assert values(rows, "mean_score", schedule=name) == [pytest.approx(sum(each) / 2)]
    end = made.at(by_schedule(made, "alternating").end, made.whole)[:, 1]
    assert values(rows, "score", schedule="alternating") == pytest.approx(list(end))
    cosines = values(rows, "gradient_cosine", schedule="raw sum")
    assert len(cosines) == 3
    assert all(-1 <= c <= 1 for c in cosines)
    assert values(rows, "gradient_cosine", schedule="alternating") == []
    assert values(rows, "merge_scale", schedule="average") == [0.5]


def test_the_same_seed_gives_the_same_rows(
    trained: Problem, found: tuple[Contest, list[Row]]
) -> None:
    again, _ = contest_rows(contest(trained), lambda stage, share: None)
    assert again == found[1]


def test_three_tasks_go_through_every_schedule(trained: Problem) -> None:
    terms = replace(TERMS, schedules=("all",), evaluations=13, batch=6)
    rows, _ = contest_rows(
        contest(trained, tasks=("copy", "swap", "reverse"), terms=terms), lambda stage, share: None
    )
    scored = {r.context["schedule"] for r in rows if r.quantity == "worst_score"}
    assert scored == set(EVERY)
    for name in EVERY:  # 13 gradients are 4 for each of 3 tasks
        assert values(rows, "evaluations", schedule=name) == [12]
    assert {r.context["role"] for r in rows if r.quantity == "score"} == {"A", "B", "C"}


def test_lora_and_its_dropout_are_trained_and_kept_updates_sum_to_the_way(trained: Problem) -> None:
    model = attach(deepcopy(trained.model), Lora(rank=2, dropout=0.5), seed=0)  # type: ignore[arg-type]
    problem = Problem(model=model, tokenizer=trained.tokenizer, examples=trained.examples)
    space = ParameterSpace(model)
    without, drawn, again = (
        contest(problem, space=space, start=space.read(), dropout=dropout, keeping=Keeping())
        for dropout in (False, True, True)
    )
    ends = [made.specialist("copy") for made in (without, drawn, again)]
    assert torch.equal(ends[1].end, ends[2].end)
    assert not torch.equal(ends[0].end, ends[1].end)
    path = ends[1].path
    assert path is not None
    assert torch.allclose(path.displacement, ends[1].end - drawn.start, atol=1e-6)
    assert np.isfinite(path.losses.numpy()).all()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"schedules": ("alternating", "pcgrad")},
            "expected schedules among all, alternating, .* found 'pcgrad'",
        ),
        ({"schedules": ()}, "found none: change --schedules"),
        (
            {"batch": 1},
            "expected a batch of at least 2 examples, one a task, found 1: raise --batch",
        ),
        ({"replay_share": 1.0}, "between 0 and 1, found 1.0: change --replay-share"),
        ({"consolidation": 0.0}, "expected a consolidation above 0"),
        ({"scales": ()}, r"expected scales above 0, found \[\]"),
        ({"points": 0}, "expected points of at least 1"),
        (
            {"evaluations": 8},
            r"expected at least 18 gradient evaluations for 2 tasks.* found 8: raise --evaluations",
        ),
    ],
)
def test_terms_that_cannot_be_met_are_refused(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(LoclinError, match=text):
        replace(Terms(evaluations=48, fisher_examples=64), **changed).check_terms(2)


def test_schedules_are_named_once() -> None:
    assert (
        len(set(EVERY))
        == len(EVERY)
        == len(SIMULTANEOUS) + 2 + len(REMEDIES) + len(MERGED) + len(LIBRARY)
    )
    assert Terms(schedules=("all",)).named == EVERY
    assert Terms(schedules=("sequential", "alternating")).named == ("alternating", "sequential")
