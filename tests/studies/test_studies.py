"""The table of studies; the smoke profile of all that decide claims on every family of models, from
folders, with the user's own data.
"""

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.run.runner import Session
from loclin.studies import KINDS, STUDIES
from loclin.studies.names import PREFIX
from loclin.studies.recovery.claims import decide
from loclin.studies.recovery.measure import measure
from loclin.studies.recovery.names import ANOTHER_TASK
from loclin.studies.recovery.settings import preset
from tests.conftest import FAMILIES
from tests.rows import value, values

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


#: A random model knows nothing and learns quickly.
UNTAUGHT: dict[str, Any] = {
    "seeds": 1, "teach_steps": 100, "reach": 0.9, "damage_steps": 100, "damage_lr": 3e-3,
    "steps": 50, "sgd_lr": 3e-2,
}  # fmt: skip


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
    settings = dataclasses.replace(
        preset("smoke", str(tmp_path / family)), data=(str(questions),), **UNTAUGHT
    ).checked()
    part = measure(settings, 0, Session())
    known, lost, back = (
        value(part.rows, "score", on="animals", **c)
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
        for space in settings.spaces:
            curve = values(part.rows, "prefix_capture", optimiser=optimiser, space=space)
            assert curve == sorted(curve)
            assert curve[-1] == pytest.approx(1.0)
    assert ANOTHER_TASK not in {r.context.get("basis") for r in part.rows}
    assert values(part.rows, "regained_score", basis=PREFIX, optimiser="sgd")
    assert len(decide(settings, part.rows)) == 11
    assert part.notes[0] == "animals.jsonl: 480 read, 480 kept in 1 task (animals 480)"


@pytest.mark.parametrize("family", FAMILIES)
# steering takes no LoRA; schedules take two tasks (tests/studies/schedules)
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
    parts = KINDS[STUDIES[study]]
    module = import_module(parts.settings.partition(":")[0])
    settings = module.preset("smoke", str(tmp_path / family))
    settings = dataclasses.replace(settings, data=(str(questions),), seeds=1).checked()
    part = import_module(parts.measure).measure(settings, 0, Session())
    decided = import_module(str(parts.claims)).decide(settings, part.rows)
    assert decided
    for claim in decided:
        assert claim.value is not None, claim.id
        open_ = "measurement" if claim.p is None else "inconclusive"  # one run has no interval
        assert claim.verdict == open_, claim.id
    assert part.notes[0] == "animals.jsonl: 480 read, 480 kept in 1 task (animals 480)"


def test_a_models_own_samples_can_be_destroyed_and_recovered(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    tmp_path: Path,
) -> None:
    families["qwen2"].save_pretrained(tmp_path / "m")
    tokenizers["qwen2"].save_pretrained(tmp_path / "m")
    settings = dataclasses.replace(
        preset("smoke", str(tmp_path / "m")),
        data=("self",),
        seeds=1,
        project_steps=3,
        shuffles=3,
    )
    part = measure(settings.checked(), 0, Session())
    (known,) = values(part.rows, "score", point="pretrained")
    (lost,) = values(part.rows, "score", point="damaged")
    assert known == pytest.approx(1.0, abs=0.02)
    assert lost < 0.05
    assert part.notes[0].startswith("the model's own samples")


def test_every_kind_names_modules_that_are_there() -> None:
    for kind, study in KINDS.items():
        module, _, name = study.settings.partition(":")
        assert getattr(import_module(module), name).kind == kind
        assert callable(import_module(study.page).sections)
        assert callable(import_module(study.measure).measure)
    assert set(STUDIES.values()) == {k for k, s in KINDS.items() if s.claims}
