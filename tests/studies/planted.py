"""Runs that share models."""

import math

import numpy as np


def nested(rng: np.random.Generator, run: int, models: int, spread: float) -> float:
    """A run's value around 0, nine tenths of its variance being its model's: the study's generator
    decides what its models are.
    """
    seed = rng.bit_generator.seed_seq.entropy  # type: ignore[attr-defined]
    own = np.random.default_rng([*seed, run % models]).standard_normal()
    return spread * float(math.sqrt(0.9) * own + math.sqrt(0.1) * rng.standard_normal())
