from dataclasses import replace
from pathlib import Path

import pytest

from loclin.cli import main
from loclin.errors import LoclinError
from loclin.studies.trajectory.settings import TrajectorySettings

SETTINGS = TrajectorySettings(folder=Path("outputs/my_run"))


def test_the_record_is_named_after_the_runs_folder() -> None:
    assert SETTINGS.run_folder == Path("runs/trajectory-my_run")
    assert SETTINGS.entry == "trajectory-my-run"
    assert SETTINGS.fingerprint()["folder"] == Path("outputs/my_run").resolve()
    assert replace(SETTINGS, out=Path("here")).run_folder == Path("here")


def test_bad_settings_are_named_with_their_remedy() -> None:
    with pytest.raises(LoclinError, match=r"k of at least 1, found \[0, 2\]: change --ks"):
        replace(SETTINGS, ks=(0, 2)).checked()
    with pytest.raises(LoclinError, match="shuffles of at least 1, found 0: change --shuffles"):
        replace(SETTINGS, shuffles=0).checked()
    with pytest.raises(
        LoclinError, match=r"momentum from 0 to below 1, found 1\.0: change --momentum"
    ):
        replace(SETTINGS, momentum=1.0).checked()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["trajectory", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Reads the folders checkpoint-N of any Hugging Face Trainer or peft run" in text
    assert "--start" in text
