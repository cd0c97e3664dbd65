"""One checkpoint folder, as Hugging Face and peft write it: its tensors, and an adapter's scale."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models.points import Adapted, pairs

FULL, SHARDED = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
STATE = "trainer_state.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # integer and boolean buffers are no coordinates
#: Names that torch.compile, FSDP, activation checkpointing and DDP put before those of tensors.
WRAPPER = (
    r"(?:^module\.|(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)"
)
#: Tensors of integers that are weights, by the ways of quantising in use.
QUANTISED = re.compile(r"weight|packed|blocks$")
#: Names under which a model's body may stand, or be left out, in a file of its weights.
BODIES = ("", "transformer.", "model.", "gpt_neox.")
#: What decides what an adapter does.
CONFIGURATION = (
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora",
)  # fmt: skip
#: Settings of a LoRA adapter that make its effect on the weights another than sBA.
NO_PRODUCT = {
    "use_dora": "DoRA", "alora_invocation_tokens": "aLoRA", "lora_bias": "LoRA with biases",
}  # fmt: skip


class Incomplete(LoclinError):
    """A folder whose weights are not there, or not whole, as a killed run leaves its last one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """The weights in one folder.

    Attributes:
        label, step: the folder's name; optimiser steps taken there, where known.
        adapter: adapter_config.json; None for full weights.
        files, shapes: of every floating-point tensor: file and name there, and its shape.
        notes: what else is in the folder, in sentences.
    """

    label: str
    step: int | None
    adapter: Mapping[str, Any] | None
    files: Mapping[str, tuple[Path, str]]
    shapes: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    def under(self, names: Iterable[str]) -> Checkpoint:
        """The same under these names, as far as it has them (`matched_names`)."""
        stored = matched_names(names, self.files)
        return replace(
            self,
            files={n: self.files[s] for n, s in stored.items()},
            shapes={n: self.shapes[s] for n, s in stored.items()},
        )

    def read(self, name: str, rows: slice) -> Tensor:
        """Rows of a tensor, in float32 (float64 where it is stored so).

        The file is opened for each read: pages of a mapped file that stays open count as memory.

        Raises:
            LoclinError: the file cannot be read.
        """
        path, stored_name = self.files[name]
        with _opened(path) as file:
            stored: Tensor = (
                file.get_slice(stored_name)[rows]
                if self.shapes[name]
                else file.get_tensor(stored_name).reshape(1)
            )
            return stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)


def weights_in(folder: Path) -> str | None:
    """The file that says a folder holds weights, None where there is none."""
    return next((n for n in (ADAPTER, FULL, SHARDED) if (folder / n).is_file()), None)


def held_in(folder: Path) -> Path:
    """The folder that holds the weights: this one, or where it has none the one below it into which
    peft puts an adapter that has a name.

    Raises:
        LoclinError: several adapters below it.
    """
    if weights_in(folder) or not folder.is_dir():
        return folder
    below = sorted(p.parent for p in folder.glob(f"*/{ADAPTER}"))
    if len(below) > 1:
        raise LoclinError(
            f"expected one adapter in {folder}, found {', '.join(p.name for p in below)}: give one "
            "of these folders"
        )
    return below[0] if below else folder


def stale(folder: Path) -> tuple[str, ...]:
    """A sentence where a folder holds weights twice: which of them are read."""
    if not ((folder / FULL).is_file() and (folder / SHARDED).is_file()):
        return ()
    return (
        f"{folder.name} holds {FULL} beside shards of another save: the single file is read, as "
        "transformers does",
    )


def unwrapped(name: str) -> str:
    """A tensor's name, or a pattern of names, without those of wrappers.

    >>> unwrapped("_orig_mod.module.layers.0._fsdp_wrapped_module.weight")
    'layers.0.weight'
    """
    while (shorter := re.sub(WRAPPER, "", name)) != name:
        name = shorter
    return name


def open_checkpoint(folder: Path, *, step: int | None) -> Checkpoint:
    """Read the headers of a folder's weights (full, sharded, or an adapter's).

    Raises:
        Incomplete: no weights, or a damaged file.
        LoclinError: unsafe files only, quantised weights, or a trainer_state.json of another step
            than the folder's name tells.
    """
    where = held_in(folder)
    kind = weights_in(where)
    if kind is None:
        raise _without_weights(folder)
    recorded = _json(folder / STATE).get("global_step") if (folder / STATE).is_file() else None
    if step is not None and recorded not in (None, step):
        raise LoclinError(
            f"expected {folder.name} to be of step {step}, found step {recorded} in its {STATE}: "
            "give the folder its own name"
        )
    if kind == SHARDED:
        paths = sorted({where / n for n in _json(where / SHARDED).get("weight_map", {}).values()})
    else:
        paths = [where / kind]
    files: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                part = file.get_slice(name)
                if part.get_dtype() in FLOATS:
                    own = unwrapped(name)
                    files[own], shapes[own] = (path, name), tuple(part.get_shape())
                elif QUANTISED.search(name) or part.get_dtype().startswith("F"):
                    raise LoclinError(
                        f"expected weights that are not quantised in {folder}, found {name} of "
                        f"{part.get_dtype()}: dequantise them and save them again"
                    )
    if not files:
        raise LoclinError(
            f"expected floating-point tensors in {folder}, found none: give unquantised weights"
        )
    return Checkpoint(
        label=folder.name,
        step=step if recorded is None else recorded,
        adapter=adapter_settings(where) if kind == ADAPTER else None,
        files=files,
        shapes=shapes,
        notes=stale(where),
    )


def adapter_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json, its names and patterns of names without those of wrappers."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {bare(k): bare(v) for k, v in value.items()}
        if isinstance(value, list):
            return [bare(v) for v in value]
        return unwrapped(value) if isinstance(value, str) else value

    return {k: bare(v) for k, v in _json(folder / ADAPTER_CONFIG).items()}


def matched_names(wanted: Iterable[str], held: Iterable[str]) -> dict[str, str]:
    """For every wanted name the one that a file has for it, with or without the name of the model's
    body.

    The way of naming that finds most is taken for all; names that it does not find are left out.

    >>> matched_names(["transformer.wte.weight", "lm_head.weight"], ["wte.weight"])
    {'transformer.wte.weight': 'wte.weight'}
    """
    names, there = list(wanted), set(held)
    ways = [{n: n.removeprefix(body) for n in names} for body in BODIES] + [
        {n: body + n for n in names} for body in BODIES
    ]
    best = max(ways, key=lambda way: sum(stored in there for stored in way.values()))
    return {n: stored for n, stored in best.items() if stored in there}


def check_alike(one: Checkpoint, other: Checkpoint, remedy: str) -> None:
    """`LoclinError` where two checkpoints differ in kind, configuration, names or shapes."""
    wrong = next(_differences(one, other), None)
    if wrong is not None:
        raise LoclinError(f"expected {wrong}: {remedy}")


def _differences(one: Checkpoint, other: Checkpoint) -> Iterator[str]:
    """What two checkpoints do not share: expected what, found what."""
    a, b = one.label, other.label
    if (other.adapter is None) != (one.adapter is None):
        kinds = ["full weights" if c.adapter is None else "an adapter" for c in (one, other)]
        yield f"two folders of one kind, found {kinds[0]} in {a} and {kinds[1]} in {b}"
    for key in CONFIGURATION if one.adapter and other.adapter else ():
        x, y = ((c.adapter or {}).get(key) for c in (one, other))
        if x != y:
            yield f"adapters of one configuration, found {key} {x} in {a} and {y} in {b}"
    for name in sorted(one.shapes.keys() ^ other.shapes.keys()):
        holder, lacks = (a, b) if name in one.shapes else (b, a)
        yield f"the same tensors in every checkpoint, found {name} in {holder} but not in {lacks}"
    for name, shape in one.shapes.items():
        if other.shapes[name] != shape:
            yield f"one shape of {name}, found {shape} in {a} and {other.shapes[name]} in {b}"


def scaling(adapter: Mapping[str, Any], weight: str) -> tuple[int, float]:
    """Rank and scale of an adapted weight: alpha/r, or alpha/√r with rank-stabilised LoRA.

    A weight's own rank and alpha are those whose key in `rank_pattern` and `alpha_pattern` ends its
    name.

    >>> adapter = {"r": 8, "lora_alpha": 16, "alpha_pattern": {"c_fc": 4}}
    >>> scaling(adapter, "base_model.model.h.0.mlp.c_fc")
    (8, 0.5)
    """
    missing = next((key for key in ("r", "lora_alpha") if key not in adapter), None)
    if missing:
        raise LoclinError(
            f"expected {missing!r} in adapter_config.json, found "
            f"{', '.join(adapter) or 'nothing'}: give a LoRA adapter of peft"
        )
    own, name = [adapter["r"], adapter["lora_alpha"]], weight.removeprefix("base_model.model.")
    for i, patterns in enumerate((adapter.get("rank_pattern"), adapter.get("alpha_pattern"))):
        if patterns:
            own[i] = patterns.get(get_pattern_key(patterns, name), own[i])
    rank, alpha = own
    return rank, alpha / (math.sqrt(rank) if adapter.get("use_rslora") else rank)


def lora_pairs(
    adapter: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Adapted], tuple[str, ...]]:
    """The LoRA pairs among some tensors of an adapter whose effect on the weights is s·BA; or why
    there are none, in a sentence.
    """
    kind = next((n for key, n in NO_PRODUCT.items() if adapter.get(key)), adapter.get("peft_type"))
    if kind != "LORA":
        return {}, (
            f"adapters of kind {kind} are measured in their own parameters alone: their effect on "
            "the weights is no sBA",
        )
    adapted = pairs(shapes, lambda weight: scaling(adapter, weight)[1])
    for weight, pair in adapted.items():
        rank = scaling(adapter, weight)[0]
        if shapes[pair.a][0] != rank:
            return {}, (
                f"{weight} is not adapted by one pair of rank {rank}: measured in the adapter's "
                "own parameters alone",
            )
    return adapted, ()


def _without_weights(folder: Path) -> LoclinError:
    unsafe = sorted(p.name for p in folder.glob("*.bin") if p.name != "training_args.bin")
    if unsafe:
        return LoclinError(
            f"expected weights as safetensors in {folder}, found {unsafe[0]} alone, a kind of file "
            "that runs code when it is loaded: convert to safetensors, for example by "
            "from_pretrained and save_pretrained"
        )
    return Incomplete(
        f"expected {FULL}, {SHARDED} or {ADAPTER} in {folder}, found none of them: give a folder "
        "saved by Trainer or peft"
    )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise Incomplete(
            f"expected whole weights in {path}, found {error}: copy the file again or remove its "
            "folder"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Incomplete(f"expected JSON in {path}, found {error}: copy the file again") from error
    if not isinstance(content, dict):
        raise LoclinError(
            f"expected a JSON object in {path}, found {type(content).__name__}: copy the file again"
        )
    return content
