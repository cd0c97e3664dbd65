"""Pairs of tasks: chosen by rule, cosines on halves of examples, how far apart specialists go."""

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.geometry.lora import low_rank_gramian
from loclin.models import Problem
from loclin.progress import silent
from loclin.run.rows import by_run
from loclin.seeds import derived
from loclin.studies.context import RunContext, make_context
from loclin.studies.schedules.measure import destroyed, requirements
from loclin.studies.schedules.pairs import apart_rows, chosen_pairs, pair_rows, task_cosines
from loclin.studies.schedules.settings import SchedulesSettings
from loclin.tasks.batch import answer_loss
from tests.reference import dense_capture
from tests.studies.schedules.small import LORA

COSINES = np.array(
    [[1, 0.9, 0.2, 0.1], [0.9, 1, -0.05, -0.6], [0.2, -0.05, 1, 0.3], [0.1, -0.6, 0.3, 1]]
)


def test_pairs_are_the_largest_the_smallest_and_of_the_others_the_nearest_to_zero() -> None:
    found = chosen_pairs(COSINES, "wxyz", ("conflicting", "agreeing", "neutral", "z+w"))
    assert found == {
        "conflicting": ("x", "z"),
        "agreeing": ("w", "x"),
        "neutral": ("x", "y"),
        "z+w": ("z", "w"),
    }
    positive = np.full((3, 3), 0.5) + np.diag([0.5] * 3)
    positive[0, 1] = positive[1, 0] = 0.7
    positive[0, 2] = positive[2, 0] = 0.1
    kinds = chosen_pairs(positive, "abc", ("agreeing", "neutral", "conflicting"))
    assert kinds == {
        "agreeing": ("a", "b"),
        "neutral": ("b", "c"),
        "conflicting": ("a", "c"),
    }  # whatever their signs


@pytest.mark.parametrize(
    ("tasks", "wanted", "text"),
    [
        ("a", ("agreeing",), "expected two tasks or more, found a alone"),
        (
            "ab",
            ("neutral",),
            r"expected three tasks or more for pairs chosen by rule, found a, b: name pairs, such "
            r"as --pairs a\+b",
        ),
        ("abcd", ("a+q",), r"unknown task 'q' in --pairs a\+q: expected two of a, b, c, d"),
    ],
)
def test_pairs_that_cannot_be_chosen_are_refused(
    tasks: str, wanted: tuple[str, ...], text: str
) -> None:
    with pytest.raises(LoclinError, match=text):
        chosen_pairs(COSINES[: len(tasks), : len(tasks)], tasks, wanted)


def test_cosines_are_those_of_the_gradients_of_halves_that_share_no_example(
    ctx: RunContext[SchedulesSettings],
) -> None:
    tasks = ("copy", "swap")
    (found,) = task_cosines(ctx, tasks).values()
    halves = []
    for task in tasks:
        data = ctx.problem.batch("gradients", task)
        generator = torch.Generator().manual_seed(derived(ctx.seed, "cosines", task))
        order = torch.randperm(len(data), generator=generator)[:32]
        halves.append(
            [
                ctx.space.gradient(lambda b: answer_loss(ctx.problem.model, b), [data.rows(part)])
                .double()
                .numpy()
                for part in (order[:16], order[16:])
            ]
        )

    def cosine(g: np.ndarray, h: np.ndarray) -> float:
        return float(g @ h / np.linalg.norm(g) / np.linalg.norm(h))

    (a, b), (c, d) = halves
    assert found.first[0, 1] == pytest.approx(cosine(a, c), abs=1e-5)
    assert found.second[0, 1] == pytest.approx(cosine(b, d), abs=1e-5)
    assert list(found.within) == pytest.approx([cosine(a, b), cosine(c, d)], abs=1e-5)
    rows = {r.quantity: r for r in pair_rows(ctx, "neutral", tasks, "pretrained")}
    assert rows["pair_cosine"].value == found.second[0, 1]
    assert rows["half_cosine"].value == found.within.mean()


def test_with_lora_cosines_are_of_what_gradients_do_to_the_weights(speaking: Problem) -> None:
    made = make_context(LORA, 0, requirements(LORA), silent)
    found = task_cosines(made, ("colour", "town"))
    assert list(found) == ["weights", "factors"]
    assert found["weights"].second[0, 1] != found["factors"].second[0, 1]


def test_overlap_and_cosine_are_those_of_the_dense_ways(ctx: RunContext[SchedulesSettings]) -> None:
    comparison = destroyed(ctx, ("copy", "swap"), "adamw")
    rows = list(apart_rows(ctx, comparison, {"run": 0}))
    paths = [
        comparison.specialist("copy"),
        comparison.specialist("swap"),
        comparison.specialist("copy", order="again"),
    ]
    mine, other, again = (p.path.updates.numpy() for p in paths)  # type: ignore[union-attr]
    for between, theirs in (("A and B", other), ("A and A again", again)):
        q, _ = np.linalg.qr(theirs[:2].T.astype(np.float64))
        (overlap,) = by_run(rows, "overlap", between=between)
        captures = [dense_capture(mine[:2], column) for column in q.T]
        assert overlap == pytest.approx(np.mean(captures), rel=1e-4)
        d, e = mine.sum(0).astype(np.float64), theirs.sum(0).astype(np.float64)
        (cosine,) = by_run(rows, "displacement_cosine", between=between)
        assert cosine == pytest.approx(d @ e / np.linalg.norm(d) / np.linalg.norm(e), rel=1e-4)
    (null,) = {r.null for r in rows if r.quantity == "overlap"}
    assert null == 2 / ctx.space.dimension


def test_lora_specialists_are_compared_in_both_spaces(speaking: Problem) -> None:
    made = make_context(LORA, 0, requirements(LORA), silent)
    comparison = destroyed(made, ("colour", "town"), "adamw")
    rows = list(apart_rows(made, comparison, {"run": 0}))
    cosines = {
        space: by_run(rows, "displacement_cosine", between="A and B", space=space)[0]
        for space in ("weights", "factors")
    }
    assert cosines["weights"] != cosines["factors"]
    start, factors = comparison.start, made.factors
    assert factors is not None
    ends = torch.stack([comparison.specialist(task).end - start for task in ("colour", "town")])
    gram = low_rank_gramian(list(factors.chords(start, ends)))
    expected = gram[0, 1] / np.sqrt(gram[0, 0] * gram[1, 1])
    assert cosines["weights"] == pytest.approx(expected, rel=1e-3)
