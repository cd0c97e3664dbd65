"""The commands as a user types them, in processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loclin.cli import main
from loclin.models import Problem

TINY = [
    "--profile",
    "smoke",
    "--seeds",
    "2",
    "--steps",
    "12",
    "--k",
    "3",
    "--ks",
    "1",
    "2",
    "3",
    "6",
    "--times",
    "1",
    "5",
    "12",
    "--gradients",
    "8",
    "--gradient-batch",
    "4",
    "--hessian-batch",
    "32",
    "--project-steps",
    "8",
    "--project-ks",
    "3",
    "6",
    "--task-vector-steps",
    "3",
    "--shuffles",
    "9",
]

ENTRY = "recovery-sequences-small"  # the study's name in a record


def loclin(
    *arguments: str | Path, where: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loclin", *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=where, env=env, check=False)


def start(*arguments: str | Path, where: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "loclin", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=where,
        start_new_session=True,
    )


@pytest.fixture(scope="session")
def finished(trained: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the recovery study with two workers."""
    where = tmp_path_factory.mktemp("runs")
    answer = loclin("recovery", *TINY, "--out", "whole", "--workers", "2", where=where)
    assert answer.returncode == 0, answer.stderr
    assert f"report: {where / 'whole' / 'report.html'}" in answer.stdout
    return where / "whole"


def record_of(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions or workers: everything but times and dates."""
    names = (f"{ENTRY}/results.json", f"{ENTRY}/arrays.safetensors", "claims.json")
    return {name: (folder / name).read_bytes() for name in names}


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_record(
    finished: Path, tmp_path: Path, how: signal.Signals
) -> None:
    command = ("recovery", *TINY, "--out", "cut", "--workers", "1")
    process = start(*command, where=tmp_path)
    first = tmp_path / "cut" / ENTRY / "parts" / "run-000.json"
    wait_for(first, process)
    os.kill(process.pid, how)
    _, errors = process.communicate(timeout=30)
    assert not (tmp_path / "cut" / "claims.json").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped; what was finished is kept: the same command goes on where it was" in errors
        assert "Traceback" not in errors
    kept = first.stat().st_mtime_ns
    assert loclin(*command, where=tmp_path).returncode == 0
    assert first.stat().st_mtime_ns == kept
    assert record_of(tmp_path / "cut") == record_of(finished)


def test_workers_end_with_a_parent_that_is_killed(trained: Problem, tmp_path: Path) -> None:
    process = start("recovery", *TINY, "--out", "killed", where=tmp_path)
    wait_for(tmp_path / "killed" / "run.json", process)
    time.sleep(3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    end = time.monotonic() + 20
    while any_alive(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any_alive(process.pid)


def any_alive(session: int) -> bool:
    """Whether a process of the session is left."""
    return (
        subprocess.run(["pgrep", "-s", str(session)], capture_output=True, check=False).returncode
        == 0
    )


def test_the_record_is_complete(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["studies"][ENTRY]["steps"] == 12
    assert run["notes"][ENTRY][0].startswith("sequences: 12000 read")
    assert {"versions", "commit", "device", "started", "seconds", "part_seconds"} <= set(
        run["sessions"][0]
    )
    claims = json.loads((finished / "claims.json").read_text())
    assert len(claims) == 11
    assert all(
        c["rule"]
        and (c["verdict"] == "not run") == (c["p"] is None)
        and c["verdict"] in ("supported", "refuted", "inconclusive", "not run")
        for c in claims
    )
    rows = json.loads((finished / ENTRY / "results.json").read_text())
    for quantity in ("prefix_capture", "future_capture"):
        contexts = [
            r["context"] for r in rows if r["quantity"] == quantity and "run" in r["context"]
        ]
        assert {(c["optimiser"], c["run"], c["k"]) for c in contexts} >= {
            ("sgd", 0, 3),
            ("adamw", 1, 6),
        }


class Links(HTMLParser):
    """Everything a page would fetch, and every script."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or ""
            for name, value in attrs
            if name in ("src", "href") and not (value or "").startswith("data:")
        ]
        self.found += ["script"] if tag == "script" else []


def test_the_report_is_rebuilt_from_the_record_alone_and_is_one_file(
    finished: Path, tmp_path: Path
) -> None:
    copy = tmp_path / finished.name
    shutil.copytree(finished, copy, ignore=shutil.ignore_patterns("parts", "figures", "report.*"))
    answer = loclin("report", copy, where=tmp_path)
    assert answer.returncode == 0, answer.stderr
    page = (copy / "report.html").read_text()
    assert page == (finished / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert links.found == []
    assert page.count("<figure>") == len(list((copy / "figures" / ENTRY).glob("*.svg"))) == 13
    assert page.index("<h2>Claims</h2>") < page.index(f'<p class="entry">{ENTRY}</p>')
    assert "| prefix-holds-most |" in (copy / "report.md").read_text()


def test_the_report_escapes_every_text(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    attack = "<script>alert(1)</script>"
    for name in ("run.json", "claims.json", f"{ENTRY}/results.json"):
        text = (copy / name).read_text()
        for harmless in (
            '"sequences-small"',
            "sequences: 12000",
            "another run's prefix",
            '"name": "whole"',
        ):
            wrapped = f'"{attack}"' if harmless.startswith('"') else attack
            text = text.replace(harmless, '"name": "<script>"' if "name" in harmless else wrapped)
        (copy / name).write_text(text)
    assert loclin("report", copy, where=tmp_path).returncode == 0
    assert "<script" not in (copy / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fly"],
            "unknown command 'fly': expected one of reproduce, recovery, spectrum, linearity, "
            "radius, krylov, search, steer, schedules, trajectory, report",
        ),
        (
            ["run", "search", "--model", "m"],
            "found `loclin run search`: it is `loclin search claims` now",
        ),
        (["run", "recovery"], "found `loclin run recovery`: it is `loclin recovery` now"),
        (["reproduce", "--studies", "fly"], "unknown study 'fly'"),
        (
            ["recovery", "--profile", "huge"],
            "unknown profile 'huge': expected one of smoke, standard, paper",
        ),
        (
            ["recovery", "--seeds", "0"],
            "expected at least one seed, found 0: give --seeds 5 or more",
        ),
        (["reproduce", "--seeds", "0"], "expected at least one seed, found 0"),
        (["recovery", "--k", "500"], "expected k from 1 to T = 200, found [500]"),
        (
            ["recovery", *TINY, "--task", "fly"],
            "unknown task 'fly': expected each, or one of copy",
        ),
        (
            ["recovery", *TINY, "--model", "fly"],
            "expected --data with the model 'fly', found none",
        ),
        (
            ["recovery", *TINY, "--model", "fly", "--data", "self"],
            "found that 'fly' is none of these",
        ),
        (
            ["recovery", *TINY, "--model", "fly", "--data", "none.jsonl"],
            "found nothing at none.jsonl",
        ),
        (
            ["recovery", *TINY, "--data", "none.jsonl"],
            "expected a file of task data, found nothing at none.jsonl",
        ),
        (
            ["recovery", *TINY, "--data", "broken.jsonl"],
            "broken.jsonl line 2: mend or remove it",
        ),
        (
            ["recovery", *TINY, "--space", "lora", "--targets", "fly"],
            "expected LoRA targets among c_attn, c_fc, c_proj",
        ),
        (
            ["reproduce", "--profile", "paper"],
            "run hf download Qwen/Qwen2.5-0.5B; hf download distilgpt2; hf download gpt2",
        ),
        (["trajectory", "nowhere"], "expected a folder of checkpoints, found none at nowhere"),
        (
            ["recovery", *TINY, "--batch", "9999"],
            "in the recovery split, found 200: give more data or lower --batch",
        ),
        (
            ["recovery", *TINY, "--sgd-lr", "1e30"],
            "expected a finite loss, found nan: lower the learning rate",
        ),
        (
            ["recovery", *TINY, "--out", "file"],
            "expected a folder for the run, found the file file",
        ),
        (
            ["recovery", *TINY, "--out", "other"],
            "another configuration of recovery-sequences-small (steps is 13 there, 12",
        ),
        (
            ["spectrum", "--counts", "8"],
            "expected at least two growing numbers of gradients, each 4 or more, found [8]",
        ),
        (
            ["krylov", "--ks", "5"],
            "expected --k to be one of --ks [5], found 10: add it there",
        ),
        (
            ["linearity", "--smallest", "2"],
            "expected 0 < smallest < largest, found 2.0 and 1.0",
        ),
        (
            ["radius", "--model", "sequences-small", "--direction", "nowhere"],
            "found nothing at nowhere: check the path",
        ),
        (
            ["radius", "--model", "sequences-small", "--direction", "gradient", "--task", "fly"],
            "unknown task 'fly'",
        ),
        (
            ["steer", "--model", "statements-small", "--layer", "two"],
            "expected auto or whole numbers, found --layer two",
        ),
        (
            ["steer", "apply", "none.safetensors", "--model", "statements-small", "--prompt", "a"],
            "found nothing at none.safetensors",
        ),
        (
            ["schedules", "--pairs", "swap"],
            "or two tasks such as copy+swap, found 'swap': change --pairs",
        ),
        (["schedules", "--schedules", "fly"], "found 'fly': change --schedules"),
        (
            ["schedules", "--schedules", "pcgrad"],
            "found 'pcgrad': did you mean 'PCGrad'? change --schedules",
        ),
        (
            ["schedules", "--model", "sequences-small", "--data", "sequences", "--tasks", "swap"],
            "or more, found swap: change --tasks",
        ),
        (
            ["schedules", "--model", "m", "--data", "none.jsonl"],
            "expected a file of task data, found nothing at none.jsonl",
        ),
        (["report", "nowhere"], "expected a run folder with a run.json, found none at nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    finished: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    shutil.copytree(finished, tmp_path / "other")
    run = tmp_path / "other" / "run.json"
    run.write_text(run.read_text().replace('"steps": 12', '"steps": 13'))
    if (
        "hf download" in message or "none of these" in message
    ):  # where the hub is, is read when its library is imported
        answer = loclin(
            *arguments, where=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub")
        )
        code, said = answer.returncode, answer.stderr
    # in this process, which need not import everything again; its workers' words are captured too
    else:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        code, said = stop.value.code, capfd.readouterr().err  # type: ignore[assignment]
    assert code == 2, said
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_fails_keeps_the_finished_ones(finished: Path, tmp_path: Path) -> None:
    """The second run of the resumed folder cannot write: the first stays, the message says what to
    do.
    """
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / ENTRY / "parts" / "run-001.json").unlink()
    (copy / ENTRY / "results.json").unlink()
    (copy / ENTRY / "results.json").mkdir()  # nothing can be renamed onto a folder, root or not
    answer = loclin("recovery", *TINY, "--out", "copy", where=tmp_path)
    assert answer.returncode == 2
    assert "expected to write" in answer.stderr
    assert "everything finished so far is kept" in answer.stderr
    assert (copy / ENTRY / "parts" / "run-001.json").exists()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, "-m", "loclin", "recovery", *TINY]
    environment = {**os.environ, "LOCLIN_CACHE": str(tmp_path / "file")}
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert answer.returncode == 2
    assert "choose another --out or $LOCLIN_CACHE; finished runs are kept" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_help_teaches_and_the_version_is_told() -> None:
    for arguments in ([], ["--help"]):
        answer = loclin(*arguments, where=Path())
        assert answer.returncode == 0
        assert "reproduce" in answer.stdout
    assert "Which local linear structure" in answer.stdout
    assert "--adamw-lr" in loclin("recovery", "--help", where=Path()).stdout
    assert "--from {labels,gradient,search}" in loclin("steer", "--help", where=Path()).stdout
    assert "--strength" in loclin("steer", "apply", "--help", where=Path()).stdout
    assert loclin("--version", where=Path()).stdout.startswith("loclin 0.")


@pytest.mark.parametrize("arguments", [["--help"], ["steer", "--help"]])
def test_a_reader_that_stops_listening_ends_it_without_a_word(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    answer = subprocess.run(
        [sys.executable, "-m", "loclin", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert answer.stderr == ""
    assert answer.returncode == 141
