"""Trajectories and models with known answers."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from loclin.steering.prompts import PromptSet
from loclin.tasks.batch import IGNORED, Batch
from loclin.tasks.example import Example


def white_steps(
    steps: int, dimension: int, rng: np.random.Generator, norms: np.ndarray | None = None
) -> np.ndarray:
    """T isotropic independent steps, of given norms."""
    rows = rng.standard_normal((steps, dimension))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    return rows if norms is None else rows * norms[:, None]


def drifting_steps(steps: int, dimension: int, s: float, rng: np.random.Generator) -> np.ndarray:
    """Constant drift of squared norm s plus white steps of unit norm."""
    drift = np.zeros(dimension)
    drift[0] = np.sqrt(s)
    return white_steps(steps, dimension, rng) + drift


def filtered_steps(
    response: np.ndarray,
    s: float,
    norms: np.ndarray,
    dimension: int,
    rng: np.random.Generator,
    *,
    at_rest: bool = False,
) -> np.ndarray:
    """A constant drift and white noise in R^D through an optimiser's impulse response, with given
    norms: T steps in R^(T+1) whose Gramian has the law of those in R^D (Bartlett 1933).

    `at_rest`: the drift goes through the response as well, s being that of the last step; else
    every step has the same share of it.
    """
    count = response.shape[1]
    noise = np.tril(rng.standard_normal((count, count)), -1)
    np.fill_diagonal(noise, np.sqrt(rng.chisquare(dimension - 1 - np.arange(count))))
    along = rng.standard_normal((count, 1))
    rows = response @ np.hstack([along, noise]) / np.sqrt(dimension)
    sizes = np.linalg.norm(response, axis=1)
    drift = response.sum(1) * sizes[-1] / response[-1].sum() if at_rest else sizes
    rows[:, 0] += np.sqrt(s) * drift
    return rows * (norms / np.linalg.norm(rows, axis=1))[:, None]


def adam_steps(steps: int, dimension: int, s: float, rng: np.random.Generator) -> np.ndarray:
    """torch's Adam on a constant gradient and white noise, ‖μ‖² = s E‖ε‖², with all its moments."""
    gradients = rng.standard_normal((steps, dimension))
    gradients += np.sqrt(s) * rng.standard_normal(dimension)
    rows, first, second = np.zeros((steps, dimension)), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        rows[t - 1] = first / (1 - 0.9**t) / np.sqrt(second / (1 - 0.999**t))
    return rows


def heavy_ball_steps(
    steps: int, dimension: int, momentum: float, rng: np.random.Generator
) -> np.ndarray:
    """Momentum on white noise: v_t = βv_{t−1} + ε_t, each step v_t."""
    noise = white_steps(steps, dimension, rng)
    rows = np.zeros_like(noise)
    for t in range(steps):
        rows[t] = noise[t] + (momentum * rows[t - 1] if t else 0)
    return rows


def quadratic_descent(
    spectrum: np.ndarray, start: np.ndarray, rate: float, steps: int
) -> np.ndarray:
    """Gradient descent on ½Σλx²: step t is −ηλ(1−ηλ)^{t−1}x₀ in each coordinate."""
    t = np.arange(steps)[:, None]
    return -rate * spectrum * (1 - rate * spectrum) ** t * start


class LinearBlock(nn.Module):
    """h + W h."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, h: Tensor) -> Tensor:
        return h + h @ self.weight.T


class LinearModel(nn.Module):
    """A causal language model in which each token sees itself alone: h₀ = E[token], h ← h + W_L h,
    logits = U h.
    """

    def __init__(self, embedding: Tensor, weights: Tensor, readout: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(embedding.clone())
        self.layers = nn.ModuleList(LinearBlock(w) for w in weights)
        self.readout = nn.Parameter(readout.clone())
        words, width = embedding.shape
        self.config = PretrainedConfig(
            num_hidden_layers=len(weights), hidden_size=width, vocab_size=words
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
    ) -> SimpleNamespace:
        h = self.embedding[input_ids]
        for layer in self.layers:
            h = layer(h)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return SimpleNamespace(logits=h[:, kept] @ self.readout.T)


YES, NO, FIRST = 1, 2, 3  # token 0 is padding; statements end in a token from FIRST on


def questions(last: Tensor, labels: np.ndarray, rng: np.random.Generator) -> PromptSet:
    """Ragged prompts that end in given tokens, asked for YES or NO."""
    rows = [
        torch.from_numpy(
            np.append(rng.integers(FIRST, int(last.max()) + 1, rng.integers(5)), int(t))
        )
        for t in last
    ]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    ends = torch.tensor([len(r) for r in rows])[:, None]
    right = torch.from_numpy(labels)
    return PromptSet(
        batch=Batch(
            input_ids=ids,
            attention_mask=(torch.arange(ids.shape[1]) < ends).long(),
            labels=torch.full_like(ids, IGNORED),
        ),
        toward=torch.full((len(rows),), YES),
        away=torch.full((len(rows),), NO),
        labels=labels,
        gold=torch.where(right, YES, NO),
        groups=tuple(map(str, range(len(rows)))),
        examples=tuple(
            Example(prompt=str(i), answer=" yes" if y else " no", options=(" yes", " no"))
            for i, y in enumerate(labels)
        ),
        form="class",
        positive=" yes",
    )


def truth_world(
    *, layers: int, width: int, facts: int, seed: int
) -> tuple[LinearModel, PromptSet, Tensor]:
    """A linear model with one direction of truth, questions about it, and the direction a: all
    routes find a (float64).

    Statement j is embedded as c + u_j + a where true, c + u_j − a where false, with c and u_j
    orthogonal to a, which every W_L has as a left and right eigenvector; logits of YES and NO
    differ by 2a·h, all others are those of a common vector. So the class contrast, the logit
    gradient and the shift of h by a step on any loss of YES and NO lie along a.
    """
    rng = np.random.default_rng(seed)
    turn = torch.from_numpy(np.linalg.qr(rng.standard_normal((width, width)))[0])
    a, rest = turn[0], turn[1:]
    beside = torch.from_numpy(rng.standard_normal((facts, width - 1))) @ rest / 4
    common = 2 * rest[0]
    kinds = torch.cat([common + beside + a / 2, common + beside - a / 2])
    embedding = torch.cat([torch.zeros(FIRST, width, dtype=torch.float64), kinds])
    inside = (
        torch.from_numpy(rng.standard_normal((layers, width - 1, width - 1))) * 0.3 / width**0.5
    )
    along = torch.from_numpy(rng.uniform(-0.2, 0.4, layers))
    weights = rest.T @ inside @ rest + along[:, None, None] * torch.outer(a, a)
    readout = torch.from_numpy(rng.standard_normal(width)).expand(len(embedding), -1).clone()
    readout[YES] += a
    readout[NO] -= a
    asked = questions(torch.arange(FIRST, FIRST + 2 * facts), np.arange(2 * facts) < facts, rng)
    return LinearModel(embedding, weights, readout), asked, a
