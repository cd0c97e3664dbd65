"""Rows of one run's movement: captures, turning, effective rank, which tensors moved, each with its
nulls (measures §1-6).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from loclin import theory
from loclin.errors import LoclinError
from loclin.geometry.gramian import future_capture, prefix_capture, span_overlap
from loclin.geometry.spectrum import centred, effective_ranks, random_sketch
from loclin.record import Record, Row
from loclin.seeds import derived
from loclin.studies.recovery.captures import prefix_rows
from loclin.studies.trajectory.movement import Movement, Run

STUDY = "trajectory"
_DRAWN = 32  # segments, windows and numbers of segments that a figure shows at most

#: Groups of tensors by their names, the first that fits: "input_layernorm" is a norm,
#: "post_attention_layernorm" too.
GROUPS = {
    "norms": r"norm|\bln_|\.ln\d?\b",
    "embeddings": r"embed|\bwte\b|\bwpe\b|\blm_head\b",
    "attention": r"attn|attention|\b[qkvo]_proj\b|\b(query|key|value)\b",
    "MLP": r"mlp|feed_forward|ffn|\bfc\d?\b|\b(up|down|gate)_proj\b|intermediate|\bdense\b",
    "other": "",
}


def group_of(name: str) -> str:
    """The group of a tensor, from its name.

    >>> [group_of(n) for n in ("h.0.attn.c_attn.weight", "layers.1.input_layernorm.weight", "wte.weight", "score.bias")]
    ['attention', 'norms', 'embeddings', 'other']
    """
    return next(group for group, pattern in GROUPS.items() if re.search(pattern, name))


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


def write_record(
    record: Record,
    run: Run,
    settings: Mapping[str, Any],
    *,
    ks: tuple[int, ...],
    shuffles: int,
    seed: int,
    device: str,
) -> None:
    """Measure a run and keep the rows and Gramians in a record.

    Args:
        record: the run folder.
        run: what to measure.
        settings: as they are shown; a folder of other settings is refused.
        ks, shuffles, seed: as in `Config`.
        device: where the run was measured, in words.

    Raises:
        LoclinError: a folder of other settings, or one that cannot be written.
    """
    record.open_study(STUDY, settings, device=device)
    rows = list(run_rows(run, ks, shuffles, seed=seed))
    arrays = {f"update_gramian/{space}": m.gramian for space, m in run.spaces.items()}
    arrays |= {f"segment_norms/{space}": m.norms for space, m in run.spaces.items()}
    record.write_results(STUDY, rows, arrays)


def run_rows(run: Run, ks: tuple[int, ...], shuffles: int, *, seed: int) -> Iterator[Row]:
    """Every row of a run. One run has no interval: rows carry none.

    Raises:
        LoclinError: no prefix length that the run has, or a sketch shorter than the run.
    """
    segments = len(run.labels) - 1
    if run.sketch is not None and run.sketch <= segments:
        raise LoclinError(
            f"expected a sketch longer than the run's {segments} updates, found {run.sketch}: "
            "raise size"
        )
    fitting, k = lengths_for(segments, ks)
    for i, (label, step) in enumerate(zip(run.labels, run.steps, strict=True)):
        here = {"point": i, "label": label}
        yield Row(
            quantity="point_step",
            value=None if step is None else float(step),
            unit="optimiser steps",
            context=here,
        )
    for note in run.notes:
        yield Row(quantity="note", value=None, context={"text": note})
    single = all(b is not None and a is not None and b - a == 1 for a, b in pairwise(run.steps))
    for space, movement in run.spaces.items():
        here = {"space": space}
        yield from _size_rows(movement, here)
        for row in prefix_rows(
            movement.gramian, fitting, movement.dimension, shuffles, here, seed=seed
        ):
            if single or row.context.get("null") != "heavy ball":  # that null is about single steps
                yield row
        yield from _turning_rows(movement, k, here)
        yield from _rank_rows(movement, here, seed=seed)
        if run.sketch is not None:
            yield from _sketch_rows(movement, fitting, run.sketch, here)


def _size_rows(movement: Movement, here: Mapping[str, Any]) -> Iterator[Row]:
    """D, segment lengths, and the share of every group of tensors in them, held against its share
    of the coordinates.
    """
    counts = {
        "dimension": movement.dimension,
        "tensors": len(movement.names),
        "still_tensors": movement.still,
    }
    for quantity, count in counts.items():
        yield Row(quantity=quantity, value=float(count), context=dict(here))
    for t, length in enumerate(np.sqrt(np.diag(movement.gramian)), start=1):
        yield Row(quantity="segment_length", value=float(length), context={**here, "t": t})
    energy, sizes = (movement.norms**2).sum(0), np.array(movement.sizes, dtype=float)
    of = np.array([group_of(name) for name in movement.names])
    for group in GROUPS:
        if (of == group).any():
            share, coordinates = (float(x[of == group].sum() / x.sum()) for x in (energy, sizes))
            yield Row(
                quantity="movement_share",
                value=share,
                null=coordinates,
                context={**here, "group": group},
            )


def _turning_rows(movement: Movement, k: int, here: Mapping[str, Any]) -> Iterator[Row]:
    """Cosines between segments, and overlap of the first k with later windows of k. Undefined for
    segments of length zero.
    """
    products, total = movement.gramian, len(movement.gramian)
    lengths = np.sqrt(np.diag(products))
    moved = np.outer(lengths, lengths)
    cosines = np.divide(products, moved, out=np.full_like(products, np.nan), where=moved > 0)
    for t in range(1, total):
        yield Row(
            quantity="successive_cosine",
            value=_defined(cosines[t - 1, t]),
            null=0.0,
            context={**here, "t": t + 1},
        )
    shown = _evenly(0, total - 1)
    for i in shown:
        for j in shown:
            yield Row(
                quantity="segment_cosine",
                value=_defined(cosines[i, j]),
                context={**here, "i": i + 1, "j": j + 1},
            )
    first = products[:k, :k]
    for start in _evenly(k, total - k) if total >= 2 * k and first.any() else []:
        window = slice(start, start + k)
        if products[window, window].any():
            value = span_overlap(first, products[:k, window], products[window, window])
            null = min(k / movement.dimension, 1.0)
            yield Row(
                quantity="window_overlap",
                value=value,
                null=null,
                context={**here, "k": k, "t": start + 1},
            )


def _rank_rows(movement: Movement, here: Mapping[str, Any], *, seed: int) -> Iterator[Row]:
    """Effective ranks of the first n segments and of random vectors with the same norms, as in the
    recovery study.
    """
    whole = np.sqrt(np.diag(movement.gramian))[:, None]
    per_tensor = random_sketch(
        torch.from_numpy(movement.norms), movement.sizes, seed=derived(seed, "per tensor")
    )
    isotropic = random_sketch(
        torch.from_numpy(whole), [movement.dimension], seed=derived(seed, "isotropic")
    )
    spectra = {"measured": movement.gramian, "per tensor": per_tensor, "isotropic": isotropic}
    total = len(whole)
    counts = sorted({2**i for i in range(1, 20) if 2**i < total} | {total})
    for n in counts:
        for mean, middle in (("uncentred", lambda g: g), ("centred", centred)):
            ranks = {name: _ranks(middle(g[:n, :n])) for name, g in spectra.items()}
            for name, found in ranks.items():
                context = {**here, "vectors": name, "segments": n, "mean": mean}
                for kind, value in found.items():
                    null = ranks["per tensor"][kind] if name == "measured" else None
                    yield Row(quantity=f"{kind}_rank", value=value, null=null, context=context)


def _ranks(products: np.ndarray) -> dict[str, float | None]:
    """The three effective ranks; None where nothing moved."""
    if not np.trace(products) > 0:
        return dict.fromkeys(("stable", "participation", "entropy"))
    ranks = effective_ranks(products)
    return {"stable": ranks.stable, "participation": ranks.participation, "entropy": ranks.entropy}


def _sketch_rows(
    movement: Movement, ks: Sequence[int], size: int, here: Mapping[str, Any]
) -> Iterator[Row]:
    """Standard deviation that the sketch adds to each capture."""
    for quantity, of in (("prefix_capture", prefix_capture), ("future_capture", future_capture)):
        for k, capture in zip(ks, of(movement.gramian, ks), strict=True):
            if not np.isnan(capture):
                bias, sd = theory.sketched_capture(float(capture), k, size)
                context = {**here, "k": k, "of": quantity, "m": size}
                yield Row(quantity="sketch_sd", value=sd, context=context)
                yield Row(quantity="sketch_bias", value=bias, context=context)


def _evenly(first: int, last: int) -> list[int]:
    """At most `_DRAWN` whole numbers from first to last, spread evenly."""
    count = min(_DRAWN, last - first + 1)
    return sorted({round(x) for x in np.linspace(first, last, count)})


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(np.clip(value, -1, 1))
