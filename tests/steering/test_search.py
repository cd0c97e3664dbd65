import hashlib
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import PreTrainedModel

from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Perturbed, candidates
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.stats import permutation_p
from loclin.steering.effect import adding, differences, slopes
from loclin.steering.prompts import PromptSet, prompt_set
from loclin.steering.search import (
    SearchedShifts,
    chance_vectors,
    perturbed_shifts,
    toward_log_probability,
    winners_vector,
)
from loclin.tasks.batch import answer_log_probabilities, answer_loss
from tests.steering.test_prompts import in_passes_of


def parts(problem: Problem, size: int) -> list[PromptSet]:
    """Three disjoint parts of what the model was not trained on."""
    examples = [e for task in problem.tasks for e in problem.examples["gradients"][task]]
    order = np.random.default_rng(0).permutation(len(examples))
    return [
        prompt_set(
            [examples[i] for i in order[size * j : size * (j + 1)]], problem.tokenizer, device="cpu"
        )
        for j in range(3)
    ]


def digest(model: PreTrainedModel) -> str:
    return hashlib.sha256(
        b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    ).hexdigest()


def planted(count: int, width: int, known: float, seed: int) -> SearchedShifts:
    """Shifts h = Jz of a linear model and scores of which g·z is a share `known`."""
    rng = np.random.default_rng(seed)
    z, noise = rng.standard_normal((count, width)), rng.standard_normal(count)
    return SearchedShifts(
        scores=known * z[:, 0] + math.sqrt(1 - known**2) * noise,
        before=0.0,
        shifts=torch.from_numpy(z)[:, None].float(),
        measured=np.arange(count),
        sigma=1.0,
    )


def test_the_score_is_the_log_probability_of_the_token_toward(speaking: Problem) -> None:
    asked = parts(speaking, 24)[0]
    with torch.no_grad():
        twin = answer_log_probabilities(speaking.model, asked.answered(asked.toward)).numpy()
    for rows in (100, 1, 5):
        with in_passes_of(rows, speaking.model):
            found = toward_log_probability(speaking.model, asked)
        assert np.allclose(found, twin, atol=1e-5)


def test_shifts_are_those_of_the_weights_moved_by_hand(speaking: Problem) -> None:
    model, (search, extract, _) = speaking.model, parts(speaking, 16)
    space = ParameterSpace(model)
    found = perturbed_shifts(
        model, space, search, extract, count=3, size=0.03, layers=[0, 1], seed=4
    )
    lengths = []
    for i, step in enumerate(candidates(3, [found.sigma], seed=derived(4, "steering"))):
        delta = Perturbed(space, Noise()).vector(step)
        lengths.append(float(delta.norm() / space.read().norm()))
        before = activations(model, extract.batch, layers=[0, 1])
        with space.restored():
            space.add(delta)
            after = activations(model, extract.batch, layers=[0, 1])
            score = toward_log_probability(model, search).mean()
        assert torch.allclose(found.shifts[i], (after - before).mean(1), atol=1e-5)
        assert math.isclose(found.scores[i], score, abs_tol=1e-6)
    assert np.allclose(lengths, 0.03, rtol=0.02)
    assert math.isclose(found.before, toward_log_probability(model, search).mean())


def test_a_search_is_a_function_of_its_seed_and_leaves_the_model_alone(speaking: Problem) -> None:
    model, (search, extract, _) = speaking.model, parts(speaking, 16)
    space, before = ParameterSpace(model), digest(model)
    shares: list[float] = []
    settings = {"count": 6, "layers": [1], "path": "transformer.h"}
    one = perturbed_shifts(
        model, space, search, extract, **settings, seed=0, progress=shares.append
    )
    again = perturbed_shifts(model, space, search, extract, **settings, seed=0)
    with in_passes_of(3, model):
        by_threes = perturbed_shifts(model, space, search, extract, **settings, seed=0)
    other = perturbed_shifts(model, space, search, extract, **settings, seed=1)
    few = perturbed_shifts(model, space, search, extract, **settings, seed=0, best=2)
    assert torch.equal(one.shifts, again.shifts)
    assert np.array_equal(one.scores, again.scores)
    assert torch.allclose(winners_vector(one, 2), winners_vector(by_threes, 2), atol=1e-5)
    assert not torch.allclose(one.shifts, other.shifts, atol=1e-3)
    assert torch.equal(winners_vector(few, 2), winners_vector(one, 2))
    assert torch.equal(winners_vector(few, 1), winners_vector(one, 1))
    assert np.allclose(shares, np.arange(1, 7) / 6)

    def interrupted(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perturbed_shifts(model, space, search, extract, **settings, seed=0, progress=interrupted)
    assert digest(model) == before


def test_the_winners_of_a_linear_model_move_along_its_gradient() -> None:
    """E[mean of the k best of N along ĝ] = (mean of the k largest of N standard normals); elsewhere
    nothing, by sd 1/√k.
    """
    count, width, k = 200, 30, 20
    found = [winners_vector(planted(count, width, 1.0, seed), k)[0].numpy() for seed in range(200)]
    quantiles = stats.norm.ppf((np.arange(count - k, count) + 1 - 0.375) / (count + 0.25))  # Blom
    assert math.isclose(np.mean([v[0] for v in found]), quantiles.mean(), rel_tol=0.02)
    assert math.isclose(np.std([v[1:] for v in found]), 1 / math.sqrt(k), rel_tol=0.05)
    at_chance = chance_vectors(planted(count, width, 1.0, 0), k, draws=300, seed=0)
    assert at_chance.shape == (300, 1, width)
    # k of N without replacement
    spread = planted(count, width, 1.0, 0).shifts[:, 0].std(0).mean() * math.sqrt(
        (1 - k / count) / k
    )
    assert math.isclose(float(at_chance[:, 0].std(0).mean()), float(spread), rel_tol=0.1)


@pytest.mark.parametrize(("known", "uniform"), [(0.0, True), (0.3, False)])
def test_p_is_uniform_where_scores_know_nothing_and_small_where_they_do(
    known: float, uniform: bool
) -> None:
    p = []
    for seed in range(300):
        found = planted(60, 4, known, seed)
        chance = chance_vectors(found, 6, draws=99, seed=seed)[:, 0, 0]
        p.append(permutation_p(float(winners_vector(found, 6)[0, 0]), chance.numpy()))
    # p takes the values 1/100 to 1: spread over the steps before it is held against the continuous
    # law
    spread = np.array(p) - np.random.default_rng(0).uniform(0, 0.01, len(p))
    distance = stats.kstest(spread, "uniform").pvalue
    assert (distance > 0.01) == uniform
    assert (np.mean(np.array(p) <= 0.05) < 0.09) == uniform


def test_winners_steer_further_than_chance_on_prompts_of_their_own(speaking: Problem) -> None:
    model, (search, extract, test) = speaking.model, parts(speaking, 48)
    space = ParameterSpace(model)
    found = perturbed_shifts(model, space, search, extract, count=60, layers=[1], seed=0)
    # at the default size scores are as linear as the law wants them: their spread is σ‖g‖, to 3
    # Monte-Carlo errors
    gradient = space.gradient(partial(answer_loss, model), [search.answered(search.toward)])
    assert found.scores.std(ddof=1) == pytest.approx(
        found.sigma * float(gradient.norm()), rel=3 / math.sqrt(2 * 60)
    )
    vectors = [winners_vector(found, 8), *chance_vectors(found, 8, draws=39, seed=0)]
    steered = [
        slopes(differences(model, test, [(change, -1.0), (change, 1.0)])[1:], [-1, 1]).mean()
        for change in (adding(model, {1: v[0] / v[0].norm()}) for v in vectors)
    ]
    assert permutation_p(steered[0], steered[1:]) < 0.05
    assert steered[0] > 0


def test_searches_that_cannot_be_made_are_refused(
    speaking: Problem, families: dict[str, PreTrainedModel]
) -> None:
    model, (search, extract, _) = speaking.model, parts(speaking, 4)
    space = ParameterSpace(model)

    def refused(
        match: str, model: PreTrainedModel = model, space: ParameterSpace = space, **changed: object
    ) -> None:
        settings = {"count": 2, "layers": [1], "seed": 0} | changed
        with pytest.raises(LoclinError, match=match):
            perturbed_shifts(model, space, search, extract, **settings)

    refused("at least 1 candidate", count=0)
    for size in (0.0, -1.0, math.inf, math.nan):
        refused("positive, finite size", size=size)
    for best in (0, 3):
        refused("1 to 2 winners", best=best)
    refused("layer", layers=[2])
    refused("finite scores and activations", size=1e30)
    halved = families["gpt2"].__class__(families["gpt2"].config).to(torch.bfloat16)
    refused("float32 weights", model=halved, space=ParameterSpace(halved))


def test_winners_that_were_not_measured_are_refused() -> None:
    found = planted(5, 2, 1.0, 0)
    for k in (0, 6):
        with pytest.raises(LoclinError, match="1 to 5 winners"):
            winners_vector(found, k)
    few = replace(found, shifts=found.shifts[:2], measured=np.arange(2))
    with pytest.raises(LoclinError, match="shifts of all 5 candidates"):
        chance_vectors(few, 2, draws=3, seed=0)
    with pytest.raises(LoclinError, match="at least 1 draw"):
        chance_vectors(found, 2, draws=0, seed=0)
