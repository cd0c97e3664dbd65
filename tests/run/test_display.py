"""What is shown where the output is a file, and on a terminal."""

import re
import time

import pytest

from loclin.run import display as module
from loclin.run.display import Display, distinct


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed, each line's time stamp checked and taken off."""
    printed = capsys.readouterr().out.splitlines()
    assert all(re.match(r"\[\d\d:\d\d:\d\d\] ", line) for line in printed)
    return [line[11:] for line in printed]


def test_a_file_gets_a_line_with_a_time_stamp_at_each_new_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Display(3) as display:
        display.open("one", kept=1)
        for stage, share in (("loading", 0.0), ("loading", 0.5), ("training it back", 0.25)):
            display.update(1, stage, share)
        display.close(1)
    assert lines(capsys)[:3] == [
        "one: 1 of 3 runs",
        "one: 1 of 3 runs, run 1: loading 0%",
        "one: 1 of 3 runs, run 1: training it back 25%",
    ]


def test_a_long_stage_is_shown_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", -1.0)
    with Display(1) as display:
        display.open("one", kept=0)
        display.update(0, "loading", 0.0)
        display.update(0, "loading", 0.5)
    assert lines(capsys)[-1] == "one: 0 of 1 runs, run 0: loading 50%"


def test_the_time_left_is_that_of_the_whole_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Display(5) as display:
        display.open("one", kept=2)
        clock[0] = 110.0
        display.close(2)
        display.open("two", kept=0)
        clock[0] = 400.0
        display.close(0)
        display.close(1)
    assert lines(capsys) == [
        "one: 2 of 5 runs",
        "one: 3 of 5 runs, about 20 s left",
        "two: 3 of 5 runs, about 20 s left",
        "two: 4 of 5 runs, about 2 min left",
        "two: 5 of 5 runs",
    ]


def test_every_note_is_printed_once_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = f"the same of [bold] and {'long ' * 30}end"
    with Display(1) as display:
        display.note(long, "another", long)
        display.note("another")
    assert capsys.readouterr().out.splitlines() == [long, "another"]
    assert distinct(["b", "a", "b"]) == ["b", "a"]


def test_a_terminal_shows_a_line_for_every_run_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Display(3) as display:
        display.open("one", kept=0)
        display.update(0, "loading", 0.5)
        display.update(1, "training", 0.5)
        display.close(1)
        shown = [task.description for task in display._bars.tasks]
        display.open("two", kept=0)  # run 0 could not go on
        left = [task.description for task in display._bars.tasks]
    assert shown == ["one", "  run 0"]
    assert left == ["two"]


def test_before_a_run_has_ended_the_time_left_is_what_was_expected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Display(1, expected=300.0) as display:
        display.open("one", kept=0)
        clock[0] = 220.0
        display.update(0, "working", 0.5)
        clock[0] = 500.0
        display.update(0, "still working", 0.5)
    assert lines(capsys) == [
        "one: 0 of 1 runs, about 5 min left",
        "one: 0 of 1 runs, about 3 min left, run 0: working 50%",
        "one: 0 of 1 runs, run 0: still working 50%",
    ]


def test_a_stage_that_says_nothing_has_a_line_every_so_often(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.5)
    with Display(1) as display:
        display.open("one", kept=0)
        display.update(0, "working", 0.0)
        time.sleep(1.3)
    assert lines(capsys)[-2:] == ["one: 0 of 1 runs, run 0: working 0%"] * 2
