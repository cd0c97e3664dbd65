"""`loclin reproduce` over several configurations, the studies themselves replaced: what one failure
costs the others.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from loclin import cli
from loclin.errors import LoclinError
from loclin.studies import STUDIES


def test_a_study_that_cannot_run_does_not_cost_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def study(name: str, config: Any, out: Path) -> None:
        ran.append(config.entry)
        if config.model == "sequences-small":
            raise LoclinError("expected one thing, found another: do that")

    reported: list[Path] = []
    monkeypatch.setattr(cli, "_study", study)
    monkeypatch.setattr(cli, "_write_report", reported.append)
    with pytest.raises(SystemExit) as stop:
        cli.main(["reproduce", "--profile", "smoke", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    asked = dict.fromkeys(STUDIES, ("sequences-small", "statements-small-lora")) | {
        "steering": ("statements-small",)
    }
    assert ran == [f"{s}-{model}" for s, models in asked.items() for model in models]
    assert reported == [tmp_path / "out"]
    each = [
        f"{s}-sequences-small: expected one thing, found another: do that"
        for s in STUDIES
        if s != "steering"
    ]
    assert capsys.readouterr().err == f"loclin: {'; '.join(each)}\n"


def test_the_paper_profile_lists_what_is_missing_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loclin.models.pretrained.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(cli, "_study", lambda *_: pytest.fail("started"))
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "--profile", "paper"])
    said = capsys.readouterr().err
    for name in ("Qwen/Qwen2.5-0.5B", "distilgpt2", "gpt2", "--repo-type dataset google/boolq"):
        assert f"hf download {name}" in said
    assert json.dumps(said).count("\\n") == 1
