"""The null of the cosine with labels: what random weight steps, as long in every tensor as the
gradient step, shift activations along (measures §13); drawn step by step, or by its law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from loclin.activations.blocks import blocks
from loclin.activations.capture import captured, last_places, stopped_after
from loclin.geometry.gramian import norm
from loclin.parameters import ParameterSpace
from loclin.seeds import derived
from loclin.steering.averages import estimated_by, step_averaged
from loclin.steering.compare import both_ways, cosines, random_directions
from loclin.steering.estimands import Estimand
from loclin.steering.gradient import shift
from loclin.steering.prompts import PromptSet, pieces

DRAWS = 12  # random steps behind the law
LEVELS = 100  # quantiles of cᵀJv beside each of them


@dataclass(frozen=True, eq=False, kw_only=True)
class RandomSteps:
    """Random steps v of the weights and where their shifts Jv are read.

    Attributes:
        model, space: whose weights step.
        shares: s_t, the length of v in every tensor; the whole is 1 long.
        read: prompts on which activations are read.
        estimand: Jv is the mean shift of them, or for E3 that of one class less the other's.
        eta: length of a step that is taken, over the length of the weights.
        layers, path: blocks to read, and where they are.
        seed: of the steps.
    """

    model: nn.Module
    space: ParameterSpace
    shares: Mapping[str, float]
    read: PromptSet
    estimand: Estimand
    eta: float
    layers: Sequence[int]
    path: str | None
    seed: int

    def shift(self, direction: Float[Tensor, " D"], layers: Sequence[int]) -> Float[Tensor, "L d"]:
        """η‖θ‖·Jv/‖v‖ at some blocks, by a step forward and back."""
        at: dict[str, Any] = {"eta": self.eta, "layers": layers, "path": self.path}
        moved = step_averaged(
            self.model, self.space, direction, self.read, estimand=self.estimand, **at
        )
        return moved.direction().double()


def drawn_cosines(
    steps: RandomSteps,
    against: Float[Tensor, "L d"],
    *,
    count: int,
    origin: Float[Tensor, "L n d"],
    progress: Callable[[float], None],
) -> Float[np.ndarray, "m L"]:
    """The cosine with labels (`against`) of `count` steps that are taken; of each also minus it,
    see `both_ways`. `origin`: activations before any step.
    """
    at: dict[str, Any] = {"size": steps.eta, "layers": steps.layers, "path": steps.path}
    rows, seed = [], derived(steps.seed, "null")
    for direction in random_directions(steps.space, count, seed=seed, shares=steps.shares):
        moved = shift(steps.model, steps.space, direction, steps.read.batch, origin=origin, **at)
        rows.append(cosines(estimated_by(moved, steps.read, steps.estimand).direction(), against))
        progress(len(rows) / count)
    return both_ways(rows)


def cosines_by_law(
    steps: RandomSteps, against: Float[Tensor, "L d"], *, progress: Callable[[float], None]
) -> Float[np.ndarray, "m L"]:
    """Equally likely cosines with labels of all such steps, from one backward pass a block and a
    dozen steps.

    With c the unit vector of `against`, a = cᵀJv is Gaussian with variance V = Σ_t (s_t²/D_t)
    ‖J_tᵀc‖², D_t the coordinates of tensor t. What is left of the shift once a is taken out, w = Jv
    − (b/V)a with b = Cov(Jv, a) = Σ_t (s_t²/D_t) J_t J_tᵀc, is independent of a, and is read off a
    dozen drawn steps. cos = a/‖(b/V)a + w‖, at a hundred quantiles of a beside each w, and minus
    it. Without b, the length of Jv would count as independent of a: where few directions carry most
    of Jv, it is not.
    """
    unit = torch.nn.functional.normalize(against.double(), dim=-1)
    vector, total = steps.space.zeros(), len(steps.layers) + DRAWS
    variances, along = np.empty(len(unit)), []
    for i, layer in enumerate(steps.layers):
        variances[i], b = _along(steps, layer, unit[i], vector)
        along.append(b)
        progress((i + 1) / total)
    del vector  # the random steps take its place
    slope, rows = torch.stack(along) / torch.from_numpy(variances)[:, None], []
    size, seed = steps.eta * steps.space.norm(), derived(steps.seed, "null")
    levels = stats.norm.ppf((np.arange(LEVELS) + 0.5) / LEVELS)
    a = torch.from_numpy(levels[:, None] * np.sqrt(variances))
    drawn = random_directions(steps.space, DRAWS, seed=seed, shares=steps.shares)
    for i, direction in enumerate(drawn):
        moved = steps.shift(direction, steps.layers) / size
        left = moved - slope * (moved * unit).sum(-1, keepdim=True)
        rows.append(a / (slope * a[..., None] + left).norm(dim=-1))
        progress((len(steps.layers) + i + 1) / total)
    return both_ways(list(torch.cat(rows).clamp(-1, 1)))


def _along(
    steps: RandomSteps, layer: int, unit: Float[Tensor, " d"], vector: Float[Tensor, " D"]
) -> tuple[float, Float[Tensor, " d"]]:
    """V and b of one block; `vector` is written over."""
    space, read, variance = steps.space, steps.read, 0.0
    stack = blocks(steps.model, steps.path)
    weights = torch.from_numpy(_weights(read, steps.estimand))
    vector.zero_()
    with space.gradients_in(vector):
        for rows in pieces(steps.model, read.batch):
            batch = read.rows(rows).batch
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            with torch.enable_grad(), captured(stack, [layer]) as kept, stopped_after(stack[layer]):
                steps.model(**inputs, use_cache=False)
            h, last = kept[layer], last_places(batch.attention_mask)
            h = h[torch.arange(len(batch), device=h.device), last.to(h.device)]
            along = weights[rows].to(h) @ (h @ unit.to(h))
            torch.autograd.backward(along, inputs=space.parameters)
    for name, piece in space.by_tensor(vector).items():
        share = steps.shares[name] ** 2 / piece.numel()
        variance += share * norm(piece.reshape(-1)) ** 2
        piece.mul_(share)  # a view: into the vector
    b = steps.shift(vector, [layer])[0] * norm(vector)
    return variance, b / (steps.eta * space.norm())


def _weights(read: PromptSet, estimand: Estimand) -> Float[np.ndarray, " n"]:
    """What every prompt counts for in the shift."""
    if estimand != "E3" or read.labels is None:
        return np.full(len(read), 1 / len(read))
    sides = 1 / read.labels.sum(), -1 / (~read.labels).sum()
    return np.asarray(np.where(read.labels, *sides))
