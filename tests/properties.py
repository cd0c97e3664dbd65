"""Theory as named properties, used across the tests."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from loclin.run.rows import Claim, Row
from loclin.studies.verdict import confirmed

World = Callable[[np.random.Generator, int], list[Row]]


def rotation(dimension: int, *, seed: int) -> Tensor:
    """A random orthogonal matrix."""
    q, _ = torch.linalg.qr(
        torch.randn(dimension, dimension, generator=torch.Generator().manual_seed(seed))
    )
    return q


def assert_invariant_to_rotation(
    measure: Callable[..., float], *vectors: Tensor, seed: int = 0
) -> None:
    """Turning the whole space changes no measure of it."""
    turn = rotation(vectors[0].shape[-1], seed=seed)
    assert np.isclose(measure(*vectors), measure(*(v @ turn for v in vectors)), atol=1e-4)


def assert_follows(draws: np.ndarray, law: stats.rv_continuous) -> None:
    """Independent draws follow a law (Kolmogorov-Smirnov, at a level of 1 in 1000 with the fixed
    seeds used here).
    """
    assert stats.kstest(draws, law.cdf).pvalue > 1e-3
    assert abs(draws.mean() - law.mean()) < 4 * law.std() / np.sqrt(len(draws))


def assert_within_error(draws: np.ndarray, expected: float) -> None:
    """The mean of independent draws is the expected value up to four standard errors."""
    assert abs(draws.mean() - expected) < 4 * draws.std(ddof=1) / np.sqrt(len(draws))


def share_supported(
    world: World, rule: Callable[[list[Row]], Claim], draws: int, runs: int = 6, family: int = 1
) -> float:
    """How often a rule supports its claim over independent studies of a planted world.

    Before Holm's correction, or with the strictest that a family of so many claims can bring.
    """
    verdicts = []
    for study in range(draws):
        rng = np.random.default_rng([study, 7])
        claim = rule([row for run in range(runs) for row in world(rng, run)])
        verdicts.append(
            confirmed(
                replace(claim, p_holm=None if claim.p is None else min(1.0, family * claim.p))
            ).verdict
            == "supported"
        )
    return float(np.mean(verdicts))
