"""What the settings of studies have in common, seen on those of the recovery study."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.studies.recovery.settings import RecoverySettings, preset, reproduced


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Any) -> None:
    assert preset(profile).checked().profile == profile
    for settings in reproduced(profile):
        assert settings.checked().profile == profile
    assert len({settings.entry for settings in reproduced(profile)}) == len(reproduced(profile))


def test_the_paper_profile_names_the_papers_models_and_data() -> None:
    asked = {(c.model, c.data) for c in reproduced("paper")}
    assert {
        ("distilgpt2", ("google/boolq",)),
        ("gpt2", ("sequences",)),
        ("Qwen/Qwen2.5-0.5B", ("google/boolq",)),
    } <= asked


def test_defaults_depend_on_the_model() -> None:
    assert preset("standard").space == "full"
    assert (
        preset("standard", "statements").space == preset("standard", "some/model").space == "lora"
    )
    assert [c.model for c in reproduced("smoke")] == ["sequences-small", "statements-small"]
    assert preset("smoke").model == "sequences-small"
    assert preset("smoke", "statements").model == "statements"
    assert preset("standard", "sequences-of-mine").space == "lora"


def test_tasks_are_crossed_with_models() -> None:
    """Every model destroys another task when its turn comes again (measures §14)."""
    settings = replace(preset("standard"), seeds=12, models_per_claim=6)
    runs = [(settings.model_seed(r), settings.turn(r, 4)) for r in range(12)]
    assert [model for model, _ in runs] == [*range(6)] * 2
    assert len(set(runs)) == 12
    assert {task for _, task in runs} == {0, 1, 2, 3}
    lora = replace(preset("standard", "statements"), seeds=8, models_per_claim=4)
    for turn, choices in (({"rounds": 2}, 3), ({"models": 2}, 2)):  # ranks, learning rates
        taken = [lora.turn(r, choices, **turn) for r in range(8)]
        assert all(taken[m] != taken[m + 4] for m in range(4))
        assert set(taken) == set(range(choices))
    own = preset("standard", "some/model")
    assert own.models == 1
    assert [own.turn(r, 3) for r in range(4)] == [0, 1, 2, 0]
    assert [own.model_seed(r) for r in range(3)] == [0, 1, 2]  # its data are divided anew
    assert replace(settings, seeds=2).models == 2


def test_the_name_in_a_record_tells_model_data_and_space_apart() -> None:
    settings = replace(preset("smoke", "Qwen/Qwen2.5-0.5B"), data=("/tmp/my data.jsonl",))
    assert settings.entry == "recovery-Qwen2.5-0.5B-my-data-lora"
    for name in ("a.csv", "a.TSV", "a.json", "a.jsonl"):
        assert replace(settings, data=(f"x/{name}",), space="full").entry.endswith("-0.5B-a")
    assert preset("standard").entry == "recovery-sequences"
    assert replace(RecoverySettings(), space="*attn*").entry == "recovery-sequences-attn"
    assert RecoverySettings(model="/tmp/Small.Q4_1.gguf").entry == "recovery-Small.Q4-1"


def test_another_content_of_a_gguf_file_is_another_record(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF one")
    settings = RecoverySettings(model=str(tmp_path / "m.gguf"))
    before = settings.fingerprint()
    assert before["model_files"] == hashlib.sha256(b"GGUF one").hexdigest()
    (tmp_path / "m.gguf").write_bytes(b"GGUF two")
    assert settings.fingerprint()["model_files"] != before["model_files"]


def test_lora_is_measured_in_the_weights_first() -> None:
    lora = preset("standard", "statements")
    assert RecoverySettings().spaces == ("weights",)
    assert lora.spaces == ("weights", "factors")
    assert replace(lora, store="sketch").spaces == ("factors",)
    assert [lora.learning_rates(r)["sgd"] / lora.sgd_lr for r in range(3)] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "at least one seed, found 0"),
        (
            {"model": "gpt2"},
            "expected --data with the model 'gpt2', found none: give a JSON Lines file",
        ),
        ({"model": "statments"}, "did you mean the built-in --model statements?"),
        (
            {"model": "gpt2", "data": ("nowhere.jsonl",)},
            "expected a file of task data, found nothing at nowhere.jsonl",
        ),
        ({"ranks": (8, 0)}, r"LoRA ranks of at least 1, found \[8, 0\]: change --ranks"),
        ({"lr_factors": (1.0, -1.0)}, "factors above 0"),
        ({"dropout": 1.0}, "dropout from 0 to below 1, found 1.0"),
        (
            {"sketch_size": 100},
            "sketch of at least 4 T = 800 numbers, found 100: raise --sketch-size",
        ),
        ({"workers": -1}, "workers from 0"),
        ({"batch": 0}, "batch of at least 1, found 0: change --batch"),
        ({"sgd_lr": 0.0}, "learning rate above 0, found 0.0: change --sgd-lr"),
        ({"dtype": "bfloat16"}, "float32 for full weights, whose small steps bfloat16 rounds away"),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(RecoverySettings(), **change).checked()


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "scipy", "matplotlib")
    loaded = "import sys, loclin.cli, loclin.studies.recovery.settings"
    code = f"{loaded}; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
