"""The runner on a study of constant numbers, here and in workers. Ctrl-C is a SIGINT that the test
sends to itself.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.run.display import Display
from loclin.run.record import Record
from loclin.run.rows import Part
from loclin.run.runner import run_studies, run_study
from tests.rows import value, values
from tests.run import constant
from tests.run.constant import CLAIM, STUDY, Constant, times_done


@pytest.fixture
def settings(tmp_path: Path) -> Constant:
    (tmp_path / "done").mkdir()
    return Constant(folder=tmp_path / "done")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def run(out: Path, *every: Constant, **more: Any) -> None:
    run_studies([(STUDY, settings) for settings in every], out, **more)


def after_ctrl_c(work: Callable[..., Any]) -> Callable[..., Any]:
    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # the handler has run when this ends
        return work(*arguments)

    return interrupted


def closed(out: Path) -> bool:
    return "ended" in json.loads((out / "run.json").read_text())["sessions"][-1]


def test_every_run_is_measured_then_summed_up_and_decided(settings: Constant, out: Path) -> None:
    run(out, replace(settings, in_process=False))
    record = Record(out)
    rows = record.results("constant")
    assert [r.context.get("run") for r in rows if r.quantity == "q"] == [0, 1, None]
    assert value(rows, "recommended") == 2
    assert list(record.arrays("constant")) == ["a/0", "a/1"]
    assert record.claims() == [("constant", CLAIM)]
    assert record.run()["notes"] == {"constant": ["of all", "of run 0", "of run 1"]}
    assert closed(out)


def test_a_study_in_this_process_may_keep_work_and_has_no_summaries(
    settings: Constant, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    measure = constant.measure

    def watched(settings: Constant, number: int, session: Any) -> Part:
        seen.append((session.record.folder, session.display is not None))
        session.note("said at once")
        return measure(settings, number, session)

    monkeypatch.setattr(constant, "measure", watched)
    run(out, replace(settings, runs=1))
    assert seen == [(out, True)]
    assert values(Record(out).results("constant"), "q") == [0.5]


@pytest.mark.parametrize("in_process", [True, False])
def test_a_finished_run_is_never_done_again(
    settings: Constant, out: Path, in_process: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(settings, in_process=in_process)
    with pytest.raises(LoclinError, match="expected a score, found none: try again"):
        run(out, replace(settings, fails=1))
    assert not closed(out)
    capsys.readouterr()
    run(out, settings)
    printed = capsys.readouterr().out
    assert times_done(settings) == {"run 0": 1, "run 1": 1}
    assert printed.count("of all") == printed.count("of run 0") == printed.count("of run 1") == 1
    assert printed.index("of run 0") < printed.index("working")  # before others start
    run(out, settings)
    assert times_done(settings) == {"run 0": 1, "run 1": 1}
    run(out, replace(settings, kept=False))
    assert times_done(settings) == {"run 0": 2, "run 1": 2}


def test_other_settings_are_refused_and_nothing_is_lost(settings: Constant, out: Path) -> None:
    run(out, settings)
    before = (out / "constant" / "results.json").read_bytes()
    with pytest.raises(LoclinError, match=r"another configuration of constant \(value is 0.5"):
        run(out, replace(settings, value=0.6))
    assert (out / "constant" / "results.json").read_bytes() == before


@pytest.mark.parametrize("change", [{"fails": 0}, {"device": "cuda"}])
def test_a_command_that_finishes_nothing_leaves_no_folder(
    settings: Constant, out: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(LoclinError):
        run(out, replace(settings, **change))
    assert not out.exists()


def test_a_worker_that_dies_costs_no_finished_run(settings: Constant, out: Path) -> None:
    deadly = replace(settings, in_process=False, deadly=1)
    with pytest.raises(LoclinError, match="expected workers that live, found 1 dead"):
        run(out, deadly)
    run(out, replace(deadly, deadly=-1))
    assert times_done(settings) == {"run 0": 1, "run 1": 1}


def test_a_study_that_cannot_go_on_costs_no_other(settings: Constant, out: Path) -> None:
    broken = replace(settings, entry="broken", fails=1)
    drawn: list[Sequence[str]] = []
    with pytest.raises(LoclinError, match=r"^broken: expected a score, found none: try again$"):
        run(out, broken, settings, draw=drawn.append)
    assert [entry for entry, _ in Record(out).claims()] == ["constant"]
    assert drawn == [["broken", "constant"], ["constant"], ()]


@pytest.mark.parametrize("error", [MemoryError("of it"), RuntimeError("other")])
def test_too_little_memory_is_one_line(
    settings: Constant, out: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch's."""

    raised = OutOfMemoryError("of it") if isinstance(error, RuntimeError) else error

    def fails(*_: Any) -> Part:
        raise raised

    monkeypatch.setattr(constant, "measure", fails)
    with pytest.raises(
        LoclinError, match=r"room for the model .* on cpu, found too little \(of it"
    ):
        run(out, settings)


def decided(settings: Constant, out: Path) -> None:
    with Record(out).working(), Display(2) as display:
        run_study(STUDY, settings, Record(out), display)


def test_ctrl_c_before_the_verdicts_leaves_none(
    settings: Constant, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constant, "decide", after_ctrl_c(constant.decide))
    with pytest.raises(KeyboardInterrupt):
        decided(settings, out)
    assert not (out / "claims.json").exists()
    assert not closed(out)


def test_ctrl_c_from_the_verdicts_on_comes_when_the_record_is_closed(
    settings: Constant, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Record, "write_claims", after_ctrl_c(Record.write_claims))
    with pytest.raises(KeyboardInterrupt):
        decided(settings, out)
    assert (out / "claims.json").exists()
    assert closed(out)
