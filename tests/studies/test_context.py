"""What is loaded, attached and taught before a run; what is refused before minutes are spent."""

import dataclasses

import pytest

from loclin import updates
from loclin.errors import LoclinError
from loclin.progress import silent
from loclin.studies import context
from loclin.studies.context import Requirements, RunContext, check_known, make_context
from loclin.studies.damage import damage
from loclin.studies.recovery.settings import RecoverySettings
from tests.studies.conftest import BY_LORA, NOTHING


def test_a_run_takes_its_task_its_rank_and_another_task(ctx: RunContext[RecoverySettings]) -> None:
    assert (ctx.task, ctx.other) == ("colour", "town")
    assert ctx.dimension("factors") == ctx.space.dimension > ctx.dimension("weights")
    assert ctx.factors is not None
    assert ctx.row("q", 1.0, k=2).context == {"run": 0, "task": "colour", "k": 2}


def test_a_score_is_repeated_and_a_known_task_is_known(ctx: RunContext[RecoverySettings]) -> None:
    assert check_known(ctx, ctx.task) == ctx.score() == ctx.score("colour") > 0.8
    with ctx.space.restored():
        ctx.space.write(damage(ctx, ctx.task))
        with pytest.raises(LoclinError, match="there is nothing to destroy"):
            check_known(ctx, ctx.task)


def test_a_task_that_cannot_be_learned_is_refused() -> None:
    """Answers that follow from nothing: known before the damage no better than guessed."""
    settings = dataclasses.replace(BY_LORA, teach_lr=0.3, teach_steps=5, reach=1.0)
    message = (
        r"score of at least 0.55 on colour before the damage, found 0\.\d\d.*: there is nothing"
    )
    with pytest.raises(LoclinError, match=message):
        make_context(settings, 0, NOTHING, silent)


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        (
            Requirements(examples={}, vectors=(100, "--ks"), rows=(12, "updates")),
            r"room for about 100 directions of 3072 coordinates .* --space lora or a pattern, or "
            r"lower --ks",
        ),
        (
            Requirements(
                examples={"gradients": (480, "--gradients")}, vectors=(1, ""), rows=(1, "updates")
            ),
            r"at least 480 examples of colour in the gradients split, found \d+: give more data or "
            r"lower --gradients",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(
    requirements: Requirements, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "free_memory", lambda device: 20000)
    monkeypatch.setattr(context, "teach", lambda *_: pytest.fail("taught"))
    with pytest.raises(LoclinError, match=message):
        make_context(BY_LORA, 0, requirements, silent)
