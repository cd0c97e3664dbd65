"""A direction of a model's weights from files: a file of changes, the way between two checkpoints,
or an adapter's ΔW.

Checkpoints are loaded as models by transformers and adapters are merged by peft, so that whatever
the files call their tensors, the change is that of the weights in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from loclin.errors import LoclinError
from loclin.geometry.gramian import at_least_float32
from loclin.models.adapters import merged_change
from loclin.models.folder import (
    ADAPTER,
    held_in,
    matched_names,
    open_checkpoint,
    unwrapped,
    weights_in,
)
from loclin.models.network import loaded

SHOWN = 3  # mismatches that are listed


@dataclass(frozen=True, eq=False, kw_only=True)
class Direction:
    """A change of some of a model's tensors.

    Attributes:
        tensors: by the model's names; those that are left out do not move.
        notes: what was read, in sentences.
    """

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...]


def read_direction(text: str, model: PreTrainedModel) -> Direction:
    """The direction that a text names.

    Args:
        text: PATH.safetensors, whose tensors are the changes themselves; BASE..TUNED, two folders
            of full weights (the change is tuned − base) or of adapters of this model; or the folder
            of one adapter (the change is ΔW, the merged weights less the model's).
        model: whose weights are to move; it is not changed.

    Returns:
        Tensors in float32, or float64 where they or the model are stored so.

    Raises:
        LoclinError: nothing there, no safetensors, names or shapes that are not the model's (the
            first mismatches are listed), checkpoints that lack tensors, a direction that is zero or
            not finite, adapters that move no weights or that peft cannot merge.
    """
    path = Path(text)
    if path.is_file() or (not path.exists() and text.endswith(".safetensors") and ".." not in text):
        changes, notes = _file(path), [f"the tensors of {path.name} are taken as the change itself"]
    elif path.is_dir():
        changes, notes = _one_folder(path, model)
    else:
        changes, notes = _between(*_two_folders(text), model)
    tensors = _matched(changes, model, text)
    moved = {n: t for n, t in tensors.items() if t.any()}
    if not moved:
        raise LoclinError(
            f"expected a direction that moves something, found zeros in {text}: give two points "
            "that differ"
        )
    total = sum(1 for _ in model.parameters())
    notes.append(f"the direction moves {len(moved)} of the model's {total} tensors")
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
    named = {unwrapped(n): t for n, t in changes.items()}
    return {n: at_least_float32(t) for n, t in named.items() if t.is_floating_point()}


def _one_folder(path: Path, model: PreTrainedModel) -> tuple[dict[str, Tensor], list[str]]:
    if not _is_adapter(path):
        raise LoclinError(
            f"expected an adapter where one folder is given, found full weights in {path}: give "
            "two folders, BASE..TUNED"
        )
    changes = merged_change(held_in(path), model)
    return changes, [f"the direction is ΔW of the adapter {path.name}, at {len(changes)} tensors"]


def _between(
    base: Path, tuned: Path, model: PreTrainedModel
) -> tuple[dict[str, Tensor], list[str]]:
    """tuned − base, tensor by tensor."""
    note = f"the direction leads from {base.name} to {tuned.name}"
    kinds = [_is_adapter(folder) for folder in (base, tuned)]
    if all(kinds):
        first, second = (merged_change(held_in(folder), model) for folder in (base, tuned))
        zero = torch.zeros(())
        changes = {n: second.get(n, zero) - first.get(n, zero) for n in second | first}
        return changes, [note]
    if any(kinds):
        named = ["an adapter" if kind else "full weights" for kind in kinds]
        raise LoclinError(
            f"expected two folders of one kind, found {named[0]} in {base.name} and {named[1]} in "
            f"{tuned.name}: give two of one run, or the adapter's folder alone"
        )
    (first, notes), (second, more) = (_weights(folder, model) for folder in (base, tuned))
    sizes = [{n: tuple(t.shape) for n, t in side.items()} for side in (first, second)]
    for name in sorted(first | second):
        one, other = (size.get(name) for size in sizes)
        if one != other:
            raise LoclinError(
                f"expected one shape of {name}, found {one} in {base.name} and {other} in "
                f"{tuned.name}: give two checkpoints of one model"
            )
    changes = {n: second[n] - first[n] for n in second}
    return changes, [note, *dict.fromkeys((*notes, *more))]


def _weights(folder: Path, like: PreTrainedModel) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights in a folder by all their names, read as a model of another's class; its notes."""
    try:
        config = copy.deepcopy(like.config)
        if (folder / "config.json").is_file():
            config = type(config).from_pretrained(folder)
        precision = torch.promote_types(like.dtype, torch.float32)
        network, notes = loaded(type(like), str(folder), config=config, dtype=precision)
    except LoclinError:
        raise
    except Exception as error:  # damaged files lead transformers to any
        raise LoclinError(
            f"expected a checkpoint of {type(like).__name__} in {folder}, found "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}: give two of this model"
        ) from error
    named = network.named_parameters(remove_duplicate=False)
    return {n: p.detach() for n, p in named}, notes


def _is_adapter(folder: Path) -> bool:
    """Whether it holds an adapter; `LoclinError` where it holds no weights."""
    where = held_in(folder)
    if weights_in(where) is None:
        open_checkpoint(where, step=None)  # says what is there instead
    return weights_in(where) == ADAPTER


def _matched(changes: Mapping[str, Tensor], model: nn.Module, text: str) -> dict[str, Tensor]:
    """The tensors under the model's own names, tied ones under their first, checked."""
    every = dict(model.named_parameters(remove_duplicate=False))
    first = {id(p): n for n, p in model.named_parameters()}
    held = matched_names(every, changes)
    wrong = [
        f"{n} (no such tensor in the model)"
        for n in sorted(set(changes) - set(held.values()))
        if changes[n].any()
    ]
    tensors: dict[str, Tensor] = {}
    for name, stored in held.items():
        known, values, shape = first[id(every[name])], changes[stored], tuple(every[name].shape)
        if tuple(values.shape) != shape:
            wrong.append(f"{stored} of shape {tuple(values.shape)} (the model's is {shape})")
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
