"""Trajectories with known answers."""

import numpy as np


def white_steps(steps: int, dimension: int, rng: np.random.Generator, norms: np.ndarray | None = None) -> np.ndarray:
    """T isotropic independent steps, of given norms."""
    rows = rng.standard_normal((steps, dimension))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    return rows if norms is None else rows * norms[:, None]


def drifting_steps(steps: int, dimension: int, s: float, rng: np.random.Generator) -> np.ndarray:
    """Constant drift of squared norm s plus white steps of unit norm."""
    drift = np.zeros(dimension)
    drift[0] = np.sqrt(s)
    return white_steps(steps, dimension, rng) + drift


def heavy_ball_steps(steps: int, dimension: int, momentum: float, rng: np.random.Generator) -> np.ndarray:
    """Momentum on white noise: v_t = βv_{t−1} + ε_t, each step v_t."""
    noise = white_steps(steps, dimension, rng)
    rows = np.zeros_like(noise)
    for t in range(steps):
        rows[t] = noise[t] + (momentum * rows[t - 1] if t else 0)
    return rows


def quadratic_descent(spectrum: np.ndarray, start: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """Gradient descent on ½Σλx²: step t is −ηλ(1−ηλ)^{t−1}x₀ in each coordinate."""
    t = np.arange(steps)[:, None]
    return -rate * spectrum * (1 - rate * spectrum) ** t * start
