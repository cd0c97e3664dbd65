"""Candidates of a finished search built again, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loclin.cli import main
from loclin.models import Problem
from loclin.search.ledger import read
from tests.studies.search.command import ENTRY, refused

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture
def another(trained: Problem, tmp_path: Path) -> Path:
    """The model before it was moved, as a folder."""
    trained.model.save_pretrained(str(tmp_path / "other"))
    trained.tokenizer.save_pretrained(str(tmp_path / "other"))
    return tmp_path / "other"


def test_replay_rebuilds_what_was_found_bit_for_bit(
    finished: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, _ = finished
    loads: list[str] = []
    plain = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda name, **more: (loads.append(name), plain(name, **more))[1],
    )
    choice = json.loads((out / ENTRY / "locked.json").read_text())["choice"]
    wanted = list(dict.fromkeys(c["index"] for c in (choice["best"], *choice["members"])))
    main(["search", "replay", str(out), "--out", str(tmp_path / "members")])
    printed = capsys.readouterr().out.splitlines()
    assert len(loads) == 1
    assert [line.split()[1] for line in printed] == [str(i) for i in wanted]
    assert all("weights as they were, bit for bit; 24 of 24 outcomes" in line for line in printed)
    best = load_file(tmp_path / "members" / f"candidate-{wanted[0]}" / "delta.safetensors")
    kept = load_file(out / "best" / "delta.safetensors")
    assert all(torch.equal(best[name], kept[name]) for name in kept)
    assert len(list((tmp_path / "members").iterdir())) == len(wanted)
    other = next(i for i in range(24) if i not in wanted)
    main(["search", "replay", str(out), "--index", str(other)])
    assert f"candidate {other} (σ = 0.0" in capsys.readouterr().out


def test_replay_of_pairs_of_another_search(
    twice: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(twice[0] / "ledger-1.jsonl")[0]["group"] == 4  # whose candidates shared passes
    main(["search", "replay", str(twice[0]), "--search", "1"])
    printed = capsys.readouterr().out
    assert "weights as they were, bit for bit; 24 of 24 outcomes" in printed
    assert "(the ledger has" not in printed


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
    flipped = ("ff" if entry["right"][:2] == "00" else "00") + entry["right"][2:]
    score = float(np.unpackbits(np.frombuffer(bytes.fromhex(flipped), np.uint8), count=24).mean())
    text[1] = json.dumps(entry | {"right": flipped, "score": score})
    (out / "ledger.jsonl").write_text("\n".join(text) + "\n")
    error = refused(capsys, "search", "replay", str(out), "--index", str(entry["index"]))
    text = f"expected the outcomes of the ledger, found others for candidate {entry['index']}"
    assert text in error
    run = json.loads((out / "run.json").read_text())
    run["studies"][ENTRY]["model"] = str(another)
    (out / "run.json").write_text(json.dumps(run))
    error = refused(capsys, "search", "replay", str(out))
    assert "the model and data of the search, found others (searched weights is " in error
    (out / ENTRY / "results.json").unlink()
    assert "expected the folder of a finished search, found none in" in refused(
        capsys, "search", "replay", str(out)
    )
