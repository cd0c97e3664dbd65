"""ΔW of families of directions against dense matrices, merged by peft."""

import numpy as np
import torch
from peft.tuners.lora import LoraLayer

from loclin.geometry.gramian import gramian, prefix_capture
from loclin.studies.context import RunContext
from loclin.studies.damage import recovery
from loclin.studies.families import family_at, products, steps_family
from loclin.studies.recovery.settings import RecoverySettings


def dense_weights(ctx: RunContext[RecoverySettings], points: list[torch.Tensor]) -> torch.Tensor:
    """ΔW of every adapted weight at each point, by peft's own merge, laid end to end in float64."""
    rows = []
    with ctx.space.restored():
        for point in points:
            ctx.space.write(point)
            layers = [m for m in ctx.problem.model.modules() if isinstance(m, LoraLayer)]
            weights = [m.get_delta_weight("default").detach().double() for m in layers]
            rows.append(torch.cat([w.reshape(-1) for w in weights]))
    return torch.stack(rows)


def test_steps_in_weight_space_are_those_of_the_merged_weights(
    ctx: RunContext[RecoverySettings],
) -> None:
    start = ctx.space.read()
    real = recovery(ctx, "adamw", ctx.task, start, 8, order="recovery", head=8)
    points = [real.start + real.updates[:t].sum(0) for t in range(9)]
    dense = dense_weights(ctx, points).diff(dim=0)
    found, scale = products(ctx, steps_family(ctx, real)), float(dense[0].square().sum())
    expected = (dense @ dense.T).numpy()
    assert np.allclose(found["weights"], expected, rtol=1e-3, atol=1e-4 * scale)
    assert np.allclose(found["factors"], gramian(real.updates))
    held = [prefix_capture(found[space], [2]) for space in ("weights", "factors")]
    assert not np.allclose(*held, atol=1e-3)


def test_chords_are_finite_and_tangents_small_displacements_of_the_merged_weights(
    ctx: RunContext[RecoverySettings],
) -> None:
    start, directions = ctx.space.read(), torch.stack([ctx.space.noise(seed=s) for s in (0, 1)])
    for chords, step in ((True, 1.0), (False, 1e-3)):
        rows = directions * step
        dense = dense_weights(ctx, [start, *(start + row for row in rows)])
        moved = dense[1:] - dense[0]
        found = products(ctx, family_at(ctx, start, rows, chords=chords))["weights"]
        assert np.allclose(found, (moved @ moved.T).numpy(), rtol=2e-2 if step < 1 else 1e-4)


def test_products_of_two_families_are_blocks_of_those_of_both_together(
    ctx: RunContext[RecoverySettings],
) -> None:
    start, rows = ctx.space.read(), torch.stack([ctx.space.noise(seed=s) for s in range(3)])
    first, second, both = (family_at(ctx, start, r) for r in (rows[:1], rows[1:], rows))
    between, together = products(ctx, first, second), products(ctx, both)
    for space in ("weights", "factors"):
        assert np.allclose(between[space], together[space][:1, 1:], rtol=1e-6, atol=1e-6)
