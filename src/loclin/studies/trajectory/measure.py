"""A run's movement as rows: captures, turning, effective rank, which tensors moved, each with its
nulls (measures §1-6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from loclin import theory
from loclin.errors import LoclinError
from loclin.geometry.gramian import cosines, future_capture, prefix_capture, span_overlap
from loclin.geometry.spectrum import centred, effective_ranks, random_sketch
from loclin.models.checkpoints import read_run
from loclin.run.rows import Part, Row
from loclin.run.runner import Session
from loclin.seeds import derived
from loclin.studies.captures import prefix_rows
from loclin.studies.names import HEAVY_BALL
from loclin.studies.trajectory import names
from loclin.studies.trajectory.movement import Movement, Run, run_of
from loclin.studies.trajectory.settings import TrajectorySettings

_RESPONSES = 20_000_000  # numbers in an impulse response
_DRAWN = 32  # segments, windows and numbers of segments that a figure shows at most


def measure(settings: TrajectorySettings, run: int, session: Session) -> Part:
    """Read a run's checkpoints tensor by tensor and measure it.

    Raises:
        LoclinError: checkpoints that cannot be read or do not belong together, as `run_part`.
    """
    points = read_run(settings.folder, start=settings.start, pattern=settings.pattern)
    moved = replace(run_of(points, session.progress), momentum=settings.momentum)
    return run_part(moved, settings.ks, settings.shuffles, seed=settings.seed)


def run_part(run: Run, ks: tuple[int, ...], shuffles: int, *, seed: int) -> Part:
    """Rows and Gramians of a run. One run has no interval: rows carry none.

    Args:
        run: what to measure.
        ks, shuffles, seed: as in `TrajectorySettings`.

    Raises:
        LoclinError: a sketch shorter than the run.
    """
    segments = len(run.labels) - 1
    if run.sketch is not None and run.sketch <= segments:
        raise LoclinError(
            f"expected a sketch longer than the run's {segments} updates, found {run.sketch}: "
            "raise size"
        )
    arrays = {f"update_gramian/{space}": m.gramian for space, m in run.spaces.items()}
    arrays |= {f"segment_norms/{space}": m.norms for space, m in run.spaces.items()}
    response = _response(run)
    known = None if response is None and run.momentum else run.momentum
    rows = [*_point_rows(run), Row(quantity="momentum", value=known)]
    for space in run.spaces:
        rows += _space_rows(run, space, ks, shuffles, seed, response)
    return Part(rows=rows, arrays=arrays)


def _response(run: Run) -> np.ndarray | None:
    """What the optimiser puts of each gradient's noise into the segments; None where its momentum
    or the steps are not known, or the run is too long to hold it. Its state was new at step 0.
    """
    steps = [s for s in run.steps if s is not None]
    if not run.momentum or len(steps) < len(run.steps) or len(steps) * steps[-1] > _RESPONSES:
        return None
    before = [0] if steps[0] else []
    return theory.impulse_response([*before, *steps], run.momentum)[len(before) :]


def lengths_for(segments: int, ks: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The prefix lengths that a run has (T among them where that is affordable), and the one to
    compare at: near T/4.

    >>> lengths_for(20, (1, 2, 3, 5, 8, 10, 50))
    ((1, 2, 3, 5, 8, 10, 20), 5)
    """
    most = {segments} if segments <= 300 else set()
    fitting = sorted({k for k in ks if k <= segments} | most)
    compared = [k for k in fitting if k <= max(1, segments // 4)]
    return tuple(fitting), compared[-1] if compared else fitting[0]


def _point_rows(run: Run) -> Iterator[Row]:
    for i, (label, step) in enumerate(zip(run.labels, run.steps, strict=True)):
        here, steps = {"point": i, "label": label}, None if step is None else float(step)
        yield Row(quantity="point_step", value=steps, unit="optimiser steps", context=here)
    for note in run.notes:
        yield Row(quantity="note", value=None, context={"text": note})


def _space_rows(
    run: Run, space: str, ks: tuple[int, ...], shuffles: int, seed: int, response: np.ndarray | None
) -> Iterator[Row]:
    """Everything about a run in one space. The heavy-ball null is about single steps: it is kept
    for a run of such alone.
    """
    movement, here = run.spaces[space], {"space": space}
    fitting, k = lengths_for(len(movement.gramian), ks)
    single = all(b is not None and a is not None and b - a == 1 for a, b in pairwise(run.steps))
    yield from _size_rows(movement, here)
    of = movement.gramian, fitting, movement.dimension, shuffles
    captures = prefix_rows(*of, here, seed=seed, response=response)
    yield from (r for r in captures if single or r.context.get("null") != HEAVY_BALL)
    yield from _turning_rows(movement, k, here)
    yield from _rank_rows(movement, here, seed=seed)
    if run.sketch is not None:
        yield from _sketch_rows(movement, fitting, run.sketch, here)


def _size_rows(movement: Movement, here: Mapping[str, Any]) -> Iterator[Row]:
    """D, segment lengths, and the share of every group of tensors in them, held against its share
    of the coordinates.
    """
    counts = (movement.dimension, len(movement.names), movement.still)
    for quantity, count in zip(("dimension", "tensors", "still_tensors"), counts, strict=True):
        yield Row(quantity=quantity, value=float(count), context=dict(here))
    for t, length in enumerate(np.sqrt(np.diag(movement.gramian)), start=1):
        yield Row(quantity="segment_length", value=float(length), context={**here, "t": t})
    energy, sizes = (movement.norms**2).sum(0), np.array(movement.sizes, dtype=float)
    of = np.array([names.group_of(name) for name in movement.names])
    for group in names.GROUPS:
        if (of == group).any():
            share, chance = (float(x[of == group].sum() / x.sum()) for x in (energy, sizes))
            there = {**here, "group": group}
            yield Row(quantity="movement_share", value=share, null=chance, context=there)


def _turning_rows(movement: Movement, k: int, here: Mapping[str, Any]) -> Iterator[Row]:
    """Cosines between segments, and overlap of the first k with later windows of k. Undefined for
    segments of length zero.
    """
    products, total = movement.gramian, len(movement.gramian)
    turned = cosines(products)
    for t in range(1, total):
        value, there = _defined(turned[t - 1, t]), {**here, "t": t + 1}
        yield Row(quantity="successive_cosine", value=value, null=0.0, context=there)
    shown = _evenly(0, total - 1)
    for i, j in ((i, j) for i in shown for j in shown):
        there = {**here, "i": i + 1, "j": j + 1}
        yield Row(quantity="segment_cosine", value=_defined(turned[i, j]), context=there)
    first, null = products[:k, :k], min(k / movement.dimension, 1.0)
    for start in _evenly(k, total - k) if total >= 2 * k and first.any() else []:
        window = slice(start, start + k)
        if products[window, window].any():
            value = span_overlap(first, products[:k, window], products[window, window])
            there = {**here, "k": k, "t": start + 1}
            yield Row(quantity="window_overlap", value=value, null=null, context=there)


def _rank_rows(movement: Movement, here: Mapping[str, Any], *, seed: int) -> Iterator[Row]:
    """Effective ranks of the first n segments and of random vectors with the same norms, as in the
    recovery study.
    """
    norms, whole = movement.norms, np.sqrt(np.diag(movement.gramian))[:, None]
    spectra = {names.MEASURED: movement.gramian}
    for name, rows, sizes in (
        (names.PER_TENSOR, norms, movement.sizes),
        (names.ISOTROPIC, whole, [movement.dimension]),
    ):
        spectra[name] = random_sketch(torch.from_numpy(rows), sizes, seed=derived(seed, name))
    total = len(whole)
    for n in sorted({2**i for i in range(1, 20) if 2**i < total} | {total}):
        for mean, middle in zip(names.MEANS, (lambda g: g, centred), strict=True):
            ranks = {name: _ranks(middle(g[:n, :n])) for name, g in spectra.items()}
            for name, found in ranks.items():
                there = {**here, "vectors": name, "segments": n, "mean": mean}
                for kind, value in found.items():
                    null = ranks[names.PER_TENSOR][kind] if name == names.MEASURED else None
                    yield Row(quantity=f"{kind}_rank", value=value, null=null, context=there)


def _ranks(products: np.ndarray) -> dict[str, float | None]:
    """The three effective ranks; None where nothing moved."""
    if not np.trace(products) > 0:
        return dict.fromkeys(names.RANKS)
    ranks = effective_ranks(products)
    return {kind: getattr(ranks, kind) for kind in names.RANKS}


def _sketch_rows(
    movement: Movement, ks: Sequence[int], size: int, here: Mapping[str, Any]
) -> Iterator[Row]:
    """Standard deviation and bias that the sketch adds to each capture."""
    for quantity, of in (("prefix_capture", prefix_capture), ("future_capture", future_capture)):
        for k, capture in zip(ks, of(movement.gramian, ks), strict=True):
            if not np.isnan(capture):
                bias, sd = theory.sketched_capture(float(capture), k, size)
                there = {**here, "k": k, "of": quantity, "m": size}
                yield Row(quantity="sketch_sd", value=sd, context=there)
                yield Row(quantity="sketch_bias", value=bias, context=there)


def _evenly(first: int, last: int) -> list[int]:
    """At most `_DRAWN` whole numbers from first to last, spread evenly."""
    count = min(_DRAWN, last - first + 1)
    return sorted({round(x) for x in np.linspace(first, last, count)})


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(np.clip(value, -1, 1))
