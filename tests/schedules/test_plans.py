"""Every schedule as it is trained: equal budgets, the tasks of each step, the sequential one step
by step, what remedies hold back.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.schedules.loop import train_tasks
from loclin.schedules.plans import consolidated, fisher_diagonal, old_gradients, replayed, train_by
from loclin.tasks.batch import IGNORED, Batch, answer_loss
from loclin.training import make_optimiser
from tests.planted import LinearModel
from tests.schedules.compared import OPTIONS, TASKS, comparison


def test_gradients_taken_are_gradients_counted(
    trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def counted(model: Any, batch: Any) -> Any:
        taken.append(len(batch))
        return answer_loss(model, batch)

    monkeypatch.setattr("loclin.schedules.comparison.answer_loss", counted)
    for name in ("PCGrad", "alternating", "joint mixed", "sequential", "replay", "projection"):
        taken.clear()
        found = train_by(comparison(trained), name)
        assert found.evaluations == 12
        assert len(taken) == (18 if name == "replay" else 12)  # two shares of old examples
        assert set(taken) == {4}  # of one batch each


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alternating", ["c", "s"] * 6),
        ("joint mixed", ["ccss"] * 12),
        ("raw sum", ["c", "s"] * 6),
        ("sequential", ["c"] * 6 + ["s"] * 6),
        ("sequential reversed", ["s"] * 6 + ["c"] * 6),
        ("replay", ["c"] * 6 + ["sssc"] * 6 + ["sscc"] * 6),  # both shares of the grid
        ("projection", ["c"] * 8 + ["s"] * 4),
    ],
)
def test_every_step_differentiates_the_tasks_of_its_schedule(
    name: str, expected: list[str], trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    letters = {int(trained.tokenizer.convert_tokens_to_ids(task)): task[0] for task in TASKS}

    def watched(model: Any, batch: Any) -> Any:
        # the task is the first word of a prompt
        seen.append("".join(letters[int(row[0])] for row in batch.input_ids))
        return answer_loss(model, batch)

    monkeypatch.setattr("loclin.schedules.comparison.answer_loss", watched)
    train_by(comparison(trained), name)
    assert seen == [word if len(word) > 1 else 4 * word for word in expected]


def test_one_after_the_other_is_training_on_the_second_from_where_the_first_ended(
    trained: Problem,
) -> None:
    made = comparison(trained)
    first = made.specialist("copy")
    space, streams = made.space, {"swap": made.stream("swap")}
    with space.restored():
        space.write(first.end)
        optimiser = make_optimiser("adamw", space, 1e-3)
        train_tasks(space, streams, made.loss(), optimiser, [("swap",)] * 6)
        by_hand = space.read()
    assert torch.equal(train_by(made, "sequential").end, by_hand)
    reverse = train_by(made, "sequential reversed")
    assert not torch.equal(reverse.end, by_hand)
    assert [len(log.losses) for log in reverse.phases] == [6, 6]


def test_a_step_of_the_raw_sum_is_one_on_the_sum_of_the_losses(trained: Problem) -> None:
    options = replace(OPTIONS, evaluations=2, points=1, old_gradients=1)
    made = comparison(trained, optimiser="sgd", lr=0.1, options=options)
    end, space = train_by(made, "raw sum").end, made.space
    with space.restored():
        space.write(made.start)
        each = [space.gradient(made.loss(), [next(made.stream(task))]) for task in TASKS]
    assert torch.allclose(end, made.start - 0.1 * (each[0] + each[1]), atol=1e-7)


def test_projection_leaves_what_the_old_tasks_gradients_span(trained: Problem) -> None:
    made = comparison(trained)
    first = made.specialist("copy")
    span = old_gradients(made, "copy", first.end)
    moved = train_by(made, "projection").end - first.end
    plain = train_by(made, "sequential").end - first.end
    cosine = torch.nn.functional.cosine_similarity(span, moved[None]).abs()
    assert cosine.max() < 1e-4
    assert torch.nn.functional.cosine_similarity(span, plain[None]).abs().max() > 1e-3


@pytest.mark.parametrize("better", [0, 1])
def test_a_remedy_is_judged_at_the_strength_that_validation_examples_choose(
    better: int, trained: Problem
) -> None:
    made = comparison(trained)
    alone = [
        train_by(replace(made, options=replace(OPTIONS, replay_shares=(share,))), "replay").end
        for share in OPTIONS.replay_shares
    ]
    assert not torch.equal(*alone)

    def scores(point: Any, eval_sets: Any) -> np.ndarray:
        assert eval_sets is made.choice_sets  # never test examples
        return np.full((2, 2), 0.9 if torch.equal(point, alone[better]) else 0.3)

    object.__setattr__(made, "evaluate_at", scores)
    found = train_by(made, "replay")
    assert torch.equal(found.end, alone[better])
    assert found.choice is not None
    assert found.choice.strength == OPTIONS.replay_shares[better]
    assert found.choice.scores.max(1)[better] == 0.9


def test_a_strength_that_diverges_is_passed_over_and_all_of_them_are_an_error(
    trained: Problem,
) -> None:
    made = comparison(trained, optimiser="sgd", lr=1e-2)
    options = replace(OPTIONS, consolidations=(1e30, 1.0))
    found = train_by(replace(made, options=options), "consolidation").choice
    assert found is not None
    assert found.strength == 1.0
    assert np.isnan(found.scores[0]).all()
    too_strong = replace(made, options=replace(options, consolidations=(1e30, 1e31)))
    with pytest.raises(LoclinError, match="expected a finite"):
        train_by(too_strong, "consolidation")


def test_consolidation_holds_back_what_the_old_task_needs(trained: Problem) -> None:
    made = comparison(trained, optimiser="sgd", lr=1e-2)
    end = made.specialist("copy").end
    with made.space.restored():
        made.space.write(end)
        data = trained.batch("recovery", "copy").rows(slice(0, 24))
        fisher = fisher_diagonal(trained.model, made.space, data, seed=0)
    needed = fisher > fisher.quantile(0.99)
    ways = {}
    for strength in (1e-6, 30.0):
        options = replace(OPTIONS, consolidations=(strength,), fisher_examples=4, evaluations=48)
        strong = replace(made, options=options)
        moved = train_by(strong, "consolidation").end - strong.specialist("copy").end
        ways[strength] = float(moved[needed].norm() / moved.norm())
    assert ways[30.0] < 0.9 * ways[1e-6]


WORDS, WIDTH = 5, 3


@pytest.fixture
def model() -> LinearModel:
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return LinearModel(draw(WORDS, WIDTH), 0.3 * draw(1, WIDTH, WIDTH), draw(WORDS, WIDTH))


@pytest.fixture
def data() -> Batch:
    """Three examples with one, two and one answer tokens, the first two padded."""
    ids = torch.tensor([[1, 2, 0], [3, 4, 1], [2, 2, 0]])
    labels = torch.tensor([[IGNORED, 2, IGNORED], [IGNORED, 4, 1], [IGNORED, 2, IGNORED]])
    return Batch(input_ids=ids, attention_mask=(ids > 0).long(), labels=labels)


def exact_fisher(model: LinearModel, data: Batch) -> np.ndarray:
    """Σ over answer tokens of E_{y ~ p}[(∇ log p(y))²], over their number: every token of the
    vocabulary in turn.
    """
    parameters, total, count = list(model.parameters()), 0.0, 0
    for row, labels in zip(data.input_ids, data.labels, strict=True):
        for place in (labels != IGNORED).nonzero()[:, 0]:
            log_p = model(row[None]).logits[0, place - 1].log_softmax(-1)
            for y in range(WORDS):
                g = torch.autograd.grad(log_p[y], parameters, retain_graph=True)
                total += (
                    float(log_p[y].exp().detach()) * torch.cat([x.reshape(-1) for x in g]).square()
                )
            count += 1
    return (total / count).numpy()  # type: ignore[union-attr]


def test_the_fisher_is_that_of_the_models_own_tokens(model: LinearModel, data: Batch) -> None:
    space = ParameterSpace(model)
    draws = np.array(
        [fisher_diagonal(model, space, data, seed=seed).numpy() for seed in range(400)]
    )
    exact = exact_fisher(model, data)
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (
        np.abs(draws.mean(0) - exact) < 5 * error + 1e-9
    ).all()  # 5: one coordinate in forty may lie beyond 2
    assert draws.mean(0).sum() == pytest.approx(exact.sum(), rel=0.1)
    assert np.array_equal(draws[3], fisher_diagonal(model, space, data, seed=3).numpy())


def test_the_penalty_pulls_back_to_where_the_old_task_was_known(model: LinearModel) -> None:
    space = ParameterSpace(model)
    anchor, fisher = space.read(), space.noise(seed=1).square()
    pull = consolidated(space, anchor, fisher, 3.0)
    assert torch.equal(pull(), torch.zeros_like(anchor))
    moved = space.noise(seed=2)
    space.add(moved)
    point = (anchor + moved).requires_grad_()
    penalty = 1.5 * (fisher * (point - anchor) ** 2).sum()
    (expected,) = torch.autograd.grad(penalty, point)
    assert torch.allclose(pull(), expected)


@pytest.mark.parametrize(
    ("batch", "share", "sizes"),
    [(24, 0.25, (18, 6)), (2, 0.01, (1, 1)), (4, 0.99, (1, 3)), (16, 0.5, (8, 8))],
)
def test_a_replayed_batch_holds_something_of_both(
    batch: int, share: float, sizes: tuple[int, int]
) -> None:
    assert replayed(batch, share) == sizes
