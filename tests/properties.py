"""Theory as named properties, used across the tests."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from loclin.run.rows import Row
from loclin.studies.verdict import Rule, verdicts

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


def verdict_of(rule: Rule, family: int = 1) -> str:
    """The verdict alone, of a claim among so many that are like it."""
    tests = rule.tests()
    if tests is None:
        return rule.claim.verdict
    return verdicts(dict.fromkeys(range(family), tests))[0]


def verdict_shares(
    world: World, rule: Callable[[list[Row]], Rule], draws: int, runs: int = 6, family: int = 1
) -> dict[str, float]:
    """How often each verdict is given over independent studies of a planted world.

    The rule is decided alone (both directions after Holm), or with the strictest correction that a
    family of so many claims can bring: claims beside it whose p in either direction is as small.
    """
    words = []
    for study in range(draws):
        rng = np.random.default_rng([study, 7])
        decides = rule([row for run in range(runs) for row in world(rng, run)])
        words.append(verdict_of(decides, family))
    return {word: float(np.mean([w == word for w in words])) for word in sorted({*words})}


def assert_rarely_decided(shares: Mapping[str, float], draws: int, level: float = 0.05) -> None:
    """On a planted null both verdicts are rare: at most the level, and its Monte-Carlo error."""
    most = level + 2 * float(np.sqrt(level * (1 - level) / draws))
    assert shares.get("supported", 0.0) <= most, shares
    assert shares.get("refuted", 0.0) <= most, shares
