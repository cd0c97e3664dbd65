"""Settings of the study: what decides the defaults, every profile, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.schedules.names import MERGED, SEQUENTIAL, SIMULTANEOUS
from loclin.studies.schedules.settings import SchedulesSettings, preset, reproduced
from loclin.studies.settings import Profile
from tests.studies.schedules.small import own

PAIRS = SchedulesSettings(seeds=6, pairs=("agreeing", "neutral", "conflicting"))


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile, tmp_path: Any) -> None:
    found = reproduced(profile)
    assert len({settings.entry for settings in found}) == len(found)
    for settings in found:
        assert settings.pairs
        assert settings.checked().seeds >= (3 if profile == "smoke" else 5)
        assert set(settings.named) >= {*SIMULTANEOUS, *SEQUENTIAL, *MERGED}
        assert settings.models >= {"smoke": 3, "standard": 4, "paper": 12}[profile] or (
            settings.data and settings.models == 1
        )
    users = replace(preset(profile, "a/model"), data=("google/boolq",)).checked()
    assert not users.pairs
    assert users.seeds >= (3 if profile == "smoke" else 5)


def test_a_users_model_or_data_ask_no_claim_unless_pairs_are_named() -> None:
    assert preset("standard", "sequences").pairs
    assert not preset("standard", "sequences", ("A.jsonl",)).pairs
    mine = preset("standard", "a/model")
    assert (mine.pairs, mine.space, mine.evaluations, mine.seeds) == ((), "lora", 60, 5)
    assert mine.schedules == ("joint mixed", "alternating", "sequential", "average")
    assert {*mine.schedules, *mine.further} == {*SIMULTANEOUS, *SEQUENTIAL, "replay", "average"}
    pairs = preset("standard", "a/model", pairs=("A+B",))
    assert (pairs.pairs, pairs.models, pairs.space) == (("conflicting",), 1, "lora")
    assert (pairs.seeds, pairs.ranks, pairs.batch, pairs.adamw_lr) == (4, (8,), 16, 3e-4)
    paper = preset("paper", "a/model", pairs=("A+B",))
    assert (paper.pairs, paper.seeds, paper.ranks) == (preset("paper").pairs, 24, (2, 4, 8))
    assert {*pairs.named} >= {*SIMULTANEOUS, *SEQUENTIAL, *MERGED}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"task": "swap"},
            r"expected pairs of tasks, found --task swap: name them by --pairs A\+B",
        ),
        ({"pairs": ("a+b", "a+b")}, r"expected different pairs, .*found \['a\+b', 'a\+b'\]"),
        ({"tasks": ("a", "b")}, r"expected different pairs, or --tasks, found \['agreeing'"),
        (
            {"pairs": ("swap",)},
            r"expected agreeing, neutral, conflicting or two tasks such as copy\+swap, found "
            r"'swap'",
        ),
        ({"pairs": ("swap+swap",)}, r"found 'swap\+swap': change --pairs"),
        ({"optimisers": ()}, r"expected adamw, sgd or both, found \[\]"),
        ({"optimisers": ("sgd", "sgd")}, "expected adamw, sgd or both, found"),
        ({"k": 25}, "expected k of at most 24, the updates of a specialist, found 25: lower --k"),
        ({"adamw_lr": 0.0}, "expected a learning rate above 0"),
        ({"schedules": ("nonsense",)}, "found 'nonsense': change --schedules"),
        ({"evaluations": 16, "k": 8}, "raise --evaluations"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], text: str) -> None:
    PAIRS.checked()
    with pytest.raises(LoclinError, match=text):
        replace(PAIRS, **change).checked()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"data": ()}, "expected --data with the model .*, found none"),
        (
            {"model": "sequences", "data": ()},
            "expected tasks to learn, found no --data: give a file",
        ),
        (
            {"data": ("A.jsonl", "none.jsonl")},
            "expected a file of task data, found nothing at A.jsonl",
        ),
        (
            {"data": ("sequences", "some/set")},
            "expected one built-in set of tasks or several files, found sequences, some/set",
        ),
        ({"data": ("self",)}, "expected tasks to learn, found --data self"),
        ({"tasks": ("A",)}, "expected two different tasks or more, found A"),
        ({"tasks": ("A", "A")}, "expected two different tasks or more, found A, A"),
        ({"dtype": "bfloat16", "space": "full"}, "expected float32 for full weights"),
        ({"seeds": 0}, "expected at least one seed, found 0"),
        ({"adamw_lr": -1.0}, "expected a learning rate above 0, found -1.0: change --adamw-lr"),
        ({"workers": -1}, "expected workers from 0"),
        ({"schedules": ("nonsense",)}, "found 'nonsense': change --schedules"),
        ({"evaluations": 1}, "raise --evaluations"),
    ],
)
def test_bad_settings_of_users_are_named_with_their_remedy(
    changed: dict[str, Any], text: str, folder: dict[str, str], files: tuple[str, str]
) -> None:
    with pytest.raises(LoclinError, match=text):
        own(folder["gpt2"], files, **changed)


def test_one_file_given_twice_is_refused(folder: dict[str, str], files: tuple[str, str]) -> None:
    with pytest.raises(LoclinError, match="expected different files, found one twice"):
        own(folder["gpt2"], (files[0], files[0]))
