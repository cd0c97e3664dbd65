"""Small settings of the schedules study and a user's small tasks, for its tests."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from loclin.studies.schedules.settings import SchedulesSettings, preset

NAMES = (
    "raw sum",
    "PCGrad",
    "joint mixed",
    "sequential",
    "sequential reversed",
    "replay",
    "average",
)
TINY = replace(
    preset("smoke"),
    seeds=1,
    evaluations=8,
    points=2,
    curve_examples=8,
    test_examples=16,
    k=2,
    batch=8,
    cosine_examples=32,
    schedules=NAMES,
    pairs=("agreeing", "copy+swap"),
    fisher_examples=8,
).checked()
LORA = replace(
    preset("smoke", "statements-small"),
    seeds=1,
    evaluations=4,
    points=1,
    curve_examples=8,
    test_examples=16,
    k=2,
    batch=4,
    fisher_examples=4,
    cosine_examples=16,
    schedules=("joint mixed", "sequential"),
    ranks=(2,),
).checked()
SCHEDULES = ("raw sum", "joint mixed", "sequential", "average")
FEW: dict[str, Any] = {
    "evaluations": 8,
    "points": 2,
    "batch": 4,
    "curve_examples": 8,
    "test_examples": 12,
    "seeds": 2,
    "schedules": SCHEDULES,
}


def own(folder: str, files: tuple[str, ...], **changed: Any) -> SchedulesSettings:
    """A user's own comparison."""
    settings = replace(preset("standard", folder, files), data=files, **FEW)
    return replace(settings, **changed).checked()


def task_file(file: Path, words: dict[str, str], count: int = 60) -> str:
    """A task: which word follows which."""
    names = [list(words)[i % len(words)] for i in range(count)]
    records = (
        {"prompt": f"{i} the {name} is", "answer": words[name]} for i, name in enumerate(names)
    )
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(file)
