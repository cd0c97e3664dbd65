"""The checkpoint folders of a Hugging Face Trainer or peft run as points of one space.

Folders `checkpoint-N` with full weights or an adapter, in the order of N, and the finished model in
the run's own folder. Tensors are read by name, a block of rows at a time; no model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from loclin.errors import LoclinError
from loclin.models.folder import (
    Checkpoint,
    Incomplete,
    check_alike,
    lora_pairs,
    open_checkpoint,
    unwrapped,
    weights_in,
)
from loclin.models.points import Points, chosen, row_blocks

_STEP = re.compile(r"checkpoint-(\d+)")


def read_run(folder: Path, *, start: Path | None = None, pattern: str = "*") -> Points:
    """The points of a run.

    Args:
        folder: the Trainer's output_dir, with folders checkpoint-N.
        start: weights before the first step: the base model, or the initial adapter.
        pattern: shell patterns of tensor names, separated by commas.

    Raises:
        LoclinError: no checkpoints, fewer than three points, checkpoints that do not belong
            together, weights that cannot be read.
    """
    points, notes = _checkpoints(folder)
    final, more = _final(folder, points)
    points, notes = points + final, notes + more
    if start is not None:
        points.insert(0, _start(start, points[0]))
    else:
        notes.append(
            f"the first point is {points[0].label}: what came before it is not known (--start "
            "gives it)"
        )
    if len(points) < 3:
        raise LoclinError(
            "expected at least 3 checkpoints (2 updates), found "
            f"{', '.join(c.label for c in points)} in {folder}: save more often (save_steps) or "
            "give --start"
        )
    for other in points[1:]:
        check_alike(points[0], other, "give the checkpoints of one run")
    last = points[-1]
    shapes = {n: last.shapes[n] for n in chosen(last.shapes, unwrapped(pattern))}
    adapted, note = ({}, ()) if last.adapter is None else lora_pairs(last.adapter, shapes)
    notes += dict.fromkeys(text for c in points for text in c.notes)
    return Points(
        labels=tuple(c.label for c in points),
        steps=tuple(c.step for c in points),
        shapes=shapes,
        adapted=adapted,
        read=_reader(points),
        notes=(*notes, *note),
    )


def _reader(points: Sequence[Checkpoint]) -> Callable[[str, slice], Tensor]:
    def read(name: str, rows: slice) -> Tensor:
        parts = [c.read(name, rows) for c in points]
        common = torch.float64 if any(p.dtype == torch.float64 for p in parts) else torch.float32
        return torch.stack([p.to(common) for p in parts])

    return read


def _checkpoints(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """The folders checkpoint-N in the order of N as a number; and a sentence on the last where it
    is not whole, as it is left by a run that was killed, and is left out.
    """
    if not folder.is_dir():
        raise LoclinError(
            f"expected a folder of checkpoints, found none at {folder}: give a Trainer's output_dir"
        )
    folders = [p for p in sorted(folder.iterdir()) if p.is_dir()]
    named = [(int(m[1]), p) for p in folders if (m := _STEP.fullmatch(p.name))]
    if not named:
        there = f"a single model ({weights_in(folder)})" if weights_in(folder) else "none"
        raise LoclinError(
            f"expected folders checkpoint-N in {folder}, found {there}: give the output_dir of a "
            "Trainer with save_steps"
        )
    named.sort(key=lambda entry: entry[0])
    for (step, path), (other, twin) in pairwise(named):
        if step == other:
            raise LoclinError(
                f"expected one checkpoint of step {step}, found {path.name} and {twin.name}: "
                "remove one"
            )
    points = [open_checkpoint(path, step=step) for step, path in named[:-1]]
    step, path = named[-1]
    try:
        return [*points, open_checkpoint(path, step=step)], []
    except Incomplete as error:
        if not points:
            raise
        reason = str(error).partition("found ")[2].rpartition(": ")[0]
        return points, [f"{path.name} is not whole ({reason}) and is left out"]


def _final(folder: Path, points: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[str]]:
    """The model in the run's own folder where it is a further point, and a sentence on what it is.

    It is none where it holds other tensors (an adapter merged at the end), is of an earlier step,
    or is one of the checkpoints again (the last, or the best that was loaded at the end).
    """
    if not weights_in(folder):
        return [], []
    final, last = open_checkpoint(folder, step=None), points[-1]
    subject = f"the model in {folder.name} itself"
    if final.shapes != last.shapes:
        return [], [f"{subject} holds other tensors than the checkpoints and is left out"]
    if final.step is not None and last.step is not None and final.step < last.step:
        return [], [f"{subject} is of step {final.step}, before {last.label}, and is left out"]
    same = next((c.label for c in reversed(points) if _same(c, final)), None)
    if same:
        return [], [f"{subject} is {same} again"]
    return [final], [f"{subject} is the last point"]


def _start(folder: Path, first: Checkpoint) -> Checkpoint:
    """The weights before the first step, under the names that the run has for them.

    A base model may hold more tensors, such as a head tied to the embedding.
    """
    if not folder.is_dir():
        raise LoclinError(
            f"expected a folder for --start, found none at {folder}: give a local folder of weights"
        )
    return replace(open_checkpoint(folder, step=None).under(first.files), step=0)


def _same(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints hold the same numbers, read up to the first difference."""
    return one.shapes == other.shapes and all(
        torch.equal(one.read(name, rows), other.read(name, rows))
        for name, shape in one.shapes.items()
        for rows in row_blocks(shape, 2)
    )
