"""What a command says that it will take, and counts that fit a budget."""

import json
from pathlib import Path

import pytest

from loclin import cli
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.run.record import Record
from loclin.studies.estimate import (
    STARTING,
    Timings,
    estimated,
    fitted,
    intervals,
    seconds_of,
    timed,
)
from loclin.studies.linearity.radius_settings import RadiusSettings
from loclin.studies.linearity.settings import preset as linearity
from loclin.studies.schedules.settings import preset as schedules
from loclin.studies.search.settings import SearchSettings
from loclin.studies.settings import Sizes
from loclin.studies.steering.settings import SteerSettings

SLOW = Timings(
    loading=0.0,
    forward=0.1,
    backward=0.3,
    product=0.6,
    sizes=Sizes(tasks=2, examples=400, layers=30),
    memory=10**9,
)
RADIUS = RadiusSettings(model="sequences-small", direction="gradient")
SEARCH = SearchSettings(model="sequences-small", sigma=(1e-3,), workers=2)
STEER = SteerSettings(model="statements-small")
OWN = schedules("standard", "gpt2", ("A.jsonl", "B.jsonl"))


def test_passes_of_a_radius_are_counted() -> None:
    takes = estimated(RADIUS, SLOW)
    n = RADIUS.examples
    assert takes.parts["slope and curvature"] == pytest.approx(n * (2 * 0.3 + 0.6))
    steps = takes.parts["following the loss"] / (0.1 * n)
    assert 40 < steps < 60


def test_runs_side_by_side_share_the_time_and_not_the_memory() -> None:
    one = estimated(linearity("smoke").__class__(seeds=4, workers=1), SLOW)
    two = estimated(linearity("smoke").__class__(seeds=4, workers=2), SLOW)
    assert two.seconds - STARTING == pytest.approx((one.seconds - STARTING) / 2)
    assert two.memory == 2 * one.memory
    assert str(two).startswith("about ")
    assert " on 2 cores and 2.0 GB: " in str(two)


@pytest.mark.parametrize("settings", [RADIUS, SEARCH, STEER, linearity("standard")])
def test_a_budget_lowers_counts_until_they_fit(settings: RadiusSettings) -> None:
    whole = estimated(settings, SLOW).seconds
    fits = fitted(settings, SLOW, whole / 2)
    assert estimated(fits, SLOW).seconds <= whole / 2
    assert estimated(fits, SLOW).seconds > whole / 10
    lines = list(intervals(fits, settings))
    assert lines
    assert all(" instead of " in line for line in lines)
    assert fitted(settings, SLOW, 2 * whole) == settings


def test_counts_are_lowered_no_further_than_they_may_be() -> None:
    fits = fitted(RADIUS, SLOW, 1.0)
    assert fits.examples == RADIUS.lowered["examples"]
    (line,) = intervals(fits, RADIUS)
    assert line == ("--examples 10 instead of 128 (a share of one half is known to ±0.31)")
    few = fitted(linearity("standard"), SLOW, 1.0)
    assert next(iter(intervals(few, linearity("standard")))) == (
        "--seeds 2 instead of 6 (a mean is known to ±9 standard deviations of a run)"
    )


def test_passes_are_timed_where_they_are_needed() -> None:
    timings, _ = timed(SearchSettings(model="sequences-small", sigma=(1e-3,), forecast=False))
    assert timings.product == timings.backward == 0
    assert 0 < timings.forward < 0.1
    more, _ = timed(RADIUS)
    assert min(more.backward, more.product) > 0
    assert more.sizes.tasks > 1
    assert more.memory > 10**8


@pytest.mark.parametrize("budget", ["5", "m", "0m", "5 minutes"])
def test_a_budget_that_is_no_time_is_refused(budget: str) -> None:
    with pytest.raises(LoclinError, match=r"expected a time such as 5m, 90s or 1h, found"):
        seconds_of(budget)


def test_a_budget_chooses_counts_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["radius", "--model", "sequences-small", "--direction", "gradient", "--batch", "8"]
    cli.main([*base, "--budget", "1s", "--out", str(tmp_path / "a")])
    printed = capsys.readouterr().out
    assert printed.startswith("about ")
    held = json.loads((tmp_path / "a" / "run.json").read_text())["studies"]
    (entry,) = held
    assert "budget" not in held[entry]
    count = held[entry]["examples"]
    cli.main([*base, "--examples", str(count), "--out", str(tmp_path / "b")])
    same = [Record(tmp_path / name).results(entry) for name in "ab"]
    assert same[0] == same[1]
    cli.main([*base, "--budget", "1s", "--out", str(tmp_path / "a")])  # what it had stands
    assert Record(tmp_path / "a").results(entry) == same[0]


STEERED = {"labels": 16, "gradient": 16, "shift": 16, "choose": 8, "test": 16, "band": 2}
PARTS = [word for name, count in STEERED.items() for word in (f"--{name}", str(count))]


@pytest.mark.parametrize(
    "command",
    [
        ["radius", "--model", "sequences-small", "--direction", "gradient", "--examples", "8"],
        ["steer", "--model", "statements-small", *PARTS, "--compare", "labels", "--texts", "2"],
        ["search", "--model", "sequences-small", "--sigma", "1e-3", "--n", "4", "--workers", "1",
         "--budget", "1h", "--select", "8", "--validate", "8", "--test", "8", "--k", "2"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_the_model_that_passes_were_timed_on_is_not_loaded_again(
    trained: Problem, speaking: Problem, loads: list[str], tmp_path: Path, command: list[str]
) -> None:
    cli.main([*command, "--out", str(tmp_path / "run")])
    assert len(loads) == 1
