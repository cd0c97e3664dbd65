from dataclasses import replace

import numpy as np
import pytest

from loclin import law
from loclin.models.evaluation import EvalSet
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.noise import Noise
from loclin.search.scoring import best_first
from loclin.studies.search.claims_measure import SearchData
from loclin.studies.search.point import Gains, gains


def test_gains_are_those_of_weights_moved_by_hand(there: ParameterSpace, data: SearchData) -> None:
    drawn = candidates(5, [0.02], seed=3)
    with Perturbed(there, Noise()) as perturbed:
        found = gains(perturbed, data.select, drawn)
        steps = [perturbed.vector(c) for c in drawn]
    origin = there.read()
    before, right = losses(data.select)
    for i, step in enumerate(steps):
        there.write(origin + step)
        after, now = losses(data.select)
        assert found.loss[i] == pytest.approx(before - after, abs=1e-6)
        assert found.score[i] == pytest.approx(now - right)
        assert found.outcomes[i].right.mean() == pytest.approx(now)
    assert found.candidates == drawn
    assert found.best_of(5) == found.loss.max()


def losses(eval_set: EvalSet) -> tuple[float, float]:
    sums, counts = eval_set.tallies()
    return float(sums[0] / counts[0]), float(sums[1] / counts[1])


def test_a_candidate_without_a_finite_loss_gains_nothing_and_is_never_selected(
    there: ParameterSpace, data: SearchData
) -> None:
    wild = [Candidate(index=0, seed=0, sigma=1e30), *candidates(3, [1e-3], seed=0)]
    with Perturbed(there, Noise()) as perturbed:
        found = gains(perturbed, data.select, wild)
    assert np.isnan(found.loss[0])
    assert np.isfinite(found.loss[1:]).all()
    assert wild[0] not in [o.candidate for o in best_first(found.outcomes)]


def test_luck_along_the_gradient_is_taken_out_without_bias() -> None:
    """Best of n on a quadratic: the same mean as without the control, a fifth of its spread."""
    rng, g, h = np.random.default_rng(0), np.zeros(40), np.full(40, 0.02)
    g[0], n, sigma = 1.0, 10, 0.3
    plain, controlled = [], []
    for _ in range(400):
        z = rng.standard_normal((48, 40))
        loss = -sigma * z @ g - sigma**2 / 2 * z**2 @ h
        scored = Gains(outcomes=(), loss=loss, score=loss, along=-z @ g, slope=sigma)
        plain.append(replace(scored, along=None).best_of(n))
        controlled.append(scored.best_of(n))
    error = np.std(plain) / np.sqrt(len(plain))
    assert np.mean(controlled) == pytest.approx(np.mean(plain), abs=4 * error)
    assert np.std(controlled) < 0.2 * np.std(plain)
    whole = law.best_of_n_gain(gradient=1.0, trace=0.8, along=0.02, n=n, sigma=sigma)
    assert np.mean(controlled) == pytest.approx(whole, rel=0.01)
