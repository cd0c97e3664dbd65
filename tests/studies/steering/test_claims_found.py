from typing import Any

import numpy as np
import pytest
from scipy import stats

from loclin.studies.steering import names
from loclin.studies.steering.claims_found import Found, above_draws, whole
from tests.studies.steering.planted import row


@pytest.mark.parametrize(("models", "alone"), [(4, False), (1, False), (1, True), (8, False)])
def test_a_value_that_is_one_more_draw_has_a_uniform_p(models: int, alone: bool) -> None:
    """Of draws that are skewed, of runs that share theirs within a model: Kolmogorov and Smirnov,
    at 1 in 1000, with steps of p spread out.
    """
    found = []
    for study in range(400):
        rng = np.random.default_rng([study, models, alone])
        own = rng.exponential(size=(1 if alone else 4 if models == 4 else 8, 100)) - 1
        every = np.tile(own, (8 // len(own), 1))
        p = above_draws(every[:, 0], every[:, 1:], models, scale="plain", one=alone)
        found.append(p - (rng.random() / 100 if alone else 0))
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    assert np.mean(np.array(found) <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_draws_of_one_model_are_means_over_its_runs() -> None:
    observed, draws = np.array([1.0, 3.0]), np.array([[0.0, 4.0, 1.9], [2.0, 0.2, 2.0]])
    p = above_draws(observed, draws, 1, scale="plain", one=True)
    assert p == pytest.approx(2 / 4)  # means 1, 2.1, 1.95 of which one is above 2
    assert above_draws(observed, np.full((2, 1), np.nan), 1, scale="plain", one=True) == 1.0
    assert above_draws(np.array([1.0, np.nan]), draws, 1, scale="plain") == 1.0
    assert above_draws(observed, np.empty((2, 0)), 1) == 1.0


def test_several_units_put_their_draws_together_and_p_is_small() -> None:
    draws = np.random.default_rng(0).normal(0, 0.1, size=(4, 99))
    assert above_draws(np.full(4, 0.9), draws, 4) == 1 / 2000
    assert above_draws(np.full(4, 0.9), draws, 1, one=True) == 1 / 100


def test_numbers_of_runs_and_draws() -> None:
    here: dict[str, Any] = {"of": "E1", "null": names.TOKENS, "at": "late"}
    rows = [row("null_draw", 10.0 * run + draw, run, **here, draw=draw) for run in (1, 0)
            for draw in (1, 0)]  # fmt: skip
    rows += [row("cosine", 0.5, 1, of="E1"), row("cosine", None, 0, of="E1")]
    found = Found.of([*rows, row("caa_length", 1.0, 0, layer=3)], 1)
    assert found.draws("null_draw", **here).tolist() == [[0.0, 1.0], [10.0, 11.0]]
    assert np.isnan(found.values("cosine", of="E1")).tolist() == [True, False]
    assert found.mean("cosine", of="E1").endswith("(1 of 2 runs)")
    assert found.mean("cosine", of="E2") == "not defined"
    assert found.layers() == [3]
    assert np.isnan(whole(found.values("cosine", of="E1"))).all()
    assert found.drawn("", np.array([20.0, 20.0]), "E1", names.BEYOND, "late").value == 1.0
