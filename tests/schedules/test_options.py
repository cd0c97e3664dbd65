"""What schedules are compared under: names opened, settings that cannot be met refused."""

from dataclasses import replace
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.schedules.names import EVERY
from loclin.schedules.options import ComparisonOptions


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"schedules": ("alternating", "pcgrad")},
            "expected schedules among all, alternating, .* found 'pcgrad': did you mean 'PCGrad'?",
        ),
        ({"schedules": ("fly",)}, "found 'fly': change --schedules"),
        ({"schedules": ()}, "found none: change --schedules"),
        (
            {"batch": 1},
            "expected a batch of at least 2 examples, one a task, found 1: raise --batch",
        ),
        ({"replay_shares": (0.5, 1.0)}, r"found \[0.5, 1.0\]: change --replay-shares"),
        ({"replay_shares": ()}, r"expected shares of replayed examples .*, found \[\]"),
        ({"consolidations": (0.0,)}, "expected consolidations above 0"),
        ({"merge_scales": ()}, r"merge-scales above 0, found \[\]: change --merge-scales"),
        ({"points": 0}, "expected points of at least 1"),
        ({"old_gradients": 0}, "expected old-gradients of at least 1, found 0: change --old-grad"),
        (
            {"evaluations": 8},
            r"expected at least 18 gradient evaluations for 2 tasks.* found 8: raise --evaluations",
        ),
    ],
)
def test_options_that_cannot_be_met_are_refused(changed: dict[str, Any], text: str) -> None:
    options = replace(ComparisonOptions(evaluations=48, fisher_examples=64), **changed)
    with pytest.raises(LoclinError, match=text):
        options.check_comparison(2)


def test_more_tasks_need_more_gradients() -> None:
    options = ComparisonOptions(evaluations=24)
    options.check_comparison(2)
    with pytest.raises(LoclinError, match="expected at least 27 gradient evaluations for 3 tasks"):
        options.check_comparison(3)


def test_all_is_every_schedule_and_names_are_put_in_order() -> None:
    assert ComparisonOptions(schedules=("all",)).named == EVERY
    chosen = ComparisonOptions(schedules=("sequential", "alternating"))
    assert chosen.named == ("alternating", "sequential")
