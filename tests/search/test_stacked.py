"""LoRA candidates in shared passes against the same candidates placed one after the other."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.run.dispatch import Place
from loclin.search import ledger
from loclin.search import scorer as module
from loclin.search import stacked as rule
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.noise import Noise
from loclin.search.random_search import random_search
from loclin.search.scorer import Scorer
from loclin.search.scoring import Outcome, score
from loclin.search.spec import SearchSpec
from loclin.search.stacked import TOKENS, score_stacked, stacked, stacks
from loclin.tasks.example import Example
from tests.conftest import FAMILIES
from tests.search.test_spec import examples, options, same

RAGGED = [("the cat", " sat on the mat"), ("do cats purr? yes, they do.", " (A)"), ("a", " dog")]
GROUP = [*candidates(2, [0.05], seed=0, antithetic=True), *candidates(2, [0.2], seed=1)]


def adapted(problem: Problem, **more: Any) -> Problem:
    model = attach(copy.deepcopy(problem.model), Lora(rank=2, **more), seed=0)
    return replace(problem, model=model)


def perturbed(problem: Problem, noise: str = "gaussian", pattern: str = "*") -> Perturbed:
    return Perturbed(ParameterSpace(problem.model, pattern), Noise.parse(noise))


def alike(one: Sequence[Outcome], other: Sequence[Outcome]) -> bool:
    return [o.loss for o in one] == pytest.approx([o.loss for o in other], rel=1e-5) and all(
        np.array_equal(a.right, b.right) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "whole"), [("trained", False), ("speaking", False), ("speaking", True)]
)
def test_stacked_outcomes_are_those_of_one_at_a_time(
    name: str, whole: bool, request: pytest.FixtureRequest
) -> None:
    """Free answers, options of one token, and options scored whole; two candidates are mirrors."""
    problem = adapted(request.getfixturevalue(name))
    eval_set = EvalSet.of(problem, examples(problem, "damage", 3))
    eval_set = replace(eval_set, options=None) if whole else eval_set
    with perturbed(problem) as around:
        assert stacks(around, eval_set)
        found = score_stacked(around, eval_set, GROUP)
        around.verify()
        assert alike(found, score(around, eval_set, GROUP))
    assert [o.candidate for o in found] == GROUP
    assert len({o.loss for o in found}) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_stacked(
    family: str,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    ragged = [Example(prompt=p, answer=a) for p, a in RAGGED]
    problem = adapted(Problem(model=families[family], tokenizer=tokenizers[family], examples={}))
    problem.model.double()
    eval_set = EvalSet.of(problem, ragged)
    with perturbed(problem) as around:
        assert stacks(around, eval_set)
        found = score_stacked(around, eval_set, GROUP)
        for one, other in zip(found, score(around, eval_set, GROUP), strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-9)
            assert np.array_equal(one.right, other.right)


def test_many_passes_keep_each_candidates_rows_together(
    speaking: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = adapted(speaking)
    eval_set = EvalSet.of(problem, examples(problem, "damage", 3))
    with perturbed(problem) as around:
        wanted = score(around, eval_set, GROUP)
        monkeypatch.setattr("loclin.models.evaluation.rows_at_once", lambda *_: 8)  # two rows each
        assert alike(score_stacked(around, eval_set, GROUP), wanted)


def test_sizes_and_spaces_decide(trained: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = adapted(trained)
    few = EvalSet.of(problem, examples(problem, "damage", 2))
    assert few.size == few.batch.input_ids.numel() <= TOKENS
    assert stacks(perturbed(problem), few)
    assert not stacks(perturbed(problem, "lowrank:2"), few)
    assert not stacks(perturbed(problem, "tied"), few)
    assert not stacks(perturbed(problem, pattern="*lora_B*"), few)
    assert not stacks(perturbed(trained), EvalSet.of(trained, examples(trained, "damage", 2)))
    space = ParameterSpace(problem.model)
    row = torch.eye(1, space.dimension)
    assert not stacks(Perturbed(space, Noise(), basis=row), few)
    monkeypatch.setattr(rule, "TOKENS", few.size)
    assert stacks(perturbed(problem), few)
    monkeypatch.setattr(rule, "TOKENS", few.size - 1)
    assert not stacks(perturbed(problem), few)


def test_factors_that_are_read_otherwise_are_scored_one_at_a_time(trained: Problem) -> None:
    """A forward of another hand; and a layer that reads its factor without the forward."""
    problem = adapted(trained)
    eval_set = EvalSet.of(problem, examples(problem, "damage", 2))
    around = perturbed(problem)
    layer = next(m for m in problem.model.modules() if isinstance(m, LoraLayer))
    factor = layer.lora_A["default"]
    assert isinstance(layer, nn.Module)
    assert isinstance(factor, nn.Linear)
    vars(factor)["forward"] = lambda x: type(factor).forward(factor, x)
    assert not stacks(around, eval_set)
    del vars(factor)["forward"]
    assert stacks(around, eval_set)
    plain = type(layer).forward

    def own(x: Tensor) -> Tensor:
        return torch.as_tensor(plain(layer, x)) + (x @ factor.weight.mT).sum(-1, keepdim=True)

    vars(layer)["forward"] = own
    assert not stacks(around, eval_set)
    around.verify()


def test_rows_that_cannot_be_divided_are_refused_and_nothing_is_left(trained: Problem) -> None:
    problem = adapted(trained)
    around, batch = perturbed(problem), problem.collate(examples(problem, "damage", 1)[:1])
    with (
        pytest.raises(LoclinError, match="expected 1 rows in every module, in 4 equal blocks"),
        torch.no_grad(),
        stacked(around, problem.model, GROUP),
    ):
        problem.model(input_ids=batch.input_ids)
    assert not [m for m in problem.model.modules() if "forward" in vars(m)]
    assert not problem.model._forward_pre_hooks
    around.verify()


def test_out_of_memory_takes_one_at_a_time_and_says_so(
    trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> list[Outcome]:
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")

    problem = adapted(trained)
    scorer = Scorer(problem, ParameterSpace(problem.model), examples(problem, "damage", 2))
    wanted = score(scorer.perturbed, scorer.eval_set, GROUP)
    monkeypatch.setattr(module, "score_stacked", full)
    assert same(scorer.do(GROUP), wanted)
    assert same(scorer.do(GROUP), wanted)
    assert scorer.notes == ["out of memory on cpu: from here on one candidate at a time"]


def test_workers_and_resuming_do_not_matter_and_groups_are_kept(
    trained: Problem, tmp_path: Path
) -> None:
    """A half group in the ledger is scored whole again, and its first half kept."""
    request: dict[str, Any] = {
        "n": 6,
        "sigmas": [0.02, 0.1],
        "seed": 3,
        "antithetic": True,
        "group": 5,
    }
    spec = SearchSpec(
        options=options(), space="lora", lora=Lora(rank=2), examples=examples(trained, "damage", 2)
    )
    scorer, path = spec.build(), tmp_path / "ledger.jsonl"
    assert scorer.stacks
    assert scorer.fingerprint["stacked"] is True
    whole = random_search(scorer, **request, ledger=path)
    drawn = candidates(6, [0.02, 0.1], seed=3, antithetic=True)
    assert alike(whole.outcomes, score(scorer.perturbed, scorer.eval_set, drawn))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:8]))  # seven of twelve candidates
    groups: list[list[Candidate]] = []
    plain = scorer.do

    def counted(item: Sequence[Candidate], *rest: object) -> list[Outcome]:
        groups.append(list(item))
        return plain(item)

    scorer.do = counted  # type: ignore[method-assign, assignment]
    assert same(random_search(scorer, **request, ledger=path).outcomes, whole.outcomes)
    assert groups == [drawn[5:10], drawn[10:]]
    assert same(ledger.read(path)[1], whole.outcomes)
    two = random_search(scorer, **request, spec=spec, place=Place(workers=2))
    assert same(two.outcomes, whole.outcomes)
    with pytest.raises(LoclinError, match=r"another search \(group is 5 there, 4 here\)"):
        random_search(scorer, **{**request, "group": 4}, ledger=path)
