"""Points kept for all studies: the same bits as trained afresh, another one whenever anything that
they depend on changes.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from loclin.errors import LoclinError
from loclin.geometry.sketch import Sketch
from loclin.models import Problem
from loclin.models.builtin import built_in_folder
from loclin.models.zero_shot import ZeroShot, zero_shot
from loclin.parameters import ParameterSpace
from loclin.progress import silent
from loclin.studies.context import Requirements, RunContext, make_context
from loclin.studies.damage import damage
from loclin.studies.kept_points import ASKS, SOURCE, TRAINS, kept_point, kept_zero_shot
from loclin.studies.known import Known
from loclin.studies.recovery.settings import RecoverySettings
from loclin.studies.settings import DamageSettings
from loclin.studies.spectrum.settings import preset
from loclin.updates import UpdateStorage

BY_LORA = dataclasses.replace(preset("smoke", "statements-small"), teach_steps=20, damage_steps=30)
NOTHING = Requirements(examples={}, vectors=(1, ""), rows=(1, "updates"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds no points yet."""
    monkeypatch.setenv("LOCLIN_CACHE", str(tmp_path))
    return tmp_path


def start(stage: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Taught and damaged point of one run, and which trainings it took."""
    ctx = make_context(BY_LORA, 0, NOTHING, lambda text, share: stage.append(text))
    return ctx.space.read(), damage(ctx, ctx.task)


def test_a_kept_point_is_the_trained_one_bit_for_bit(
    speaking: Problem, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    model = built_in_folder("statements-small", seed=0, progress=silent)
    for name in ("one", "two"):
        shutil.copytree(model, tmp_path / name / model.name)
    for name in ("one", "one", "two"):
        monkeypatch.setenv("LOCLIN_CACHE", str(tmp_path / name))
        stages: list[str] = []
        found.append((*start(stages), "teaching every task" in stages))
    first, again, afresh = found
    assert (first[2], again[2], afresh[2]) == (True, False, True)
    for other in (again, afresh):
        assert torch.equal(first[0], other[0])
        assert torch.equal(first[1], other[1])
    assert not torch.equal(first[0], first[1])


def test_the_code_that_trains_is_there() -> None:
    assert [name for name in (*TRAINS, *ASKS) if not (SOURCE / name).is_file()] == []


def made(
    problem: Problem, settings: Any = BY_LORA, *, seed: int = 0, name: str = "p", to: float = 1.0
) -> float:
    space = ParameterSpace(problem.model)
    return float(kept_point(problem, space, settings, seed, name, lambda: torch.full((3,), to))[0])


def test_another_point_wherever_anything_changes(trained: Problem, elsewhere: Path) -> None:
    assert made(trained) == 1.0
    assert made(trained, to=2.0) == 1.0  # kept
    same = dataclasses.replace(BY_LORA, seeds=9, out=Path("there"), workers=1, store="disk")
    assert made(trained, same, to=2.0) == 1.0
    assert (
        made(trained, dataclasses.replace(RecoverySettings(), **shared(BY_LORA)), to=2.0) == 1.0
    )  # of another study
    assert made(trained, seed=1, to=2.0) == 2.0
    assert made(trained, name="q", to=3.0) == 3.0
    assert made(trained, dataclasses.replace(BY_LORA, damage_lr=0.5), to=4.0) == 4.0
    fewer = {
        split: {t: e[:-1] for t, e in tasks.items()} for split, tasks in trained.examples.items()
    }
    assert made(dataclasses.replace(trained, examples=fewer), to=5.0) == 5.0
    space = ParameterSpace(trained.model)
    with space.restored():
        space.add(space.noise(seed=0), scale=1e-6)
        assert made(trained, to=6.0) == 6.0
    assert made(trained, to=7.0) == 1.0


def shared(settings: Any) -> dict[str, Any]:
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(DamageSettings)}


def test_a_damaged_file_is_trained_again_and_a_failure_keeps_nothing(
    trained: Problem, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> torch.Tensor:
        raise LoclinError("it failed")

    with pytest.raises(LoclinError, match="it failed"):
        kept_point(trained, ParameterSpace(trained.model), BY_LORA, 0, "p", fails)
    assert made(trained, to=2.0) == 2.0
    (file,) = elsewhere.rglob("point.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    assert made(trained, to=3.0) == 3.0
    assert "is damaged: making it again" in caplog.text


def test_what_a_model_knows_is_asked_once_and_again_where_anything_changes(
    trained: Problem, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(problem: Problem, *, seed: int, progress: Any) -> list[ZeroShot]:
        asked.append(seed)
        return zero_shot(problem, seed=seed, progress=progress)

    monkeypatch.setattr("loclin.studies.kept_points.zero_shot", counted)
    first = kept_zero_shot(trained, 0)
    assert first == kept_zero_shot(trained, 0) == zero_shot(trained, seed=0)
    assert asked == [0]
    kept_zero_shot(trained, 1)
    assert asked == [0, 1]
    space = ParameterSpace(trained.model)
    with space.restored():
        space.add(space.noise(seed=0), scale=1e-6)
        kept_zero_shot(trained, 0)
    assert asked == [0, 1, 0]


def test_small_points_of_ones_own_model_are_shared_and_large_ones_kept_for_the_run(
    trained: Problem, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dataclasses.replace(BY_LORA, model="mine", data=("mine.jsonl",))
    kept: list[str] = []

    def keep(name: str, make: Any) -> Any:
        kept.append(name)
        return make()

    ctx = make_context_of(trained, own, keep)
    assert float(ctx.kept("p", lambda: torch.ones(3))[0]) == 1.0
    assert float(ctx.kept("p", lambda: torch.full((3,), 2.0))[0]) == 1.0
    assert kept == []
    monkeypatch.setattr("loclin.studies.context.SHARED", 0)
    assert float(ctx.kept("p", lambda: torch.full((3,), 2.0))[0]) == 2.0
    assert kept == ["p"]


def make_context_of(problem: Problem, settings: Any, keep: Any) -> RunContext[Any]:
    space = ParameterSpace(problem.model)
    of: dict[str, Any] = {"settings": settings, "problem": problem, "space": space, "keep": keep}
    return RunContext(
        **of, run=0, factors=None, task="copy", other=None, storage=UpdateStorage(store="memory",
        folder=Path(), sketch=Sketch(size=4, seed=0)), seed=0, notes=(), known=Known(),
    )  # fmt: skip
