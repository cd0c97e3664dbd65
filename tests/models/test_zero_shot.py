"""What a model knows before anything is done, against planted answers and against dense twins."""

from dataclasses import replace

import numpy as np
import pytest

from loclin.models import Problem
from loclin.models.zero_shot import best_phrasing, separated, zero_shot
from loclin.tasks.choices import collate_choices, option_log_probabilities
from loclin.tasks.example import Example
from loclin.tasks.wrong import with_wrong_answers


def turned(problem: Problem, task: str) -> Problem:
    """The same with wrong answers to a task: a model that knows the task has none of them right."""
    parts = {n: dict(part) for n, part in problem.examples.items()}
    for part in parts.values():
        part[task] = with_wrong_answers(part[task], seed=0)
    return replace(problem, examples=parts)


def test_scores_are_those_of_the_split_and_known_is_beyond_guessing(speaking: Problem) -> None:
    colour, town = zero_shot(turned(speaking, "town"), split="test", seed=0)
    assert (colour.task, town.task) == ("colour", "town")
    assert colour.known
    assert colour.score.low > 0.6
    assert not town.known
    assert colour.auc is not None
    assert colour.auc > 0.9
    assert town.auc is not None
    assert town.auc < 0.1
    assert colour.guessing == colour.blind == 0.5
    assert colour.score.n == min(100, len(speaking.examples["test"]["colour"]))
    few = {n: {t: es[:40] for t, es in part.items()} for n, part in speaking.examples.items()}
    every = replace(speaking, examples=few)
    assert zero_shot(every, split="test", seed=0)[0].score.value == pytest.approx(
        every.score("test", "colour")
    )


def test_the_mass_is_that_of_all_options(speaking: Problem) -> None:
    (colour, _) = zero_shot(speaking, split="test", seed=0)
    examples = speaking.examples["test"]["colour"]
    scores = (
        option_log_probabilities(speaking.model, collate_choices(examples, speaking.tokenizer))
        .exp()
        .detach()
    )
    assert colour.mass == pytest.approx(float(scores.sum(1).mean()), abs=0.05)
    nowhere = [replace(e, options=(" red", " blue"), answer=" red") for e in examples[:20]]
    other = {n: {"colour": tuple(nowhere)} for n in speaking.examples}
    (unasked,) = zero_shot(replace(speaking, examples=other), split="test", seed=0)
    assert unasked.mass is not None
    assert unasked.mass < 0.1 < 0.9 < (colour.mass or 0)


def test_free_answers_have_a_score_alone(trained: Problem) -> None:
    for z in zero_shot(trained, split="test", seed=0):
        assert z.known
        assert z.score.value > 0.9
        assert z.auc is z.mass is None
        assert z.guessing == 0


def test_the_draw_depends_on_the_seed_alone(trained: Problem) -> None:
    assert zero_shot(trained, split="train", seed=1) == zero_shot(trained, split="train", seed=1)


def area(right: np.ndarray, wrong: np.ndarray) -> float:
    return float(np.mean([(r > w) + 0.5 * (r == w) for r in right for w in wrong]))


def test_the_area_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = np.log(rng.dirichlet([1, 1], size=30) * 0.7)
    answers = rng.integers(2, size=30)
    classes = [Example(prompt="", answer="ab"[a], options=("a", "b")) for a in answers]
    odds = scores[:, 0] - scores[:, 1]
    assert separated(classes, scores) == pytest.approx(area(odds[answers == 0], odds[answers == 1]))
    own = [
        Example(prompt="", answer=f"{i}{'ab'[a]}", options=(f"{i}a", f"{i}b"))
        for i, a in enumerate(answers)
    ]
    signed = np.where(answers == 0, odds, -odds)
    assert separated(own, scores) == pytest.approx(area(signed, -signed))
    assert separated(classes, scores + rng.normal(size=(30, 1))) == pytest.approx(
        separated(classes, scores)
    )
    ragged = [own[0], Example(prompt="", answer="z", options=("x", "y", "z"))]
    padded = np.array([[-0.5, -0.9, -np.inf], [-1.6, -1.6, -0.7]])
    assert separated(ragged, padded) is not None
    assert separated([classes[0]] * 3, scores[:3]) is None


def test_the_best_phrasing_of_each_task_is_kept_in_every_split(speaking: Problem) -> None:
    examples = {
        n: {
            t: tuple(
                replace(e, phrasing="good" if i % 2 else "bad")
                for i, e in enumerate(es)
                if i % 2 or t == "colour"
            )
            for t, es in part.items()
        }
        for n, part in speaking.examples.items()
    }
    for part in examples.values():
        part["colour"] = tuple(
            w if w.phrasing == "bad" else e
            for e, w in zip(part["colour"], with_wrong_answers(part["colour"], seed=0), strict=True)
        )
    found = best_phrasing(replace(speaking, examples=examples))
    for part in found.examples.values():
        assert (
            {e.phrasing for e in part["colour"]} == {"good"} == {e.phrasing for e in part["town"]}
        )
    assert "chosen by their score on the validate split: colour: 'good' (" in found.notes[-1]
