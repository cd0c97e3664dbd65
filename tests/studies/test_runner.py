"""A study of constant numbers, its runs done in this process."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loclin.record import Claim, Part, Record, Row
from loclin.studies import runner

CLAIM = Claim(
    id="c",
    statement="s",
    setting="m",
    paper="1",
    measured="x",
    value=0.5,
    low=None,
    high=None,
    n=1,
    null="0",
    p=None,
    p_holm=None,
    rule="r",
    verdict="inconclusive",
)


@dataclass(frozen=True)
class Config:
    entry: str = "constant"
    device_map: str | None = None
    seeds: int = 2
    workers: int = 1

    def checked(self) -> "Config":
        return self


def results(
    module: str, config: Config, runs: list[int], **settings: Any
) -> Iterator[tuple[int, Part]]:
    for run in runs:
        rows = [Row(quantity="q", value=0.5, context={"run": run})]
        yield run, Part(rows=rows, arrays={}, notes=("of all", f"of run {run}"))


@pytest.fixture(autouse=True)
def study(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    claims = SimpleNamespace(decide=lambda config, rows: [CLAIM])
    experiment = SimpleNamespace(device=lambda config: "cpu")
    monkeypatch.setitem(sys.modules, "loclin.studies.constant.claims", claims)
    monkeypatch.setitem(sys.modules, "loclin.studies.constant.experiment", experiment)
    monkeypatch.setattr(runner, "STUDIES", ("constant",))
    monkeypatch.setattr(runner, "side_by_side", results)
    return claims


def after_ctrl_c(work: Callable[..., Any]) -> Callable[..., Any]:
    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # the handler has run when this ends
        return work(*arguments)

    return interrupted


def closed(folder: Path) -> bool:
    return "ended" in json.loads((folder / "run.json").read_text())["sessions"][-1]


def test_notes_of_finished_runs_are_told_before_others_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run_study("constant", Config(), out=tmp_path)
    assert capsys.readouterr().out == ""  # the fake tells nothing: notes are told with the runs
    (tmp_path / "constant" / "parts" / "run-000.json").unlink()

    def seen(*arguments: Any, told: list[str], **settings: Any) -> Iterator[tuple[int, Part]]:
        assert capsys.readouterr().out == "of all\nof run 1\n"
        assert told == ["of all", "of run 1"]
        return results(*arguments, **settings)

    monkeypatch.setattr(runner, "side_by_side", seen)
    runner.run_study("constant", Config(), out=tmp_path)
    assert Record(tmp_path).run()["notes"] == {"constant": ["of all", "of run 0", "of run 1"]}


def test_ctrl_c_before_the_verdicts_leaves_none(tmp_path: Path, study: SimpleNamespace) -> None:
    study.decide = after_ctrl_c(study.decide)
    with pytest.raises(KeyboardInterrupt):
        runner.run_study("constant", Config(), out=tmp_path)
    assert not (tmp_path / "claims.json").exists()
    assert not closed(tmp_path)


def test_ctrl_c_from_the_verdicts_on_comes_when_the_record_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Record.write_claims
    monkeypatch.setattr(Record, "write_claims", after_ctrl_c(write))
    with pytest.raises(KeyboardInterrupt):
        runner.run_study("constant", Config(), out=tmp_path)
    assert (tmp_path / "claims.json").exists()
    assert closed(tmp_path)
