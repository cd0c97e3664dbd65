"""The smoke profile of every study on every family of models, from folders, with the user's own
data.
"""

import dataclasses
import json
from importlib import import_module
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.studies import STUDIES
from loclin.studies.recovery import claims, experiment
from loclin.studies.recovery.config import preset
from loclin.studies.table import by_run
from tests.conftest import FAMILIES

ANSWERS = {"cat": " purr", "dog": " ran", "mat": " sat", "man": " no"}


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 questions with four options, learned easily by any model."""
    file = tmp_path_factory.mktemp("data") / "animals.jsonl"
    words, options = list(ANSWERS), sorted(ANSWERS.values())
    records = (
        {"prompt": f"{i} the {words[i % 4]} is", "options": options, "label": ANSWERS[words[i % 4]]}
        for i in range(480)
    )
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return file


@pytest.mark.parametrize("family", FAMILIES)
def test_recovery_by_lora(
    family: str,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    questions: Path,
    tmp_path: Path,
) -> None:
    families[family].save_pretrained(tmp_path / family)
    tokenizers[family].save_pretrained(tmp_path / family)
    config = dataclasses.replace(
        preset("smoke", str(tmp_path / family)), data=str(questions), seeds=1
    ).checked()
    part = experiment.run_one(config, 0, lambda stage, share: None)
    known, lost, back = (
        float(by_run(part.rows, "score", on="animals", **c)[0])
        for c in (
            {"point": "pretrained"},
            {"point": "damaged"},
            {"point": "recovery", "optimiser": "sgd", "t": 50},
        )
    )
    assert known > 0.8
    assert lost < 0.25
    assert back > lost + 0.3
    for optimiser in ("sgd", "adamw"):
        for space in config.spaces:
            here = {"optimiser": optimiser, "space": space}
            curve = [
                float(by_run(part.rows, "prefix_capture", k=k, **here)[0]) for k in config.all_ks
            ]
            assert curve == sorted(curve)
            assert curve[-1] == pytest.approx(1.0)
    assert "another task's prefix" not in {r.context.get("basis") for r in part.rows}
    assert len(claims.decide(config, part.rows)) == 9
    assert part.notes[0] == "animals.jsonl: 480 read, 480 kept in 1 task (animals 480)"


@pytest.mark.parametrize("family", FAMILIES)
# steering takes no LoRA; schedules take two tasks (tests/studies/test_pilot.py)
@pytest.mark.parametrize(
    "study", [s for s in STUDIES if s not in ("recovery", "steering", "schedules")]
)
def test_other_studies_by_lora(
    study: str,
    family: str,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    questions: Path,
    tmp_path: Path,
) -> None:
    families[family].save_pretrained(tmp_path / family)
    tokenizers[family].save_pretrained(tmp_path / family)
    rooms = {
        name: import_module(f"loclin.studies.{study}.{name}")
        for name in ("config", "experiment", "claims")
    }
    preset_of = rooms["config"].preset("smoke", str(tmp_path / family))
    config = dataclasses.replace(preset_of, data=str(questions), seeds=1).checked()
    part = rooms["experiment"].run_one(config, 0, lambda stage, share: None)
    decided = rooms["claims"].decide(config, part.rows)
    assert decided
    for claim in decided:
        assert claim.value is not None, claim.id
        assert claim.verdict == "inconclusive"  # one run has no interval
    assert part.notes[0] == "animals.jsonl: 480 read, 480 kept in 1 task (animals 480)"


def test_a_models_own_samples_can_be_destroyed_and_recovered(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    tmp_path: Path,
) -> None:
    families["qwen2"].save_pretrained(tmp_path / "m")
    tokenizers["qwen2"].save_pretrained(tmp_path / "m")
    config = dataclasses.replace(
        preset("smoke", str(tmp_path / "m")), data="self", seeds=1, project_steps=3, shuffles=3
    )
    part = experiment.run_one(config.checked(), 0, lambda stage, share: None)
    assert by_run(part.rows, "score", point="pretrained")[0] == pytest.approx(1.0, abs=0.02)
    assert by_run(part.rows, "score", point="damaged")[0] < 0.05
    assert part.notes[0].startswith("the model's own samples")
