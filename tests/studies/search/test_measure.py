"""`loclin search` from the command line to the record: what it leaves, that it goes on, and that
test is asked once.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loclin.models import Problem, load
from loclin.models.direction import read_direction
from loclin.models.evaluation import EvalSet
from loclin.run.record import LOCK, Record
from loclin.run.rows import Row
from loclin.search import ledger
from loclin.search.splits import PARTS, askable
from loclin.tasks.example import dealt
from tests.studies.search.command import ENTRY, GAIN, command, refused, search

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def lines(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines())


def one(rows: list[Row], quantity: str, **context: Any) -> Row:
    (found,) = (
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    )
    return found


def kept(folder: Path, name: str) -> dict[str, Any]:
    """A file of the search's own."""
    return dict(json.loads((folder / ENTRY / name).read_text()))


def test_a_search_leaves_ledger_forecast_choice_test_and_page(
    finished: tuple[Path, str],
) -> None:
    out, printed = finished
    settings, outcomes = ledger.read(out / "ledger.jsonl")
    assert [o.candidate.index for o in outcomes] == list(range(24))
    assert (settings["n"], settings["examples"]) == (12, 24)
    flat = " ".join(printed.split())
    for words in (
        "At the model's own weights ‖g‖ =",
        "σ = 0.005 (‖δ‖/‖θ‖ = ",
        "The law holds well below σ =",
        "A gain of 0.001 on other examples takes",
        "best candidate",
        "vote of the best",
        "vote of random candidates",
        "vote of the model sampled",
        "is left on examples that had no part",
        "of 12 candidates by loss gained",
        "; the law says",
        "pass@12 on the select examples",
        "an oracle",
        f"report: {out / 'report.html'}",
    ):
        assert words in flat, words
    assert flat.index("The law holds") < flat.index("scoring candidates")  # before it begins
    rows = Record(out).results(ENTRY)
    losses = np.array([o.loss for o in outcomes if o.candidate.sigma == 0.005])
    own = one(rows, "loss").value
    assert own is not None
    best = one(rows, "best_of_n", search=0, sigma=0.005, n=12)
    assert best.value == pytest.approx(own - losses.min(), abs=1e-6)
    single = one(rows, "best_of_n", search=0, sigma=0.005, n=1)
    assert single.value == pytest.approx(own - losses.mean(), abs=1e-6)
    assert best.null == pytest.approx(one(rows, "expected_gain", sigma=0.005, on="select").value)
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 6
    assert "What did the law expect?" in page
    locked, tested, ready = (kept(out, f"{n}.json") for n in ("locked", "test", "prepared"))
    assert locked["hash"] == tested["lock"]
    assert locked["test"] == ready["splits"]["test"]


@pytest.mark.parametrize("more", [[], ["--space", "lora"], ["--space", "prefix:2"]])
def test_one_worker_loads_the_model_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    loads: list[str] = []
    plain = AutoModelForCausalLM.from_pretrained

    def counted(name: str, *rest: Any, **options: Any) -> Any:
        loads.append(name)
        return plain(name, *rest, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    fewer = ("--n", "4", "--sigma", "0.01", "--select", "8", "--validate", "8", "--test", "8")
    search(model, tmp_path / "run", *fewer, *more)
    assert loads == [str(model)]


def test_the_winner_s_scores_are_those_of_its_exported_weights(
    finished: tuple[Path, str], model: Path
) -> None:
    """A slow twin: the delta is added by hand, and the examples are asked one by one."""
    out, _ = finished
    problem = load(str(model), data="sequences-small")
    every = askable(problem.examples, task="swap", without=())
    sizes = {"select": 24, "validate": 16, "test": 32}
    splits = dealt(every, sizes, seed=0, purpose="search split")
    path = out / "best" / "delta.safetensors"
    assert read_direction(str(path), problem.model).tensors.keys() <= set(
        dict(problem.model.named_parameters())
    )
    rows, before = Record(out).results(ENTRY), {}
    for name in PARTS:
        before[name] = [float(EvalSet.of(problem, [e]).answers()[1]) for e in splits[name]]
    with torch.no_grad():
        for name, change in load_file(path).items():
            problem.model.get_parameter(name).add_(change)
    for name in PARTS:
        row = one(rows, "winner", search=0, split=name)
        right = [float(EvalSet.of(problem, [e]).answers()[1]) for e in splits[name]]
        assert row.value == pytest.approx(np.mean(right))
        assert row.null == pytest.approx(np.mean(before[name]))
    gain = one(rows, "gain", search=0, arm="best candidate")
    assert gain.value == pytest.approx(np.mean(right) - np.mean(before["test"]))
    outcomes = ledger.read(out / "ledger.jsonl")[1]
    choice = kept(out, "locked.json")["choice"]
    pool = sorted(outcomes, key=lambda o: (-o.score, o.loss, o.candidate.index))
    firsts = [
        [o.candidate.index for o in pool if s in (None, o.candidate.sigma)][:3]
        for s in (None, 0.005, 0.03)
    ]
    assert choice["best"]["index"] in {i for first in firsts for i in first}
    assert [m["index"] for m in choice["members"]] in [
        first[:k] for first in firsts for k in (1, 3)
    ]


def test_the_same_command_again_reports_and_asks_nothing(
    finished: tuple[Path, str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, printed = finished
    files = [out / "ledger.jsonl", out / "best/delta.safetensors"]
    files += [out / ENTRY / "test.json", out / ENTRY / "locked.json"]
    times = [p.stat().st_mtime_ns for p in files]
    monkeypatch.setattr("loclin.studies.search.measure.load", None)  # nothing is loaded
    again = search(model, out, *GAIN)
    assert [p.stat().st_mtime_ns for p in files] == times
    title = "What was found?"
    assert again[again.index(title) :] == printed[printed.index(title) :]


def stopped_after(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    """Ctrl-C when so many groups are in the ledger."""
    append, count = ledger.Ledger.append, iter(range(1000))

    def until(self: ledger.Ledger, outcomes: Any) -> None:
        append(self, outcomes)
        if next(count) + 1 == groups:
            raise KeyboardInterrupt

    monkeypatch.setattr(ledger.Ledger, "append", until)


def test_a_search_that_is_stopped_goes_on_and_ends_with_the_same_record(
    finished: tuple[Path, str],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, cut = finished[0], tmp_path / "cut"
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        with pytest.raises(SystemExit) as end:
            search(model, cut, *GAIN)
    assert end.value.code == 130
    assert "the same command goes on where it was" in capsys.readouterr().err
    assert len(lines(cut / "ledger.jsonl")) == 1 + 8
    assert not (cut / ENTRY / "locked.json").exists()
    with (cut / "ledger.jsonl").open("a") as file:
        file.write('{"index": 8, "seed": 1')  # as a kill -9 leaves it
    monkeypatch.setattr("loclin.studies.search.prepared.forecast", None)  # it is kept
    printed = search(
        model, cut, *GAIN, "--candidate-group", "5"
    )  # the record does not depend on it
    assert "cut off an unfinished last line of 22 bytes" in " ".join(printed.split())
    assert lines(cut / "ledger.jsonl") == lines(out / "ledger.jsonl")
    for name in ("results.json", "locked.json", "test.json", "../ensemble.json"):
        assert (cut / ENTRY / name).read_bytes() == (out / ENTRY / name).read_bytes(), name
    first, second = (load_file(where / "best" / "delta.safetensors") for where in (cut, out))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_two_processes_write_the_record_of_one(
    finished: tuple[Path, str], model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    search(model, out, *GAIN, "--workers", "2", "--candidate-group", "3")
    assert lines(out / "ledger.jsonl") == lines(finished[0] / "ledger.jsonl")
    assert Record(out).results(ENTRY) == Record(finished[0]).results(ENTRY)


def test_one_search_at_a_time_in_a_folder(
    finished: tuple[Path, str], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    with FileLock(out / LOCK):
        error = refused(capsys, *command(model, out, *GAIN))
    assert "found another process working there: wait for it" in error


def test_a_ledger_of_another_model_or_other_settings_is_refused_and_stays_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mine = tmp_path / "run", tmp_path / "model"
    shutil.copytree(model, mine)
    words = command(mine, out, "--no-forecast")
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        with pytest.raises(SystemExit):
            search(mine, out, "--no-forecast")
    before = (out / "ledger.jsonl").read_bytes()
    assert (
        f"belongs to another configuration of {ENTRY} (n is 12 there, 14 here): choose another "
        "--out" in refused(capsys, *words, "--n", "14")
    )
    problem = load(str(mine), data="sequences-small")
    with torch.no_grad():
        next(problem.model.parameters()).mul_(1.01)
    problem.model.save_pretrained(str(mine))
    error = refused(capsys, *words)
    assert "expected the model and data of the search, found others (searched weights is " in error
    assert (out / "ledger.jsonl").read_bytes() == before


def test_several_searches_share_splits_and_have_intervals_over_searches(
    twice: tuple[Path, str], model: Path
) -> None:
    out, printed = twice
    first, second = (ledger.read(out / name)[1] for name in ("ledger.jsonl", "ledger-1.jsonl"))
    assert not {o.candidate.seed for o in first} & {o.candidate.seed for o in second}
    assert [
        (o.candidate.seed == first[i - 1].candidate.seed, o.candidate.sign)
        for i, o in enumerate(first)
        if i % 2
    ] == [(True, -1)] * 4
    entry = f"{ENTRY}-lora"
    locks = [json.loads((out / entry / n).read_text()) for n in ("locked.json", "locked-1.json")]
    assert locks[0]["test"] == locks[1]["test"]
    rows = Record(out).results(entry)
    over = next(
        r
        for r in rows
        if r.quantity == "gain"
        and "search" not in r.context
        and r.context["arm"] == "best candidate"
    )
    each = [one(rows, "gain", search=s, arm="best candidate").value for s in (0, 1)]
    assert over.n == 2
    assert over.value == pytest.approx(np.mean([e for e in each if e is not None]))
    assert over.low is not None
    assert over.high is not None
    assert over.value == pytest.approx((over.low + over.high) / 2)
    assert "Intervals are 95 % over 2 searches" in " ".join(printed.split())
    assert "the law says" not in printed
    network = load(str(model), data="sequences-small").model
    for name in ("best", "best-1"):
        assert len(read_direction(str(out / name), network).tensors) > 0
    assert (out / "best" / "adapter_config.json").exists()


def test_candidates_in_the_span_of_a_prefix_and_losses_that_are_not_finite(
    model: Path, tmp_path: Path
) -> None:
    out, entry = tmp_path / "run", f"{ENTRY}-prefix-2"
    more = ["--space", "prefix:2", "--sigma", "0.05", "1e30", "--n", "4", "--probes", "2"]
    flat = " ".join(search(model, out, *more).split())
    rows = Record(out).results(entry)
    assert one(rows, "dimension").value == 2
    assert one(rows, "not_finite", search=0, sigma=1e30).value == 4
    assert one(rows, "not_finite", search=0, sigma=0.05).value == 0
    choice = json.loads((out / entry / "locked.json").read_text())["choice"]
    assert {c["sigma"] for c in (choice["best"], *choice["members"])} == {0.05}
    assert "σ = 1e+30: 4 candidates have a loss that is not finite" in flat
    assert "of no use at σ = " in flat


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--sigma 1e-30", "a σ that moves a weight, found 1e-30, which float32 rounds away"),
        ("--sigma 1e-20 --dtype bfloat16", "which bfloat16 rounds away everywhere: raise --sigma"),
        ("--test 100000", "found 2000 in 2000 groups: give more data"),
        ("--task divide", "unknown task 'divide': expected one of copy, "),
        (
            "--noise uniform",
            "expected noise gaussian, rademacher, lowrank:R with a rank R of at least 1, or",
        ),
        ("--space nowhere", "a pattern that matches a trainable tensor, found 'nowhere'"),
        ("--space prefix:x", "prefix:K with K of at least 1, found --space prefix:x"),
        ("--space prefix:2 --noise tied", "gaussian noise inside a basis, found tied"),
        ("--space lora --adapter nowhere", "with adapter_config.json in nowhere, found none"),
        ("--model nowhere/at/all", "a model folder, found nothing at nowhere/at/all"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_no_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    words = command(model, tmp_path / "run", "--no-forecast", *change.split())
    assert message in refused(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_data_that_repeat_a_prompt_in_two_groups_are_refused(
    trained: Problem, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    words = [w for w in trained.tokenizer.get_vocab() if w not in ("<pad>", "=")][:6]
    path = tmp_path / "twice.jsonl"
    with path.open("w") as file:
        for i in range(120):
            prompt = " ".join(words[i // 6**p % 6] for p in range(4)) + " ="
            for task in ("one", "two"):
                record = {
                    "prompt": prompt,
                    "answer": f" {words[i % 5]}",
                    "group": f"{task} {i}",
                    "task": task,
                }
                file.write(json.dumps(record) + "\n")
    sizes = ["--select", "40", "--validate", "40", "--test", "60", "--no-forecast"]
    words = [*command(model, tmp_path / "run", *sizes), "--data", str(path)]
    error = refused(capsys, *words, "--task", "one")
    assert "found 120 in 120 groups: give more data" in error
    both = [word for word in words if word not in ("--task", "swap")]
    assert "expected splits that share no prompt, found " in refused(capsys, *both)


def test_ray_that_is_missing_is_named_and_the_ledger_stays(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "ray" else plain(name, *more),
    )
    out = tmp_path / "run"
    error = refused(capsys, *command(model, out, "--no-forecast", "--ray", "local"))
    assert "pip install 'loclin[ray]'" in error
    assert len(lines(out / "ledger.jsonl")) == 1
