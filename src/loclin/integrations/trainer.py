"""A callback for `transformers.Trainer` that keeps every update and yields the page of `loclin
trajectory`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from loclin.errors import LoclinError
from loclin.geometry.gramian import at_least_float32, gramian
from loclin.geometry.sketch import Sketch
from loclin.models.folder import lora_pairs, unwrapped
from loclin.models.points import Adapted, Points, chosen
from loclin.report.page import build
from loclin.run.record import Record
from loclin.studies import KINDS
from loclin.studies.trajectory.measure import run_part
from loclin.studies.trajectory.movement import Movement, Run, run_of
from loclin.studies.trajectory.settings import KS, SHUFFLES, check

Tensors = Mapping[str, Tensor]
ENTRY = "trajectory"  # of the record


class TrajectoryCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Records the updates of a `Trainer` run as it goes; training takes the very same steps with
    and without it.

    Whole points are kept where they fit into the budget; then captures are exact, and for LoRA they
    are reported for the weights too. Otherwise every update is sketched to m numbers
    (geometry/sketch.py), and one copy of the last point is kept beside the model. Which of the two
    is printed when training starts. A second `train`, resumed or not, starts a new record. Captures
    and nulls are those of measures §2 and §3. Raises `LoclinError` for an `every` below 1 and, when
    training starts, for a sketch no longer than the run, or parameters that are shards.

    Args:
        pattern: which trained tensors (`*attn*`; several patterns separated by commas).
        every: record each n-th optimiser step, and the last one.
        budget: bytes that whole points may take in main memory.
        size: m of the sketch; captures are off by about 2(1−c)√(c/m) (theory.sketched_capture).
        seed: of the sketch, and of the nulls of the report.

    Use:
        callback = TrajectoryCallback()
        Trainer(..., callbacks=[callback]).train()
        print(callback.record("runs/my-run"))  # the page

    What a `Trainer` does with it:

    >>> layer, callback = nn.Linear(2, 1), TrajectoryCallback()
    >>> state = TrainerState(max_steps=4)
    >>> callback.on_train_begin(None, state, TrainerControl(), model=layer)
    loclin: 4 updates of 3 coordinates are kept whole, 0 MiB
    >>> for state.global_step in range(1, 5):
    ...     layer.weight.data += 0.1
    ...     callback.on_step_end(None, state, TrainerControl(), model=layer)
    >>> callback.run().spaces["weights"].gramian.shape
    (4, 4)
    """

    def __init__(
        self,
        *,
        pattern: str = "*",
        every: int = 1,
        budget: int = 1 << 30,
        size: int = 1 << 14,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise LoclinError(f"expected every of at least 1 step, found {every}: change it")
        self._pattern, self._every, self._budget = pattern, every, budget
        self._sketch = Sketch(size=size, seed=seed)
        self._keeper: _Exact | _Sketched | None = None
        self._steps: list[int] = []
        self._momentum: float | None = None

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose how to keep the run, and keep its first point."""
        if not state.is_world_process_zero:
            return
        model: nn.Module = kwargs["model"]
        tensors = _trained(model, self._pattern)
        updates = -(-(state.max_steps - state.global_step) // self._every)
        bytes_needed = (updates + 1) * sum(p.nbytes for p in tensors.values())
        kept = f"{bytes_needed / 2**20:.0f} MiB"
        if bytes_needed <= self._budget:
            self._keeper, kept = _Exact(model), f"whole, {kept}"
        elif self._sketch.size > updates:
            self._keeper = _Sketched(self._sketch, tensors)
            kept = f"sketched to {self._sketch.size} numbers (whole points would take {kept})"
        else:
            raise LoclinError(
                f"expected a sketch longer than the run's {updates} updates, found "
                f"{self._sketch.size}: raise size or every"
            )
        self._steps, self._momentum = [state.global_step], _momentum(kwargs.get("optimizer"))
        self._keeper.keep(tensors)
        coordinates = sum(p.numel() for p in tensors.values())
        print(f"loclin: {updates} updates of {coordinates} coordinates are kept {kept}")

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the update, once per optimiser step however many batches were accumulated."""
        due = state.global_step % self._every == 0 or state.global_step >= state.max_steps
        if self._keeper is not None and (due or control.should_training_stop):
            self._keeper.keep(_trained(kwargs["model"], self._pattern))
            self._steps.append(state.global_step)

    def run(self) -> Run:
        """What was recorded: Gramians and norms by space ("weights", and "factors" for adapters).

        Raises:
            LoclinError: fewer than two updates were recorded, or they hold NaN or are all zero.
        """
        if self._keeper is None or len(self._steps) < 3:
            raise LoclinError(
                f"expected at least 2 recorded updates, found {max(len(self._steps) - 1, 0)}: "
                "train first, or lower every"
            )
        return replace(self._keeper.run(tuple(self._steps)), momentum=self._momentum)

    def record(
        self, folder: str | Path, *, ks: tuple[int, ...] = KS, shuffles: int = SHUFFLES
    ) -> Path:
        """Measure the run and write the record and the page.

        Args:
            folder: the run folder to write.
            ks: prefix lengths of the curves, in recorded updates.
            shuffles: shuffled orders drawn as a null.

        Returns:
            The HTML page.

        Raises:
            LoclinError: as `run`, or a folder that holds something else.
        """
        check(ks, shuffles)
        record, began, seed = Record(Path(folder)), time.perf_counter(), self._sketch.seed
        settings = {"pattern": self._pattern, "every": self._every}
        settings |= {"ks": ks, "shuffles": shuffles, "seed": seed}
        part = run_part(self.run(), ks, shuffles, seed=seed)
        with record.working():
            record.open_study(ENTRY, settings, device="recorded in training")
            record.write_results(ENTRY, part.rows, part.arrays)
            record.close_study(ENTRY, time.perf_counter() - began)
            return build(record.folder, lambda kind: import_module(KINDS[kind].page).sections)


def _momentum(optimiser: Any) -> float | None:
    """Momentum of SGD or β₁ of an optimiser like Adam; None where it is neither, or not the same
    for all weights.
    """
    kinds = {
        float(group["betas"][0] if "betas" in group else group.get("momentum", -1.0))
        for group in getattr(optimiser, "param_groups", ())
    }
    return kinds.pop() if len(kinds) == 1 and min(kinds) >= 0 else None


def _labels(steps: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"step {s}" for s in steps)


class _Exact:
    """Whole points in main memory."""

    def __init__(self, model: nn.Module) -> None:
        self._model = _unwrapped(model)
        self._points: list[dict[str, Tensor]] = []

    def keep(self, tensors: Tensors) -> None:
        self._points.append({name: p.detach().to("cpu", copy=True) for name, p in tensors.items()})

    def run(self, steps: tuple[int, ...]) -> Run:
        adapted, notes = _adapted(self._model, self._points[0])
        points = Points(
            labels=_labels(steps),
            steps=steps,
            shapes={name: tuple(p.shape) for name, p in self._points[0].items()},
            adapted=adapted,
            read=self._read,
            notes=notes,
        )
        return run_of(points)

    def _read(self, name: str, rows: slice) -> Tensor:
        points = [torch.atleast_1d(point[name])[rows] for point in self._points]
        return at_least_float32(torch.stack(points))


class _Sketched:
    """Sketches of the updates, their norms in every tensor, and the last point."""

    def __init__(self, sketch: Sketch, tensors: Tensors) -> None:
        self._sketch = sketch
        self._sizes = {name: p.numel() for name, p in tensors.items()}
        self._last: dict[str, Tensor] = {}
        self._rows: list[Tensor] = []
        self._norms: list[Tensor] = []

    def keep(self, tensors: Tensors) -> None:
        if self._last:
            size = self._sketch.size
            totals = {p.device: torch.zeros(size, device=p.device) for p in tensors.values()}
            norms = []
            for name, p in tensors.items():
                step = p.detach().float() - self._last[name].float()
                self._sketch.add(totals[p.device], name, step)
                norms.append(step.norm().cpu())
            self._rows.append(torch.stack([total.cpu() for total in totals.values()]).sum(0))
            self._norms.append(torch.stack(norms))
        for name, p in tensors.items():
            if name in self._last:
                self._last[name].copy_(p.detach())
            else:
                self._last[name] = p.detach().clone()

    def run(self, steps: tuple[int, ...]) -> Run:
        rows, norms = torch.stack(self._rows), torch.stack(self._norms).double().numpy()
        if not (torch.isfinite(rows).all() and rows.any()):
            raise LoclinError(
                "expected finite updates that are not all zero, found others: check the learning "
                "rate"
            )
        moved = np.asarray((norms > 0).any(axis=0))
        sizes = {n: s for (n, s), m in zip(self._sizes.items(), moved, strict=True) if m}
        movement = Movement(
            gramian=gramian(rows),
            norms=norms[:, moved],
            names=tuple(sizes),
            sizes=tuple(sizes.values()),
            still=int(np.sum(~moved)),
        )
        adapter = any(".lora_" in name for name in self._sizes)
        note = "the factors were sketched, so that captures of the weights they make are not known"
        return Run(
            labels=_labels(steps),
            steps=steps,
            notes=(note,) if adapter else (),
            spaces={"factors" if adapter else "weights": movement},
            sketch=self._sketch.size,
        )


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside distributed and compiled wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _saved_name(name: str) -> str:
    """A parameter's name as it is saved: peft leaves out the name of the adapter."""
    named = r"(\.lora_(?:embedding_)?[AB])\.[^.]+|\.modules_to_save\.[^.]+"
    magnitude = r"(\.lora_magnitude_vector)\.[^.]+\.weight"
    return unwrapped(re.sub(f"{named}|{magnitude}", r"\1\2", name))


def _trained(model: nn.Module, pattern: str) -> dict[str, Tensor]:
    """The chosen trained tensors by the names they are saved under."""
    parameters = _unwrapped(model).named_parameters()
    named = [(_saved_name(n), p) for n, p in parameters if p.requires_grad]
    tensors = dict(named)
    if len(tensors) < len(named):
        raise LoclinError(
            "expected one trained adapter, found two with the same tensors: train them one at a "
            "time"
        )
    empty = next((n for n, p in named if not p.numel()), None)
    if empty is not None:
        raise LoclinError(
            f"expected whole parameters, found a shard of {empty}: use `loclin trajectory` on "
            "checkpoints"
        )
    return {n: tensors[n] for n in chosen(tensors, unwrapped(pattern))}


def _adapted(model: nn.Module, tensors: Tensors) -> tuple[dict[str, Adapted], tuple[str, ...]]:
    """The LoRA pairs, or why there are none, by the settings that peft saves with them."""
    settings = getattr(model, "peft_config", None)
    if settings is None:
        return {}, ()
    active: Any = getattr(model, "active_adapter", "default")
    saved = json.loads(json.dumps(settings[active].to_dict(), default=list))
    return lora_pairs(saved, {n: tuple(p.shape) for n, p in tensors.items()})
