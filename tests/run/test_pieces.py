"""Pieces of a run: kept about twice a minute, gone when the run has ended, and the same whether it
was killed or not.
"""

from pathlib import Path

import numpy as np
import pytest

from loclin.run import pieces as module
from loclin.run.pieces import Pieces
from loclin.run.record import Record
from loclin.run.rows import Part, Row

PART = Part(rows=[Row(quantity="q", value=0.1, context={"run": 0})], arrays={"a": np.eye(2)})


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "out")


def pieces(record: Record) -> Pieces:
    return Pieces(record, "study", "run-000")


def never() -> Part:
    raise AssertionError("made again")


def test_pieces_are_written_when_enough_time_has_passed(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    first = pieces(record)
    assert first("one", lambda: PART) is PART
    assert first("one", never) is PART
    assert record.rows_so_far("study") == []
    first("at once", lambda: PART, now=True)
    assert len(record.rows_so_far("study")) == 2  # with what waited
    clock[0] += module.EVERY
    first("two of θ/x", lambda: PART)
    assert len(record.rows_so_far("study")) == 3
    again = pieces(record)("two of θ/x", never)
    assert list(again.rows) == list(PART.rows)
    assert np.array_equal(again.arrays["a"], np.eye(2))


def test_a_finished_run_takes_the_place_of_its_pieces(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    pieces(record).arrays("one", lambda: {"x": 3.5})
    assert pieces(record).arrays("one", dict)["x"] == 3.5
    record.write_part("study", "run-000", PART)
    assert not (record.folder / "study/parts/run-000").exists()
    assert record.rows_so_far("study") == PART.rows


def test_a_piece_that_would_fill_the_disk_is_made_again(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setattr(module, "MOST", 8)
    pieces(record)("large", lambda: PART)
    assert record.rows_so_far("study") == []
