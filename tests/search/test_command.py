"""`loclin search` from the command line to the record: what it leaves, that it goes on, and that
test is asked once.
"""

import copy
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from loclin.cli import main
from loclin.integrations.direction import Tensors, read_direction
from loclin.models import Problem, load
from loclin.models.exam import Exam
from loclin.parameters import ParameterSpace
from loclin.record import Record, Row
from loclin.search import ledger
from loclin.search.splits import PARTS, askable, divided

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

TINY = [
    "--data",
    "sequences-small",
    "--task",
    "swap",
    "--n",
    "12",
    "--sigma",
    "5e-3",
    "3e-2",
    "--select",
    "24",
    "--validate",
    "16",
    "--test",
    "32",
    "--k",
    "1",
    "3",
    "--probes",
    "2",
    "--workers",
    "1",
    "--group",
    "4",
    "--batched",
    "no",
]


@pytest.fixture(scope="module")
def model(trained: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model off its minimum, as a folder: there is something to find."""
    place = tmp_path_factory.mktemp("search") / "model"
    moved = copy.deepcopy(trained.model)
    space = ParameterSpace(moved)
    space.add(space.noise(seed=4), scale=0.06)
    moved.save_pretrained(str(place))
    trained.tokenizer.save_pretrained(str(place))
    return place


def search(model: Path, out: Path, *more: str) -> str:
    """What the command prints."""
    said = io.StringIO()
    with redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "140")
        main(["search", "--model", str(model), *TINY, "--out", str(out), *more])
    return said.getvalue()


@pytest.fixture(scope="module")
def finished(model: Path) -> tuple[Path, str]:
    out = model.parent / "run"
    return out, search(model, out, "--wish", "0.001")


def lines(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines())


def one(rows: list[Row], quantity: str, **context: Any) -> Row:
    (found,) = (
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    )
    return found


def test_a_search_leaves_ledger_forecast_choice_test_and_page(
    finished: tuple[Path, str], model: Path
) -> None:
    out, said = finished
    settings, outcomes = ledger.read(out / "ledger.jsonl")
    assert [o.candidate.index for o in outcomes] == list(range(24))
    assert (settings["n"], settings["examples"], settings["batched"]) == (12, 24, False)
    flat = " ".join(said.split())
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
    rows = Record(out).results("search")
    gains = np.array([o.loss for o in outcomes if o.candidate.sigma == 0.005])
    own = one(rows, "loss").value
    assert own is not None
    best = one(rows, "best_of_n", search=0, sigma=0.005, n=12)
    assert best.value == pytest.approx(own - gains.min(), abs=1e-6)
    assert one(rows, "best_of_n", search=0, sigma=0.005, n=1).value == pytest.approx(
        own - gains.mean(), abs=1e-6
    )
    assert best.null == pytest.approx(one(rows, "expected_gain", sigma=0.005, on="select").value)
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 6
    assert "Was it foretold?" in page
    held = [
        json.loads((out / "search" / f"{name}.json").read_text())
        for name in ("locked", "test", "prepared")
    ]
    assert held[0]["hash"] == held[1]["lock"]
    assert held[0]["test"] == held[2]["splits"]["test"]


def test_the_winner_s_scores_are_those_of_its_exported_weights(
    finished: tuple[Path, str], model: Path
) -> None:
    """A slow twin: the delta is added to the model by hand, and the examples are asked one by one."""
    out, _ = finished
    problem = load(str(model), data="sequences-small")
    every = askable(problem.examples, task="swap", without=())
    splits = divided(every, {"select": 24, "validate": 16, "test": 32}, seed=0)
    path = out / "best" / "delta.safetensors"
    assert read_direction(str(path), Tensors.of(problem.model)).tensors.keys() <= set(
        dict(problem.model.named_parameters())
    )
    rows, before = Record(out).results("search"), {}
    for name in PARTS:
        before[name] = [float(Exam.of(problem, [e]).answers()[1]) for e in getattr(splits, name)]
    with torch.no_grad():
        for name, change in load_file(path).items():
            problem.model.get_parameter(name).add_(change)
    for name in PARTS:
        row = one(rows, "winner", search=0, split=name)
        right = [float(Exam.of(problem, [e]).answers()[1]) for e in getattr(splits, name)]
        assert row.value == pytest.approx(np.mean(right))
        assert row.null == pytest.approx(np.mean(before[name]))
    gain = one(rows, "gain", search=0, arm="best candidate")
    assert gain.value == pytest.approx(np.mean(right) - np.mean(before["test"]))
    outcomes = ledger.read(out / "ledger.jsonl")[1]
    choice = json.loads((out / "search" / "locked.json").read_text())["choice"]
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
    out, said = finished
    kept = [
        out / "ledger.jsonl",
        out / "search/test.json",
        out / "search/locked.json",
        out / "best/delta.safetensors",
    ]
    times = [p.stat().st_mtime_ns for p in kept]
    monkeypatch.setattr("loclin.search.command.load", None)  # nothing is loaded
    again = search(model, out, "--wish", "0.001")
    assert [p.stat().st_mtime_ns for p in kept] == times
    assert again[again.index("answers on test") :] == said[said.index("answers on test") :]


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
            search(model, cut, "--wish", "0.001")
    assert end.value.code == 130
    assert "the same command goes on where it was" in capsys.readouterr().err
    assert len(lines(cut / "ledger.jsonl")) == 1 + 8
    assert not (cut / "search" / "locked.json").exists()
    with (cut / "ledger.jsonl").open("a") as file:
        file.write('{"index": 8, "seed": 1')  # as a kill -9 leaves it
    monkeypatch.setattr("loclin.search.prepared.foretold", None)  # the forecast is kept
    said = search(model, cut, "--wish", "0.001")
    assert "cut off an unfinished last line of 22 bytes" in " ".join(said.split())
    assert lines(cut / "ledger.jsonl") == lines(out / "ledger.jsonl")
    for name in (
        "search/results.json",
        "search/locked.json",
        "search/test.json",
        "ensemble.json",
    ):
        assert (cut / name).read_bytes() == (out / name).read_bytes(), name
    first, second = (load_file(where / "best" / "delta.safetensors") for where in (cut, out))
    assert all(torch.equal(first[name], second[name]) for name in second)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("loclin: ")
    assert error.count("\n") == 1
    return error


def test_one_search_at_a_time_in_a_folder_and_an_ended_one_says_so(
    finished: tuple[Path, str], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    with FileLock(out / ".search.lock"):
        command = ["search", "--model", str(model), *TINY, "--out", str(out), "--wish", "0.001"]
        assert "found another process searching there: wait for it" in refused(capsys, *command)
    assert "ended before: this is its record; model and data are not read again" in search(
        model, out, "--wish", "0.001"
    )


def test_a_ledger_of_another_model_or_other_settings_is_refused_and_stays_whole(
    finished: tuple[Path, str],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, mine = tmp_path / "run", tmp_path / "model"
    shutil.copytree(model, mine)
    command = ["search", "--model", str(mine), *TINY, "--no-forecast", "--out", str(out)]
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        with pytest.raises(SystemExit):
            main(command)
    before = (out / "ledger.jsonl").read_bytes()
    capsys.readouterr()
    said = refused(capsys, *command, "--n", "14")
    assert (
        "belongs to another configuration of search (n is 12 there, 14 here): choose another --out"
        in said
    )
    problem = load(str(mine), data="sequences-small")
    with torch.no_grad():
        next(problem.model.parameters()).mul_(1.01)
    problem.model.save_pretrained(str(mine))
    said = refused(capsys, *command)
    assert "expected the model and data of the search, found others (searched weights is " in said
    assert (out / "ledger.jsonl").read_bytes() == before


def test_a_choice_that_was_changed_after_it_was_locked_is_refused(
    finished: tuple[Path, str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    (out / "search" / "results.json").unlink()
    path = out / "search" / "locked.json"
    held = json.loads(path.read_text())
    held["choice"]["best"]["index"] = (held["choice"]["best"]["index"] + 1) % 24
    path.write_text(json.dumps(held))
    command = ["search", "--model", str(model), *TINY, "--wish", "0.001", "--out", str(out)]
    assert "expected the choice that was locked before test was asked, found " in refused(
        capsys, *command
    )
    shutil.copy(finished[0] / "search" / "locked.json", path)
    answers = json.loads((out / "search" / "test.json").read_text())
    (out / "search" / "test.json").write_text(json.dumps(answers | {"lock": "other"}))
    assert "found those of another: test is asked once" in refused(capsys, *command)


@pytest.fixture(scope="module")
def twice(model: Path) -> tuple[Path, str]:
    """Two searches over a new adapter's factors, in antithetic pairs, without a forecast."""
    out = model.parent / "twice"
    more = (
        "--space",
        "lora",
        "--rank",
        "2",
        "--seeds",
        "2",
        "--antithetic",
        "--no-forecast",
        "--sigma",
        "0.05",
        "--n",
        "8",
    )
    return out, search(model, out, *more, "--batched", "yes")


def test_several_searches_share_splits_and_have_intervals_over_searches(
    twice: tuple[Path, str], model: Path
) -> None:
    out, said = twice
    first, second = (ledger.read(out / name)[1] for name in ("ledger.jsonl", "ledger-1.jsonl"))
    assert not {o.candidate.seed for o in first} & {o.candidate.seed for o in second}
    assert [
        (o.candidate.seed == first[i - 1].candidate.seed, o.candidate.sign)
        for i, o in enumerate(first)
        if i % 2
    ] == [(True, -1)] * 4
    locks = [
        json.loads((out / "search" / name).read_text()) for name in ("locked.json", "locked-1.json")
    ]
    assert locks[0]["test"] == locks[1]["test"]
    rows = Record(out).results("search")
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
    assert "Intervals are 95 % over 2 searches" in " ".join(said.split())
    assert "the law says" not in said
    network = load(str(model), data="sequences-small").model
    for name in ("best", "best-1"):
        assert len(read_direction(str(out / name), Tensors.of(network)).tensors) > 0
    text = f"{out / 'best'}"
    assert (Path(text) / "adapter_config.json").exists()


def test_candidates_in_the_span_of_a_prefix_and_losses_that_are_not_finite(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    said = search(
        model,
        out,
        "--space",
        "prefix:2",
        "--sigma",
        "0.05",
        "1e30",
        "--n",
        "4",
        "--probes",
        "2",
        "--batched",
        "auto",
    )
    rows = Record(out).results("search")
    assert one(rows, "dimension").value == 2
    assert one(rows, "not_finite", search=0, sigma=1e30).value == 4
    assert one(rows, "not_finite", search=0, sigma=0.05).value == 0
    choice = json.loads((out / "search" / "locked.json").read_text())["choice"]
    assert {c["sigma"] for c in (choice["best"], *choice["members"])} == {0.05}
    assert "σ = 1e+30: 4 candidates have a loss that is not finite" in " ".join(said.split())
    assert "of no use at σ = " in " ".join(said.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--n", "0"], "expected n of at least 1, found 0: change --n"),
        (["--sigma", "0"], "expected σ above 0, found 0.0: change --sigma"),
        (["--sigma", "nan"], "expected σ above 0, found nan"),
        (["--sigma", "1e-3", "1e-3"], "expected different σ, at least one, found [0.001, 0.001]"),
        (["--sigma", "1e-30"], "expected a σ that moves a weight, found 1e-30, which float32 "
                               "rounds away everywhere: raise --sigma"),
        (["--sigma", "1e-20", "--dtype", "bfloat16"], "which bfloat16 rounds away everywhere: "
                                                      "raise --sigma"),
        (["--k", "20"], "expected ensembles of 1 to N = 12 candidates, found k = [20]: change --k "
                        "or raise --n"),
        (["--test", "100000"], "expected 100040 examples for select, validate and test, found 2000 "
                               "in 2000 groups: give more data"),
        (["--task", "divide"], "unknown task 'divide': expected one of copy, "),
        (["--noise", "uniform"], "expected noise gaussian, lowrank:R with a rank R of at least 1, "
                                 "or tied, found 'uniform'"),
        (["--space", "nowhere"], "expected a pattern that matches a trainable tensor, found "
                                 "'nowhere'"),
        (["--space", "prefix:x"], "expected prefix:K with K of at least 1, found --space prefix:x"),
        (["--space", "prefix:2", "--noise", "tied"], "expected gaussian noise inside a basis, "
                                                     "found tied"),
        (["--adapter", "somewhere"], "expected --space lora with an adapter, found --space full"),
        (["--space", "lora", "--adapter", "nowhere"], "expected a trained adapter with "
                                                      "adapter_config.json in nowhere, found none"),
        (["--antithetic", "--n", "13"], "expected an even number of candidates for pairs, found "
                                        "13"),
        (["--data", "nothing.jsonl"], "expected a file of task data, found nothing at "
                                      "nothing.jsonl"),
        (["--model", "nowhere/at/all"], "expected a model folder, found nothing at nowhere/at/all"),
        (["--workers", "-1"], "expected workers from 0 (every core), found -1"),
        (["--wish", "0"], "expected a wished gain above 0, found 0.0"),
        (["--temperature", "0"], "expected a temperature above 0, found 0.0"),
        (["--batched", "yes", "--space", "prefix:2"], "expected candidates that can go through the "
                                                      "model together, found a basis"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    command = [
        "search",
        "--model",
        str(model),
        *TINY,
        "--no-forecast",
        "--out",
        str(tmp_path / "run"),
        *change,
    ]
    assert message in refused(capsys, *command)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


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
    more = ["--data", str(path), "--task", "one"]
    sizes = [
        "--select",
        "40",
        "--validate",
        "40",
        "--test",
        "60",
        "--no-forecast",
        "--out",
        str(tmp_path / "run"),
    ]
    assert "found 120 in 120 groups: give more data" in refused(
        capsys, "search", "--model", str(model), *TINY, *more, *sizes
    )
    both = [word for word in TINY if word not in ("--task", "swap")]
    said = refused(capsys, "search", "--model", str(model), *both, "--data", str(path), *sizes)
    assert "expected splits that share no prompt, found " in said


def test_ray_that_is_missing_is_said_and_the_ledger_stays(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    out = tmp_path / "run"
    command = [
        "search",
        "--model",
        str(model),
        *TINY,
        "--no-forecast",
        "--out",
        str(out),
        "--ray",
        "local",
    ]
    assert "pip install 'loclin[ray]'" in refused(capsys, *command)
    assert len(lines(out / "ledger.jsonl")) == 1


@pytest.fixture
def another(trained: Problem, tmp_path: Path) -> Path:
    """The model before it was moved, as a folder."""
    trained.model.save_pretrained(str(tmp_path / "other"))
    trained.tokenizer.save_pretrained(str(tmp_path / "other"))
    return tmp_path / "other"


def test_replay_rebuilds_what_was_found_bit_for_bit(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    choice = json.loads((out / "search" / "locked.json").read_text())["choice"]
    wanted = list(dict.fromkeys(c["index"] for c in (choice["best"], *choice["members"])))
    main(["search", "replay", str(out), "--out", str(tmp_path / "members")])
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said] == [str(i) for i in wanted]
    assert all("weights as they were, bit for bit; 24 of 24 outcomes" in line for line in said)
    best = load_file(tmp_path / "members" / f"candidate-{wanted[0]}" / "delta.safetensors")
    kept = load_file(out / "best" / "delta.safetensors")
    assert all(torch.equal(best[name], kept[name]) for name in kept)
    assert len(list((tmp_path / "members").iterdir())) == len(wanted)
    other = next(i for i in range(24) if i not in wanted)
    main(["search", "replay", str(out), "--index", str(other)])
    assert f"candidate {other} (σ = 0.0" in capsys.readouterr().out


def test_replay_of_batched_pairs_of_another_search(
    twice: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["search", "replay", str(twice[0]), "--search", "1"])
    assert "weights as they were, bit for bit; 24 of 24 outcomes" in capsys.readouterr().out


def test_replay_refuses_another_model_another_index_and_what_is_no_search(
    finished: tuple[Path, str], another: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    assert "the index of a candidate from 0 to 23, found 24: change --index" in refused(
        capsys, "search", "replay", str(out), "--index", "24"
    )
    text = (out / "ledger.jsonl").read_text().splitlines()
    entry = json.loads(text[1])
    flipped = "00" + entry["right"][2:] if entry["right"][:2] != "00" else "ff" + entry["right"][2:]
    score = float(np.unpackbits(np.frombuffer(bytes.fromhex(flipped), np.uint8), count=24).mean())
    text[1] = json.dumps(entry | {"right": flipped, "score": score})
    (out / "ledger.jsonl").write_text("\n".join(text) + "\n")
    said = refused(capsys, "search", "replay", str(out), "--index", str(entry["index"]))
    assert (
        f"expected the outcomes of the ledger, found others for candidate {entry['index']}, from "
        "the same weights" in said
    )
    run = json.loads((out / "run.json").read_text())
    run["studies"]["search"]["model"] = str(another)
    (out / "run.json").write_text(json.dumps(run))
    said = refused(capsys, "search", "replay", str(out))
    assert "expected the model and data of the search, found others (searched weights is " in said
    (out / "search" / "results.json").unlink()
    assert "expected the folder of a finished search, found none in" in refused(
        capsys, "search", "replay", str(out)
    )
