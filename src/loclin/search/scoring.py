"""Candidates asked an exam, one at a time or several in one pass."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models.exam import Exam
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.stacked import Stacking, why_not

WHOLE_WEIGHTS = 1 << 28  # numbers, in a stack of whole weights: 1 GB of float32


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What one candidate scored on an exam.

    Attributes:
        candidate: which.
        loss: mean over all answer tokens, in nats; not finite where the candidate's weights give
            nothing finite.
        right: of every example, whether it is answered right; never where its loss is not a number.
    """

    candidate: Candidate
    loss: float
    right: Bool[np.ndarray, " n"]

    @property
    def score(self) -> float:
        """Share of the examples answered right."""
        return float(self.right.mean())


def score(
    perturbed: Perturbed, exam: Exam, group: Sequence[Candidate], *, batched: bool
) -> list[Outcome]:
    """The outcome of every candidate of a group. Afterwards the model stands at its base, whatever
    happens.

    Args:
        perturbed: the model's chosen tensors.
        exam: asked of every candidate.
        group: the candidates.
        batched: all of them in the same forward passes (`Stacking`), rather than one after the
            other.

    Low-rank noise of weights in float32 or float64 is never added to them, batched or not: its thin
    product runs beside theirs.

    Raises:
        LoclinError: batched candidates that cannot be stacked.
    """
    noise, model = perturbed.noise, exam.problem.model
    if batched and perturbed.basis is not None:
        raise LoclinError(
            "expected noise of the tensors for batched candidates, found a basis: score them one "
            "at a time"
        )
    thin = (
        noise.kind == "lowrank"
        and perturbed.basis is None
        and bool(group)
        and agrees(perturbed, exam, group[0])
    )
    if batched or thin:
        perturbed.restore()  # stacks are made around where the tensors stand
        stacking = Stacking(model, perturbed.space, noise)
        sets = [group] if batched else [[c] for c in group]
        return [outcome for some in sets for outcome in _together(stacking, exam, some)]
    outcomes, tokens = [], float(exam.tokens.sum())
    try:
        for candidate in group:
            perturbed.place(candidate)
            outcomes.append(_outcome(candidate, tokens, *exam.answers()))
    finally:
        perturbed.restore()
    return outcomes


def _together(stacking: Stacking, exam: Exam, group: Sequence[Candidate]) -> list[Outcome]:
    """All candidates of a group in the same passes."""
    tokens = float(exam.tokens.sum())
    with stacking.of(group):
        losses, right = (values.view(len(group), -1) for values in exam.answers(copies=len(group)))
    return [_outcome(c, tokens, *found) for c, *found in zip(group, losses, right, strict=True)]


def agrees(perturbed: Perturbed, exam: Exam, candidate: Candidate) -> bool:
    """Whether stacked passes see a candidate as the placed weights do: tried on one, then
    remembered with the weights.

    They do wherever modules read their tensors by their own forward alone, and are given rows as
    the model was. Where they do not, or cannot be stacked at all, stacking is not for this model.
    """
    if perturbed.stacks is None:
        perturbed.stacks = _agrees(perturbed, exam, candidate)
    return perturbed.stacks


def _agrees(perturbed: Perturbed, exam: Exam, candidate: Candidate) -> bool:
    model, space, tokens = exam.problem.model, perturbed.space, float(exam.tokens.sum())
    if perturbed.basis is not None or why_not(model, space, perturbed.noise) is not None:
        return False
    try:
        perturbed.place(candidate)
        placed = _outcome(candidate, tokens, *exam.answers())
    finally:
        perturbed.restore()
    pair = [
        candidate,
        replace(candidate, sign=-candidate.sign),
    ]  # two, so that rows have to be told apart
    try:
        stacked = _together(Stacking(model, space, perturbed.noise), exam, pair)[0]
    except (LoclinError, torch.OutOfMemoryError):  # rows that a module regroups; no room
        return False
    close = 0.05 if space.parameters[0].dtype.itemsize < 4 else 1e-3
    return bool(np.isclose(stacked.loss, placed.loss, rtol=close, atol=close, equal_nan=True))


def faster(
    perturbed: Perturbed, exam: Exam, group: Sequence[Candidate], *, rounds: int = 3
) -> bool:
    """Whether to score groups like this one in stacked passes: where these agree, and take less
    time, measured here.

    The least of `rounds` times each, taken in turn after one pass that is not counted. So that a
    score near a tie does not change, a search makes this choice once and keeps it.
    """
    whole = 0 if perturbed.noise.kind == "lowrank" else len(group) * perturbed.space.dimension
    if whole > WHOLE_WEIGHTS or not agrees(perturbed, exam, group[0]):
        return False
    least = {True: math.inf, False: math.inf}
    for counted in range(rounds + 1):
        for batched in least:
            start = time.perf_counter()
            try:
                score(
                    perturbed, exam, group, batched=batched
                )  # it ends with numbers on the CPU: the device has finished
            except torch.OutOfMemoryError:
                if batched:
                    return False
                raise
            if counted:
                least[batched] = min(least[batched], time.perf_counter() - start)
    return least[True] < least[False]


def _outcome(candidate: Candidate, tokens: float, losses: Tensor, right: Tensor) -> Outcome:
    return Outcome(
        candidate=candidate,
        loss=float(losses.sum()) / tokens,
        right=(right & ~losses.isnan()).cpu().numpy(),
    )
