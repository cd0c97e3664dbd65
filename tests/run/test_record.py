import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from loclin.errors import LoclinError
from loclin.run.record import Record
from loclin.run.rows import Part, Row
from tests.run.constant import CLAIM

PART = Part(
    rows=[Row(quantity="q", value=0.5, context={"run": 0, "k": 1})],
    arrays={"a/0": np.eye(2)},
    seconds=1.0,
)


def opened(folder: Path, **settings: object) -> Record:
    record = Record(folder)
    record.open_study("recovery", {"steps": 5, **settings}, device="cpu")
    return record


def test_rows_and_arrays_come_back_and_load_into_pandas(tmp_path: Path) -> None:
    record = opened(tmp_path / "run")
    rows = [
        Row(quantity="q", value=1 / 3, low=0.1, high=0.5, n=6, null=0.0, p=0.01, context={"k": 3}),
        Row(quantity="r", value=float("nan")),
    ]
    record.write_results("recovery", rows, {"b": np.arange(3), "a": np.eye(2)})
    back = Record(tmp_path / "run").results("recovery")
    assert back[0] == rows[0]
    assert back[1].value is None
    assert np.array_equal(record.arrays("recovery")["a"], np.eye(2))
    table = pd.read_json(tmp_path / "run" / "recovery" / "results.json")
    assert table.loc[0, "value"] == pytest.approx(1 / 3)
    assert table.loc[0, "context"] == {"k": 3}


def test_a_part_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    record = opened(tmp_path)
    assert record.part("recovery", "run-000") is None
    record._write_arrays(
        "recovery/parts/run-000.safetensors", PART.arrays
    )  # as if killed between the two files
    assert record.part("recovery", "run-000") is None
    record.write_part("recovery", "run-000", PART)
    back = record.part("recovery", "run-000")
    assert back is not None
    assert list(back.rows) == list(PART.rows)
    assert np.array_equal(back.arrays["a/0"], np.eye(2))


def test_claims_of_one_study_leave_those_of_another(tmp_path: Path) -> None:
    record = opened(tmp_path)
    record.write_claims("recovery", [CLAIM])
    record.write_claims("other", [CLAIM, CLAIM])
    record.write_claims("recovery", [CLAIM])
    assert [study for study, _ in record.claims()] == ["other", "other", "recovery"]
    assert record.claims()[0][1] == CLAIM


def test_every_session_is_noted(tmp_path: Path) -> None:
    for _ in range(2):
        record = opened(tmp_path)
        record.write_part("recovery", "run-000", PART)
        record.close_study("recovery", 2.0)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["studies"] == {"recovery": {"study": "recovery", "steps": 5}}
    assert len(run["sessions"]) == 2
    assert run["sessions"][0]["versions"]["torch"]
    assert run["sessions"][0]["part_seconds"] == {"run-000": 1.0}


def test_folders_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(LoclinError, match="expected a folder for the run, found the file"):
        Record(file)
    with pytest.raises(LoclinError, match="found other files in"):
        Record(tmp_path)
    opened(tmp_path / "run").write_part("recovery", "run-000", PART)
    with pytest.raises(
        LoclinError, match=r"another configuration of recovery \(steps is 5 there, 6 here\)"
    ):
        Record(tmp_path / "run").open_study("recovery", {"steps": 6}, device="cpu")


def test_a_configuration_with_which_nothing_was_finished_is_replaced(tmp_path: Path) -> None:
    opened(tmp_path)
    Record(tmp_path).open_study("recovery", {"steps": 6}, device="cpu")
    assert Record(tmp_path).run()["studies"] == {"recovery": {"study": "recovery", "steps": 6}}


def test_damaged_records_say_so(tmp_path: Path) -> None:
    record = opened(tmp_path)
    with pytest.raises(LoclinError, match="let it end first"):
        record.results("recovery")
    record.write_part("recovery", "run-000", PART)
    (tmp_path / "recovery/parts/run-000.safetensors").write_bytes(b"x")
    with pytest.raises(
        LoclinError,
        match=r"expected arrays in .*run-000.safetensors, found .*: delete it and run again",
    ):
        record.part("recovery", "run-000")
    (tmp_path / "recovery/parts/run-000.json").write_text("{")
    with pytest.raises(LoclinError, match=r"expected JSON in .*run-000.json"):
        record.part("recovery", "run-000")
    record.write_results("recovery", PART.rows, {})
    for name, text, line in (
        ("recovery/results.json", '[{"quantity": "q", "value": NaN}]', "found NaN, which no"),
        ("recovery/results.json", '[{"quantity": "q", "value": "1"}]', "found '1' in 'value'"),
        ("recovery/results.json", "3", "found a int"),
        ("claims.json", '[{"id": "a"}]', "found an entry without a right 'study'"),
        ("claims.json", '[{"study": "a"}]', "missing 14 required"),
        ("run.json", '{"format": 2, "name": "a"}', "found an entry without a right 'studies'"),
    ):
        (tmp_path / name).write_text(text)
        read = record.claims if "claims" in name else lambda: record.results("recovery")
        with pytest.raises(LoclinError, match=f"expected JSON in .* as loclin writes it, .*{line}"):
            record.run() if name == "run.json" else read()
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(LoclinError, match=r"record of format 2 .* found 99"):
        record.run()


def test_a_full_disk_loses_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = opened(tmp_path)
    record.write_part("recovery", "run-000", PART)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        LoclinError, match="No space left on device: make room or choose another --out"
    ):
        record.write_part("recovery", "run-001", PART)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_is_for_one_process_alone_and_goes_where_nothing_came_of_it(
    tmp_path: Path,
) -> None:
    record = Record(tmp_path / "run")
    with record.working():
        with pytest.raises(LoclinError, match="found another process working there"):  # noqa: SIM117
            with Record(tmp_path / "run").working():
                pass
        record.open_study("recovery", {}, device="cpu")
        record.write_text("report.html", "a page without results")
    assert not (tmp_path / "run").exists()
    with record.working():
        opened(tmp_path / "run").write_part("recovery", "run-000", PART)
    assert (tmp_path / "run").exists()
