from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loclin import models
from loclin.errors import LoclinError
from loclin.models import BUILT_IN, Problem, builtin
from loclin.parameters import ParameterSpace
from loclin.tasks.batch import exact_match
from loclin.tasks.sequences import SequenceTasks


def test_the_model_knows_every_task_on_inputs_it_never_saw(trained: Problem) -> None:
    assert BUILT_IN["sequences-small"].data.tasks == trained.tasks
    for task in trained.tasks:
        assert exact_match(trained.model, trained.batch("validate", task)).float().mean() >= 0.99
        assert exact_match(trained.model, trained.batch("test", task)).float().mean() >= 0.95


def test_the_statement_model_knows_facts_in_phrasings_it_never_saw(speaking: Problem) -> None:
    assert speaking.tasks == ("colour", "town")
    for task in speaking.tasks:
        assert speaking.has_options(task)
        assert speaking.chance(task) == speaking.destroyed_at(task) == 0.5
        assert speaking.score("validate", task) >= 0.9
        assert speaking.score("test", task) >= 0.85


def test_another_seed_is_another_statement_model_of_other_facts(speaking: Problem) -> None:
    recipe, facts = models.BUILT_IN["statements-small"], []
    for seed in (0, 1):
        facts.append({repr(e) for e in builtin.built_in_examples(recipe, seed).examples["colour"]})
    assert facts[0] != facts[1]
    assert recipe.hash(0) != recipe.hash(1)


def test_a_built_in_model_is_an_ordinary_folder(speaking: Problem, cache: Path) -> None:
    spoken = ParameterSpace(speaking.model).read()
    folders = cache.glob("statements-small-*")
    plain = [ParameterSpace(AutoModelForCausalLM.from_pretrained(f)).read() for f in folders]
    assert any(torch.equal(spoken, weights) for weights in plain)


def test_no_input_is_in_two_splits_not_even_under_two_tasks(trained: Problem) -> None:
    groups = {
        name: {e.group for t in tasks.values() for e in t}
        for name, tasks in trained.examples.items()
    }
    names = list(groups)
    assert all(not groups[a] & groups[b] for a in names for b in names if a < b)


def test_a_second_load_reads_the_cache(trained: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_trained", lambda *_: pytest.fail("trained again"))
    again = models.load("sequences-small", seed=0)
    assert torch.equal(ParameterSpace(again.model).read(), ParameterSpace(trained.model).read())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A recipe that asks for little, in a cache of its own."""
    data = replace(SequenceTasks.small(), tasks=("copy",))
    recipe = replace(BUILT_IN["sequences-small"], data=data, steps=3, reach=0.0)
    monkeypatch.setitem(models.BUILT_IN, "quick", recipe)
    monkeypatch.setenv("LOCLIN_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("how", ["cut short", "one bit", "gone"])
def test_a_damaged_cache_is_detected_and_rebuilt(
    quick: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = ParameterSpace(models.load("quick").model).read()
    (file,) = quick.glob("quick-*/model.safetensors")
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content if how == "one bit" else content[:100])
    assert torch.equal(ParameterSpace(models.load("quick").model).read(), first)
    assert "is damaged: making it again" in caplog.text
    caplog.clear()
    models.load("quick")
    assert caplog.text == ""


def test_an_interrupted_training_leaves_nothing_that_looks_finished(quick: Path) -> None:
    def interrupt(text: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.load("quick", progress=interrupt)
    assert [p for p in quick.iterdir() if p.suffix != ".lock"] == []


def test_another_seed_or_recipe_is_another_folder() -> None:
    recipe = BUILT_IN["sequences"]
    names = {
        recipe.hash(0),
        recipe.hash(1),
        replace(recipe, width=65).hash(0),
        replace(recipe, version=99).hash(0),
    }
    assert len(names) == 4


def test_training_that_misses_its_mark_is_an_error(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        models.BUILT_IN, "quick", replace(models.BUILT_IN["quick"], reach=1.1, rounds=2)
    )
    with pytest.raises(
        LoclinError, match=r"score of 1.1 on every task after training, found .* on copy"
    ):
        models.load("quick")
    with pytest.raises(LoclinError, match="expected --data with the model 'gtp2', found none"):
        models.load("gtp2")


def test_always_giving_the_commonest_answer_is_no_knowledge(speaking: Problem) -> None:
    shown = speaking.examples["test"]["town"]
    skewed = (
        tuple(e for e in shown if e.answer == " yes")
        + tuple(e for e in shown if e.answer == " no")[:10]
    )
    problem = replace(speaking, examples={**speaking.examples, "test": {"town": skewed}})
    assert problem.chance("town") == speaking.without_reading("town") == 0.5
    assert problem.without_reading("town") == pytest.approx((len(skewed) - 10) / len(skewed))
