"""Several candidates of LoRA factors in one forward pass: each block of rows reads its own factors.

Whether a search stacks its candidates is decided by its space and sizes, never by a clock: the same
search then takes the same passes wherever it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.models.evaluation import EvalSet
from loclin.models.lora import Factors
from loclin.search.candidate import Candidate, Perturbed
from loclin.search.scoring import Outcome, outcome
from loclin.seeds import derived

#: Tokens of the examples, padding included, up to which candidates are stacked. On one thread,
#: what a worker has, a candidate of the statement model took 0.73 forward passes stacked against
#: 1.54 one at a time at 60 tokens, 1.00 against 1.32 at 252, 1.16 against 1.22 at 504, and 1.25
#: against 1.13 at 1,020 (docs/log.md). Noise of other spaces gained nothing.
TOKENS = 512
#: Stacked passes are tried on this candidate and its mirror image, whatever the search: every
#: process then decides alike.
PROBE = Candidate(index=0, seed=derived(0, "stacked probe"), sigma=0.1)


def stacks(perturbed: Perturbed, eval_set: EvalSet) -> bool:
    """Whether candidates are stacked: gaussian noise on LoRA factors alone, at most `TOKENS`
    tokens, and stacked passes that see the probe's factors as placed ones are seen.
    """
    model = eval_set.problem.model
    if perturbed.basis is not None or perturbed.noise.kind != "gaussian":
        return False
    if eval_set.size > TOKENS or Factors.of(model, perturbed.space) is None:
        return False
    return all(_plain(m) for m in _modules(perturbed, model).values()) and _agrees(
        perturbed, eval_set
    )


def score_stacked(
    perturbed: Perturbed, eval_set: EvalSet, group: Sequence[Candidate]
) -> list[Outcome]:
    """The outcomes of a group from shared passes, as `score` gives them up to round-off."""
    tokens = float(eval_set.tokens.sum())
    with stacked(perturbed, eval_set.problem.model, group):
        losses, right = (v.view(len(group), -1) for v in eval_set.answers(copies=len(group)))
    return [outcome(c, tokens, *each) for c, *each in zip(group, losses, right, strict=True)]


@contextmanager
def stacked(perturbed: Perturbed, model: nn.Module, group: Sequence[Candidate]) -> Iterator[None]:
    """Inside, a pass takes C·n rows, and rows c·n to (c + 1)·n − 1 read the factors of candidate c.

    The model itself stands at the base; no gradients are taken.

    Raises:
        LoclinError: inside, rows that are no multiple of C, or that a module regroups.
    """
    factors, shape = _factors(perturbed, group), [0, 0]

    def keep_shape(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape[:] = kwargs["input_ids"].shape

    with ExitStack() as undo:
        undo.callback(model.register_forward_pre_hook(keep_shape, with_kwargs=True).remove)
        for name, module in _modules(perturbed, model).items():
            undo.callback(vars(module).pop, "forward")
            vars(module)["forward"] = _forward(factors[name], shape)
        yield


def _factors(perturbed: Perturbed, group: Sequence[Candidate]) -> dict[str, Float[Tensor, "C ..."]]:
    """The factors of every candidate, by name: the very values that are placed."""
    factors = {n: t.new_empty(len(group), *t.shape) for n, t in perturbed.base.items()}
    try:
        for c, candidate in enumerate(group):
            perturbed.place(candidate)
            for name, tensor in perturbed.tensors.items():
                factors[name][c] = tensor.detach()
    finally:
        perturbed.restore()
    return factors


def _modules(perturbed: Perturbed, model: nn.Module) -> dict[str, nn.Module]:
    """The linear map that holds each factor."""
    return {n: model.get_submodule(n.removesuffix(".weight")) for n in perturbed.tensors}


def _plain(module: nn.Module) -> bool:
    """Whether a factor is read by the forward of a linear map alone, which nothing has replaced."""
    own = "forward" not in vars(module) and type(module).forward is nn.Linear.forward
    return own and getattr(module, "bias", None) is None


def _forward(
    factors: Float[Tensor, "C out in"], shape: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """x times the factor of each row's candidate, in a pass of rows and tokens of this shape."""

    def forward(x: Tensor) -> Tensor:
        rows, length = shape
        if rows % len(factors) or (len(x) != rows and x.shape[:-1].numel() != rows * length):
            raise LoclinError(
                f"expected {rows} rows in every module, in {len(factors)} equal blocks, found "
                f"{len(x)}: score one candidate at a time"
            )
        blocks = x.reshape(len(factors), -1, x.shape[-1])
        return torch.bmm(blocks, factors.mT).view(*x.shape[:-1], -1)

    return forward


def _agrees(perturbed: Perturbed, eval_set: EvalSet) -> bool:
    """Whether losses of the probe and its mirror image are the same stacked as placed: off by far
    less than the two differ. They are not where a module reads its factors in another way.
    """
    pair, model = [PROBE, replace(PROBE, sign=-PROBE.sign)], eval_set.problem.model
    placed = []
    try:
        for candidate in pair:
            with perturbed.at(candidate):
                placed.append(eval_set.answers()[0])
        with stacked(perturbed, model, pair):
            together = eval_set.answers(copies=2)[0]
    except (LoclinError, torch.OutOfMemoryError):  # rows that a module regroups; no room
        return False
    close = 0.1 if any(p.dtype.itemsize < 4 for p in model.parameters()) else 1e-3
    error = (together - torch.cat(placed)).norm()
    return bool(error <= close * (placed[0] - placed[1]).norm())  # False where one is NaN
