"""Directions from a random search: what the best of many random weight steps do to activations
(Figure 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Perturbed, candidates
from loclin.search.noise import Noise
from loclin.seeds import derived
from loclin.steering.prompts import PromptSet, next_logits, pieces

#: ‖σz‖/‖θ‖, a tenth of the law's limit `law.valid_up_to` for the loss of E1 on the smaller built-in
#: statement model (0.22; 0.51 on the larger): scores then follow the gradient at a correlation
#: above 0.99 (`law.alignment_correlation`). Set from gradient and curvature alone, before any
#: vector was tested.
SIZE = 0.02


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchedShifts:
    """What N random weight steps scored on some prompts, and did to activations on others.

    Attributes:
        scores: mean log p(toward) of every candidate, in nats.
        before: the same of the model as it is.
        shifts: mean over prompts of h_L(θ + σz) − h_L(θ) at the last token, of every candidate
            measured.
        measured: which candidates those are.
        sigma: σ, in units of the weights.
    """

    scores: Float[np.ndarray, " N"]
    before: float
    shifts: Float[Tensor, "m L d"]
    measured: Int[np.ndarray, " m"]
    sigma: float


@torch.no_grad()
def toward_log_probability(model: nn.Module, prompts: PromptSet) -> Float[np.ndarray, " n"]:
    """log p(toward | prompt) over the whole vocabulary, in nats, where the model stands: minus the
    loss of E1 (measures §13).
    """
    found = np.empty(len(prompts))
    for rows in pieces(model, prompts.batch):
        chosen = prompts.rows(rows)
        log_p = next_logits(model, chosen.batch).log_softmax(-1)
        toward = chosen.toward.to(log_p.device)[:, None]
        found[rows.numpy()] = log_p.gather(1, toward)[:, 0].cpu().numpy()
    return found


def perturbed_shifts(
    model: nn.Module,
    space: ParameterSpace,
    search: PromptSet,
    extract: PromptSet,
    *,
    count: int,
    size: float = SIZE,
    layers: Sequence[int],
    seed: int,
    best: int | None = None,
    path: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> SearchedShifts:
    """Score random steps σz, z ~ N(0, I_D), and read the mean activation shift of each; one
    candidate in memory at a time.

    Step i is a function of (seed, i, tensor name) alone. ‖σz‖ = size·‖θ‖ on average: σ =
    size·‖θ‖/√D. The weights are afterwards what they were, bit for bit.

    Args:
        model: a causal LM in evaluation mode, in float32 or better.
        space: the tensors that move.
        search, extract: prompts that candidates are scored on, and that shifts are read on. No
            group may be in both: that is the caller's duty.
        count: N.
        size: of a step, relative to ‖θ‖.
        layers, path: blocks to read, and where they are.
        seed: of the steps.
        best: read the shifts of so many of the largest scores alone, placed a second time;
            `chance_vectors` then has nothing to draw from.
        progress: called with the share that is done after every candidate.

    Raises:
        LoclinError: a count, size or `best` out of range, weights of all zeros or in half
            precision, scores or activations that are not finite.
    """
    sigma, wanted = _sigma(space, count, size, best), list(layers)
    steps = candidates(count, [sigma], seed=derived(seed, "steering"))

    def centre() -> Float[Tensor, "L d"]:
        return activations(model, extract.batch, layers=wanted, path=path).double().mean(1)

    def score() -> float:
        return float(toward_log_probability(model, search).mean())

    scores, shifts = np.empty(count), []
    origin, before = centre(), score()
    with Perturbed(space, Noise()) as perturbed:
        for i, step in enumerate(steps):
            perturbed.place(step)
            scores[i] = score()
            if best is None:
                shifts.append((centre() - origin).float())
            if progress is not None:
                progress((i + 1) / count)
        measured = np.arange(count) if best is None else _best(scores, best)
        for i in [] if best is None else measured.tolist():
            perturbed.place(steps[i])
            shifts.append((centre() - origin).float())
    found = torch.stack(shifts)
    if not (np.isfinite(scores).all() and bool(found.isfinite().all())):
        raise LoclinError(
            f"expected finite scores and activations of every step, found others at size {size:g}: "
            "lower it"
        )
    return SearchedShifts(
        scores=scores, before=before, shifts=found, measured=measured, sigma=sigma
    )


def _sigma(space: ParameterSpace, count: int, size: float, best: int | None) -> float:
    if not (math.isfinite(size) and size > 0):
        raise LoclinError(f"expected a positive, finite size of the steps, found {size}: change it")
    if best is not None and not 1 <= best <= count:
        raise LoclinError(
            f"expected 1 to {count} winners, found {best}: take fewer winners or more candidates"
        )
    kind = space.parameters[0].dtype
    if kind not in (torch.float32, torch.float64):
        raise LoclinError(
            f"expected float32 weights for small steps, found {kind}: choose --dtype float32"
        )
    length = space.norm()
    if not 0 < length < math.inf:
        raise LoclinError(
            f"expected weights of a positive, finite norm, found {length}: load the model again"
        )
    return size * length / math.sqrt(space.dimension)


def _best(scores: Float[np.ndarray, " N"], k: int) -> Int[np.ndarray, " k"]:
    """The k candidates of the largest scores, the best first; of a tie the earlier."""
    return np.argsort(-scores, kind="stable")[:k]


def winners_vector(found: SearchedShifts, k: int) -> Float[Tensor, "L d"]:
    """Mean activation shift of the k candidates of the largest scores: the vector of the search
    route (measures §13).

    Raises:
        LoclinError: k is not from 1 to the number of candidates whose shifts were read.
    """
    _check_winners(found, k)
    return found.shifts[_best(found.scores[found.measured], k)].mean(0)


def chance_vectors(
    found: SearchedShifts, k: int, *, draws: int, seed: int
) -> Float[Tensor, "draws L d"]:
    """The same with the scores permuted: mean shifts of k candidates drawn at random, the null of
    the selection.

    Raises:
        LoclinError: k is not from 1 to N, no draws, or a search that read the shifts of its winners
            alone.
    """
    _check_winners(found, k)
    if len(found.measured) < len(found.scores) or draws < 1:
        raise LoclinError(
            f"expected the shifts of all {len(found.scores)} candidates and at least 1 draw, found "
            f"{len(found.measured)} and {draws}: measure all of them"
        )
    rng = np.random.default_rng(derived(seed, "chance"))
    return torch.stack(
        [found.shifts[_best(rng.permutation(found.scores), k)].mean(0) for _ in range(draws)]
    )


def _check_winners(found: SearchedShifts, k: int) -> None:
    if not 1 <= k <= len(found.measured):
        raise LoclinError(
            f"expected 1 to {len(found.measured)} winners, found {k}: take fewer, or more "
            "candidates"
        )
