"""Steering vectors as GGUF control vectors: written for llama.cpp, read from other programs
(`pip install 'loclin[gguf]'`).

A control vector is a GGUF file of architecture "controlvector" with tensors `direction.{i}`,
one-dimensional, F32, of the model's width. What i means:

- llama.cpp adds direction.{i} to the output of its block i, from 0 (`--control-vector`). It refuses
  direction.0.
- This file writes so: direction.{i} is v_i. A vector at block 0 cannot be written.
- repeng reads block i's output, writes direction.{i} and adds it there: read it with `shift=0`.
- llama.cpp's cvector-generator writes what it read at block 0 as direction.1, and so on: it is
  added one block later than it was read. `shift=0` gives what llama.cpp then does; `shift=1` puts
  it back where it was read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models.gguf import gguf_package
from loclin.steering.file import VERSION, unreadable, written
from loclin.steering.vector import SITE, SteeringVector, rebuilt, strings

ARCHITECTURE = "controlvector"
_OWN = "loclin."  # before the keys that llama.cpp knows nothing of
_NAME = "direction."


def write_gguf(vector: SteeringVector, path: str | os.PathLike[str]) -> None:
    """Write a control vector for llama.cpp: direction.{L} is added to the output of block L.

    All that the vector knows of itself goes along in keys `loclin.*`, which others ignore.

    Raises:
        LoclinError: a direction at block 0, one that is zero or not finite, no `gguf` package, a
            place that cannot be written.
    """
    package = gguf_package()
    vector.check()
    if 0 in vector.directions:
        raise LoclinError(
            "expected directions at blocks from 1, found one at block 0, which llama.cpp refuses: "
            "leave it out with --layer"
        )
    with written(Path(path)) as scratch:
        writer = package.GGUFWriter(scratch, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", vector.model_type)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vector.directions))
        for name, text in {"version": str(VERSION), **strings(vector)}.items():
            writer.add_string(_OWN + name, text)
        for layer, direction in vector.directions.items():
            writer.add_tensor(f"{_NAME}{layer}", direction.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_gguf(path: str | os.PathLike[str], *, shift: int = 0) -> SteeringVector:
    """Read a control vector: direction.{i} is taken for the output of block i − shift.

    Args:
        path: a file of loclin, repeng or llama.cpp's cvector-generator.
        shift: 0: where llama.cpp would add it; 1: one block earlier, where cvector-generator read
            it.

    Returns:
        The vector; of another program's file only the kind of model is known, so its number of
        blocks is None.

    Raises:
        LoclinError: no such file, none of a control vector, damaged, directions that are zero, not
            finite or not F32, a shift other than 0 of a file that loclin wrote, no `gguf` package.
    """
    package, path = gguf_package(), Path(path)
    if not path.is_file():
        raise LoclinError(unreadable(path, FileNotFoundError()))
    try:
        tensors, texts = _content(package.GGUFReader(path))
    except LoclinError as error:
        raise LoclinError(unreadable(path, error)) from error
    except Exception as error:  # the package raises whatever a damaged file leads it to
        damaged = ValueError(f"no GGUF, or a damaged one ({error})")
        raise LoclinError(unreadable(path, damaged)) from error
    own = {name.removeprefix(_OWN): text for name, text in texts.items() if name.startswith(_OWN)}
    if own and shift:
        raise LoclinError(
            f"expected a shift of 0 for a file that loclin wrote, found {shift}: leave it out"
        )
    if (version := own.get("version", str(VERSION))) != str(VERSION):
        newer = ValueError(f"format {version} where this loclin reads {VERSION}")
        raise LoclinError(unreadable(path, newer))
    if min(tensors, default=0) < shift:
        raise LoclinError(
            f"expected directions from {shift} with a shift of {shift}, found {min(tensors)} in "
            f"{path}: choose another shift"
        )
    directions = {str(i - shift): t for i, t in tensors.items()}
    return rebuilt(directions, own or _foreign(path, texts), path)


def _content(reader: Any) -> tuple[dict[int, Tensor], dict[str, str]]:
    """The directions by their number, and every text of a control vector."""
    texts = {
        name: bytes(f.parts[f.data[0]]).decode("utf-8")
        for name, f in reader.fields.items()
        if f.types and f.types[0].name == "STRING"
    }
    kind = texts.get("general.architecture")
    if kind != ARCHITECTURE:
        raise LoclinError(
            f"GGUF of architecture {kind!r} where a control vector has {ARCHITECTURE!r}"
        )
    found = {t.name: t for t in reader.tensors if t.name.startswith(_NAME)}
    for name, tensor in found.items():
        if tensor.tensor_type.name != "F32" or len(tensor.shape) != 1:
            shape = [int(n) for n in tensor.shape]
            raise LoclinError(
                f"{name} of type {tensor.tensor_type.name} and shape {shape} where one dimension "
                "of F32 belongs"
            )
    directions = {int(n.removeprefix(_NAME)): torch.tensor(t.data.copy()) for n, t in found.items()}
    return directions, texts


def _foreign(path: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """What is known of a file that another program wrote."""
    hint = f"{ARCHITECTURE}.model_hint"
    if hint not in texts:
        raise LoclinError(unreadable(path, KeyError(hint)))
    return {
        **dict.fromkeys(("position", "data", "dtype"), "unknown"),
        "model": f"the model of {path.name}",
        "model_type": texts[hint],
        "route": "another program",
        "norm": "as in the file",
        "site": SITE,
    }
