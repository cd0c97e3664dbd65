"""How often rules decide which way over independent planted studies (measures §14)."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from loclin.run.rows import Claim, Row

World = Callable[[np.random.Generator, int], list[Row]]
Decide = Callable[[list[Row]], list[Claim]]


def shares(world: World, decide: Decide, draws: int, runs: int = 6) -> dict[str, float]:
    """The share of every verdict of the first claim, Holm's correction included, over studies of a
    planted world.
    """
    counts: Counter[str] = Counter()
    for study in range(draws):
        rng = np.random.default_rng([study, 7])
        counts[decide([row for run in range(runs) for row in world(rng, run)])[0].verdict] += 1
    return {verdict: counts[verdict] / draws for verdict in ("supported", "refuted")}


def by_chance(draws: int, level: float = 0.05) -> float:
    """The level and two standard errors of a share of so many studies."""
    return level + 2 * math.sqrt(level * (1 - level) / draws)


def nested(rng: np.random.Generator, run: int, models: int, spread: float) -> float:
    """A run's value around 0, nine tenths of its variance being its model's."""
    seed = int(rng.bit_generator.seed_seq.entropy[0])  # type: ignore[attr-defined, union-attr]
    own = np.random.default_rng([seed, run % models, 3]).standard_normal()
    return spread * float(math.sqrt(0.9) * own + math.sqrt(0.1) * rng.standard_normal())
