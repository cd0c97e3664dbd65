from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loclin.errors import LoclinError
from loclin.studies.search.claims_data import (
    SearchData,
    SearchRun,
    divided,
    recover,
    score_of,
    search_data,
)
from loclin.tasks.example import Example
from tests.studies.search.claims_small import TINY


def test_no_group_is_in_two_parts() -> None:
    pool = [Example(prompt=f"{i}", answer=" x", group=f"{i // 3}") for i in range(30)]
    some, others = divided(pool, 7, seed=1)
    assert len(some) == 7
    assert not {e.group for e in some} & {e.group for e in others}
    assert divided(pool, 7, seed=1)[0] == some != divided(pool, 7, seed=2)[0]
    assert divided(pool, 100, seed=1) == (sorted(pool, key=divided(pool, 100, seed=1)[0].index), [])


def test_too_few_groups_are_refused(ctx: SearchRun) -> None:
    with pytest.raises(
        LoclinError, match=r"expected 16 \+ 4000 examples of swap in the gradients split in groups"
    ):
        search_data(replace(ctx, settings=replace(TINY, gradients=1000)))


def test_halfway_is_half_of_the_score_and_on_the_recorded_way(
    ctx: SearchRun, data: SearchData, damaged: Tensor
) -> None:
    longer = replace(ctx, settings=replace(TINY, steps=40, halfway_every=2))
    known = score_of(data.validate)
    path = recover(longer, data.validate, known, damaged)
    assert path.step is not None
    assert path.step % 2 == 0
    with ctx.space.restored():
        ctx.space.write(damaged)
        lost = score_of(data.validate)
        ctx.space.write(path.halfway)
        assert score_of(data.validate) >= (known + lost) / 2 > lost
    assert path.prefix.shape == (TINY.k, ctx.space.dimension)
    short = replace(ctx, settings=replace(TINY, steps=3, k=2))
    end = recover(short, data.validate, 2.0, damaged)  # never half of 2
    assert end.step is None
    assert torch.allclose(
        end.halfway,
        damaged
        + recover(
            replace(short, settings=replace(short.settings, k=3)), data.validate, 2.0, damaged
        ).prefix.sum(0),
        atol=1e-6,
    )
