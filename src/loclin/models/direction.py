"""A direction of a model's weights from files: a file of changes, the way between two checkpoints,
or an adapter's ΔW.

Nothing is loaded as a model: tensors are read by name, as in `checkpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loclin.errors import LoclinError
from loclin.geometry.gramian import at_least_float32
from loclin.models.folder import Checkpoint, check_alike, matched_names, open_checkpoint, scaling
from loclin.models.points import Adapted, pairs

SHOWN = 3  # mismatches that are listed


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """The tensors of a model that a direction may move.

    Attributes:
        shapes: by name; tied tensors once.
        tied: other names of tied tensors, with the one in `shapes`.
        transposed: weights that are kept as in × out (transformers' Conv1D), where LoRA's BA is out
            × in.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    transposed: frozenset[str]

    @staticmethod
    def of(model: nn.Module) -> Tensors:
        """Those of a model, frozen ones too."""
        first = {id(p): n for n, p in model.named_parameters()}
        every = {n: first[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
        kept = (f"{n}.weight" for n, m in model.named_modules() if isinstance(m, Conv1D))
        return Tensors(
            shapes={n: tuple(p.shape) for n, p in model.named_parameters()},
            tied={n: known for n, known in every.items() if n != known},
            transposed=frozenset(kept),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Direction:
    """A change of some of a model's tensors.

    Attributes:
        tensors: by the model's names; those that are left out do not move.
        notes: what was read, in sentences.
    """

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...]


def read_direction(text: str, model: Tensors) -> Direction:
    """The direction that a text names.

    Args:
        text: PATH.safetensors, whose tensors are the changes themselves; BASE..TUNED, two folders
            of full weights (the change is tuned − base) or of adapters of one configuration; or the
            folder of one LoRA adapter (the change is its ΔW = sBA of every adapted weight).
        model: whose weights are to move.

    Returns:
        Tensors in float32, or float64 where they are stored so.

    Raises:
        LoclinError: nothing there, no safetensors, names or shapes that are not the model's (the
            first mismatches are listed), a direction that is zero or not finite, adapters that are
            no plain LoRA or of two configurations.
    """
    path = Path(text)
    if path.is_file() or (not path.exists() and text.endswith(".safetensors") and ".." not in text):
        changes, notes = _file(path), [f"the tensors of {path.name} are taken as the change itself"]
    elif path.is_dir():
        changes, notes = _one_folder(path, model)
    else:
        base, tuned = (open_checkpoint(folder, step=None) for folder in _two_folders(text))
        changes, notes = _between(base, tuned, model)
    tensors = _matched(changes, model, text)
    moved = {n: t for n, t in tensors.items() if t.any()}
    if not moved:
        raise LoclinError(
            f"expected a direction that moves something, found zeros in {text}: give two points "
            "that differ"
        )
    notes.append(f"the direction moves {len(moved)} of the model's {len(model.shapes)} tensors")
    return Direction(tensors=moved, notes=tuple(notes))


def _two_folders(text: str) -> tuple[Path, Path]:
    """BASE and TUNED; either may itself hold ".." as a step up."""
    cuts = [(text[:i], text[i + 2 :]) for i in range(len(text)) if text[i : i + 2] == ".."]
    both = [
        (Path(a), Path(b)) for a, b in cuts if a and b and Path(a).is_dir() and Path(b).is_dir()
    ]
    if both:
        return both[0]
    missing = next((p for a, b in cuts if a and b for p in (a, b) if not Path(p).is_dir()), text)
    raise LoclinError(
        "expected PATH.safetensors, BASE..TUNED or the folder of an adapter, found nothing at "
        f"{missing}: check the path"
    )


def _file(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise LoclinError(f"expected a file of changes, found nothing at {path}: check the path")
    try:
        changes = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LoclinError(
            f"expected a whole safetensors file, found {path} ({error}): save the changes with "
            "safetensors; pickles are never loaded"
        ) from error
    if any(".lora_" in n for n in changes):
        raise LoclinError(
            f"expected changes of weights, found the factors of an adapter in {path}: give the "
            "adapter's folder, which says how they are scaled"
        )
    return {n: at_least_float32(t) for n, t in changes.items() if t.is_floating_point()}


def _one_folder(path: Path, model: Tensors) -> tuple[dict[str, Tensor], list[str]]:
    adapter = open_checkpoint(path, step=None)
    if adapter.adapter is None:
        raise LoclinError(
            f"expected an adapter where one folder is given, found full weights in {path}: give "
            "two folders, BASE..TUNED"
        )
    changes = _changes(adapter, model)
    note = f"the direction is ΔW of the adapter {adapter.label}, at {len(changes)} weights"
    return changes, [note]


def _between(
    base: Checkpoint, tuned: Checkpoint, model: Tensors
) -> tuple[dict[str, Tensor], list[str]]:
    """tuned − base, tensor by tensor."""
    note = f"the direction leads from {base.label} to {tuned.label}"
    if base.adapter is None and tuned.adapter is None:
        changes, more = _full_difference(base, tuned, model)
        return changes, [note, *more]
    check_alike(base, tuned, "give two of one run, or the adapter's folder alone")
    first, second = _changes(base, model), _changes(tuned, model)
    return {n: second[n] - first[n] for n in second}, [note]


def _full_difference(
    base: Checkpoint, tuned: Checkpoint, model: Tensors
) -> tuple[dict[str, Tensor], list[str]]:
    """Under the model's names; what neither folder has stays out, what the model does not have
    keeps its own name.
    """
    sides = [(c, c.under([*model.shapes, *model.tied])) for c in (base, tuned)]
    first, second = (renamed.files.keys() for _, renamed in sides)
    once = (first ^ second) & model.tied.keys()  # a file may hold a tied tensor once or twice
    changes = _differences(*(c.under([n for n in c.files if n not in once]) for _, c in sides))
    left = [c.files.keys() - {n for _, n in renamed.files.values()} for c, renamed in sides]
    # old checkpoints keep masks beside the weights: no change, no matter
    beside = _differences(*(c.under(sorted(left[0] & left[1])) for c in (base, tuned)))
    changes |= {n: change for n, change in beside.items() if change.any()}
    alone = len(left[0] ^ left[1])
    note = f"{alone} tensors that the model does not have stand in one of the two folders alone"
    return changes, [note] if alone else []


def _differences(base: Checkpoint, tuned: Checkpoint) -> dict[str, Tensor]:
    check_alike(base, tuned, "give two checkpoints of one model")
    every = slice(None)
    return {
        n: (tuned.read(n, every) - base.read(n, every)).reshape(shape)
        for n, shape in tuned.shapes.items()
    }


def _changes(adapter: Checkpoint, model: Tensors) -> dict[str, Tensor]:
    """ΔW = sBA of every adapted weight, under the weight's own name."""
    if adapter.kind != "LORA":
        raise LoclinError(
            f"expected a LoRA adapter, whose ΔW is sBA, found one of kind {adapter.kind} in "
            f"{adapter.label}: merge it into the weights and give BASE..TUNED"
        )
    adapted = pairs(adapter.files, lambda weight: scaling(adapter.adapter or {}, weight)[1])
    factors = {n for pair in adapted.values() for n in (pair.a, pair.b)}
    beside = sorted(set(adapter.files) - factors)
    if beside:
        raise LoclinError(
            f"expected LoRA factors alone in {adapter.label}, found {beside[0]} beside them: merge "
            "the adapter into the weights and give BASE..TUNED"
        )
    named = {w.removeprefix("base_model.model.") + ".weight": pair for w, pair in adapted.items()}
    own = {stored: n for n, stored in matched_names([*model.shapes, *model.tied], named).items()}
    shared = {*model.tied, *model.tied.values()}
    for stored, n in own.items():
        if n in shared:
            raise LoclinError(
                f"expected adapted weights that move alone, found {stored} in {adapter.label}, "
                "which the model ties to another one: untie and merge it, and give BASE..TUNED"
            )
    return {
        own.get(w, w): _product(adapter, pair, own.get(w, w) in model.transposed)
        for w, pair in named.items()
    }


def _product(adapter: Checkpoint, pair: Adapted, transposed: bool) -> Tensor:
    """sBA in the shape of the weight that it changes: out × in, or turned (Conv1D, embeddings)."""
    a, b = (adapter.read(n, slice(None)).reshape(adapter.shapes[n]) for n in (pair.a, pair.b))
    made = pair.scale * (b.flatten(1).double() @ a.flatten(1).double()).to(
        torch.promote_types(a.dtype, b.dtype)
    )
    if transposed or "lora_embedding_" in pair.a:
        return made.T.contiguous()
    return made.reshape(len(b), *a.shape[1:])


def _matched(changes: Mapping[str, Tensor], model: Tensors, text: str) -> dict[str, Tensor]:
    """The tensors under the model's own names, checked."""
    held = matched_names([*model.shapes, *model.tied], changes)
    wrong = [
        f"{n} (no such tensor in the model)"
        for n in sorted(set(changes) - set(held.values()))
        if changes[n].any()
    ]
    tensors: dict[str, Tensor] = {}
    for name, stored in held.items():
        known, values = model.tied.get(name, name), changes[stored]
        if tuple(values.shape) != model.shapes[known]:
            wrong.append(
                f"{stored} of shape {tuple(values.shape)} (the model's is {model.shapes[known]})"
            )
        elif known in tensors and not torch.equal(tensors[known], values):
            wrong.append(
                f"{stored} that changes otherwise than {known}, which the model ties to it"
            )
        tensors[known] = values
    if wrong or not tensors:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        listed = ", ".join(wrong[:SHOWN]) + more
        raise LoclinError(
            f"expected tensors named and shaped as the model's, found {listed or 'none'} in "
            f"{text}: give a direction of this model"
        )
    for name, values in tensors.items():
        if not torch.isfinite(values).all():
            raise LoclinError(
                f"expected a finite direction, found NaN or infinity in {name} of {text}: leave "
                "that out"
            )
    return tensors
