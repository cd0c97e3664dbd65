"""A pass that makes its weights as it goes sees what is placed, bit for bit."""

import pytest
import torch
from torch import Tensor, nn

from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.search import passing as module
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.noise import Noise
from loclin.search.passing import passes, passing
from loclin.search.scorer import Scorer
from loclin.search.scoring import score
from tests.search.test_forecast import some


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 1)


def outcomes(perturbed: Perturbed, eval_set: EvalSet, drawn: list[Candidate]) -> list[float]:
    model = eval_set.problem.model
    return [
        o.loss for o in score(perturbed, eval_set, drawn, lambda c: passing(perturbed, model, c))
    ]


@pytest.mark.parametrize("noise", ["gaussian", "rademacher", "lowrank:2", "tied"])
def test_candidates_are_seen_as_placed_ones(trained: Problem, noise: str) -> None:
    eval_set = EvalSet.of(trained, some(trained, 6))
    perturbed = Perturbed(ParameterSpace(trained.model), Noise.parse(noise))
    drawn = candidates(3, [0.02], seed=1)
    placed = [o.loss for o in score(perturbed, eval_set, drawn)]
    perturbed.free()
    assert passes(perturbed, eval_set)
    assert outcomes(perturbed, eval_set, drawn) == placed
    assert len(set(placed)) == 3
    perturbed.verify()
    hooks = (m._forward_pre_hooks or m._forward_hooks for m in trained.model.modules())
    assert not any(hooks)


def test_the_base_is_back_whatever_happens_inside(trained: Problem) -> None:
    eval_set = EvalSet.of(trained, some(trained, 6))
    perturbed = Perturbed(ParameterSpace(trained.model), Noise())
    (candidate,) = candidates(1, [0.02], seed=1)
    last = leaves(trained)[-1]

    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    handle = last.register_forward_pre_hook(refuse)
    try:
        with pytest.raises(KeyboardInterrupt), passing(perturbed, trained.model, candidate):
            eval_set.answers()
    finally:
        handle.remove()
    perturbed.verify()


def test_weights_that_are_read_from_outside_are_placed(
    trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so are candidates of many passes, and of few coordinates."""
    eval_set = EvalSet.of(trained, some(trained, 6))
    perturbed = Perturbed(ParameterSpace(trained.model), Noise())
    scorer = Scorer(trained, perturbed.space, some(trained, 6))
    assert scorer.passes
    first, *_, last = leaves(trained)
    with monkeypatch.context() as patched:
        own = first.forward
        patched.setattr(first, "forward", lambda x: own(x) * (1 + last.weight.flatten()[0]))
        assert not passes(perturbed, eval_set)
    assert passes(perturbed, eval_set)
    monkeypatch.setattr(EvalSet, "passes", property(lambda self: 2))
    assert not passes(perturbed, eval_set)
    monkeypatch.undo()
    assert not passes(perturbed, eval_set)


def leaves(problem: Problem) -> list[nn.Module]:
    """Modules with weights of their own that no other holds."""
    norms = [m for n, m in problem.model.named_modules() if "norm" in n or "ln_" in n]
    return [m for m in norms if isinstance(getattr(m, "weight", None), Tensor)]


def test_no_second_model_is_held(trained: Problem) -> None:
    perturbed = Perturbed(ParameterSpace(trained.model), Noise())
    eval_set = EvalSet.of(trained, some(trained, 6))
    outcomes(perturbed, eval_set, candidates(2, [0.02], seed=1))
    held = sum(t.numel() for t in perturbed._beside.values())
    tied = trained.model.get_input_embeddings().weight
    assert held in (0, tied.numel())
    assert torch.equal(perturbed.base[perturbed.space.names[0]], perturbed.space.parameters[0])
