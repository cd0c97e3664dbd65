"""Candidates that a pass reads as it goes: a module's weights are made just before it runs, in
memory that is used again for the next one. They never leave the cache, and no second model is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from loclin.models.evaluation import EvalSet
from loclin.search.candidate import Candidate, Perturbed
from loclin.seeds import derived

#: Coordinates from which a model's weights stay in no cache between writing and reading.
LEAST = 1 << 23
#: Passing is tried on this candidate, whatever the search: every process then decides alike.
PROBE = Candidate(index=0, seed=derived(0, "passing probe"), sigma=0.01)


def passes(perturbed: Perturbed, eval_set: EvalSet) -> bool:
    """Whether candidates are made as a pass goes: many coordinates, one pass over the examples (for
    further ones the noise would be drawn again), and losses that are bit for bit those of the
    placed probe. They are not where a module's weights are read from outside it.
    """
    alone = perturbed.basis is None and eval_set.passes == 1
    if not alone or perturbed.space.dimension < LEAST:
        return False
    try:
        with perturbed.at(PROBE):
            placed, _ = eval_set.answers()
        perturbed.free()
        with passing(perturbed, eval_set.problem.model, PROBE):
            read, _ = eval_set.answers()
    except torch.OutOfMemoryError:
        return False
    return bool(torch.equal(placed, read))


@contextmanager
def passing(perturbed: Perturbed, model: nn.Module, candidate: Candidate) -> Iterator[None]:
    """Inside, a pass sees the candidate, though the model stands at its base between modules.

    Tensors that several modules hold are placed, and so are those of a module with others inside,
    which run while it needs its own.
    """
    holders = _holders(perturbed, model)
    alone = {n: m for n, (m, *more) in holders.items() if not more and not [*m.children()]}
    owned: dict[nn.Module, list[str]] = {}
    for name, module in alone.items():
        owned.setdefault(module, []).append(name)
    rooms = _rooms(perturbed, list(owned.values()))
    with ExitStack() as undo:
        undo.callback(perturbed.restore)
        perturbed.place(candidate, [n for n in holders if n not in alone])
        for module, names in owned.items():
            before, after = _hooks(perturbed, candidate, names, rooms)
            undo.callback(module.register_forward_pre_hook(before).remove)
            undo.callback(module.register_forward_hook(after, always_call=True).remove)
        yield


def _holders(perturbed: Perturbed, model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules that hold each searched tensor themselves."""
    names = {id(t): n for n, t in perturbed.tensors.items()}
    holders: dict[str, list[nn.Module]] = {n: [] for n in perturbed.tensors}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in names:
                holders[names[id(parameter)]].append(module)
    return holders


def _rooms(perturbed: Perturbed, owned: Sequence[Sequence[str]]) -> list[Tensor]:
    """Memory for the first tensor of any module, the second, and so on."""
    base, most = perturbed.base, max(map(len, owned), default=0)
    of = [[base[names[i]] for names in owned if i < len(names)] for i in range(most)]
    return [
        max(tensors, key=torch.numel).new_empty(max(map(torch.numel, tensors))) for tensors in of
    ]


def _hooks(
    perturbed: Perturbed, candidate: Candidate, names: Sequence[str], rooms: Sequence[Tensor]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """What is done before a module runs, and after it."""

    def before(*_: object) -> None:
        for name, room in zip(names, rooms, strict=False):
            base = perturbed.base[name]
            perturbed.write(candidate, name, room[: base.numel()].view(base.shape))

    def after(*_: object) -> None:
        for name in names:
            perturbed.tensors[name].data = perturbed.base[name]

    return before, after
