"""A task destroyed and trained back: scores, data order, dropout."""

import dataclasses

import torch

from loclin.models import Problem
from loclin.progress import silent
from loclin.studies.context import RunContext, make_context
from loclin.studies.damage import damage, destroyed, recovery
from loclin.studies.recovery.settings import RecoverySettings
from loclin.training import Trajectory
from tests.rows import value
from tests.studies.conftest import BY_LORA, NOTHING


def recorded(ctx: RunContext[RecoverySettings], order: str = "recovery") -> Trajectory:
    return recovery(ctx, "adamw", ctx.task, ctx.space.read(), 8, order=order, head=8)


def test_one_task_is_destroyed_and_the_other_kept(speaking: Problem) -> None:
    gentle = dataclasses.replace(BY_LORA, damage_steps=100, damage_lr=1e-3)
    ctx = make_context(gentle, 0, NOTHING, silent)
    before = ctx.space.read()
    damaged, rows = destroyed(ctx, ctx.problem.tasks)
    assert torch.equal(ctx.space.read(), before)
    assert torch.equal(damage(ctx, ctx.task), damaged)
    with ctx.space.restored():
        ctx.space.write(damaged)
        assert value(rows, "score", point="damaged", on="colour") == ctx.score("colour") < 0.5
        assert value(rows, "score", point="damaged", on="town") == ctx.score("town") > 0.6
    assert value(rows, "score", point="pretrained", on="colour") == ctx.score("colour")
    assert value(rows, "dimension") == ctx.space.dimension


def test_the_same_name_gives_the_same_order_of_the_data(ctx: RunContext[RecoverySettings]) -> None:
    first, again, other = (recorded(ctx, order) for order in ("recovery", "recovery", "other"))
    assert torch.equal(first.updates, again.updates)
    assert not torch.equal(first.updates, other.updates)


def test_dropout_is_drawn_by_the_seed_and_off_when_scoring(
    ctx: RunContext[RecoverySettings],
) -> None:
    settings = dataclasses.replace(BY_LORA, dropout=0.3)
    made = make_context(settings, 0, NOTHING, silent)
    first, second = (recorded(made).updates for _ in range(2))
    assert torch.equal(first, second)
    assert made.score() == made.score()
    with torch.no_grad():
        batch = made.problem.batch("test", "town")
        logits = [made.problem.model(input_ids=batch.input_ids).logits for _ in range(2)]
    assert torch.equal(*logits)
    asleep: list[bool] = []

    def watch(t: int) -> None:
        asleep.append(not any(m.training for m in made.problem.model.modules()))

    start = made.space.read()
    recovery(made, "sgd", made.task, start, 3, order="recovery", head=1, after_step=watch)
    assert asleep == [True] * 3  # what is measured on the way is measured without dropout
    assert not torch.equal(first, recorded(ctx).updates)
