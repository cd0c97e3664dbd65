"""What every study of a run starts from, made once and kept beside the built-in models: what the
model knows, the taught and the damaged point.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from loclin.models import Problem
from loclin.models.cache import kept
from loclin.models.zero_shot import ZeroShot, zero_shot
from loclin.parameters import ParameterSpace
from loclin.progress import ProgressCallback, silent
from loclin.stats import Estimate
from loclin.studies.settings import DamageSettings

SOURCE = Path(__file__).parent.parent
FILE = "point.safetensors"
ANSWERS = "zero_shot.json"
#: The code that decides a taught or damaged point.
TRAINS = (
    "training.py", "parameters.py", "models/lora.py", "models/problem.py", "tasks/batch.py",
    "tasks/choices.py", "tasks/wrong.py", "studies/context.py", "studies/damage.py",
)  # fmt: skip
#: The code that decides what a model knows.
ASKS = (
    "stats.py", "models/evaluation.py", "models/problem.py", "models/zero_shot.py",
    "tasks/batch.py", "tasks/choices.py",
)  # fmt: skip
#: Settings that no point depends on: how many runs there are, where they go, how updates are kept.
NO_MATTER = (
    "seeds", "models_per_claim", "out", "profile", "workers", "ray", "device", "device_map",
    "store", "sketch_size",
)  # fmt: skip


def kept_point(
    problem: Problem,
    space: ParameterSpace,
    settings: DamageSettings,
    seed: int,
    name: str,
    make: Callable[[], Tensor],
) -> Float[Tensor, " D"]:
    """The point that `make` gives where the space stands, bit for bit, made where it is not kept.

    Kept under a digest of all that it can depend on: every weight of the model, the data, the
    settings that studies share, the seed, the versions of the libraries and of loclin's own code,
    what the processor can do.

    Args:
        problem, space: the model as it stands, and which of its weights are the point.
        settings: of the study; only those of `DamageSettings` count, so that studies share.
        make: trains it.
    """
    shared = [f.name for f in dataclasses.fields(DamageSettings) if f.name not in NO_MATTER]
    own = name, seed, [(n, getattr(settings, n)) for n in shared], space.names

    def write(folder: Path) -> None:
        safetensors.torch.save_file({"point": make()}, folder / FILE)

    folder = kept(f"points/{_digest(problem, own, TRAINS)}", write)
    return safetensors.torch.load_file(folder / FILE)["point"].to(space.parameters[0].device)


def kept_zero_shot(
    problem: Problem, seed: int, progress: ProgressCallback = silent
) -> list[ZeroShot]:
    """What `zero_shot` says of the model as it stands, asked once for all studies."""

    def write(folder: Path) -> None:
        found = [dataclasses.asdict(z) for z in zero_shot(problem, seed=seed, progress=progress)]
        (folder / ANSWERS).write_text(json.dumps(found))

    folder = kept(f"known/{_digest(problem, seed, ASKS)}", write)
    found = json.loads((folder / ANSWERS).read_text())
    return [ZeroShot(**{**z, "score": Estimate(**z["score"])}) for z in found]


def _digest(problem: Problem, own: object, code: tuple[str, ...]) -> str:
    """Of all that something made from a problem by some of loclin's files depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _depends_on(problem, own, code):
        digest.update(hashlib.blake2b(part).digest())
    return digest.hexdigest()


def _depends_on(problem: Problem, own: object, code: tuple[str, ...]) -> Iterator[bytes]:
    yield repr(own).encode()
    versions = [metadata.version(name) for name in ("torch", "transformers", "peft")]
    processor = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    yield repr((versions, processor, str(problem.model.device), _code(code))).encode()
    yield repr({split: dict(tasks) for split, tasks in problem.examples.items()}).encode()
    for name, tensor in problem.model.state_dict().items():
        yield name.encode()
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@cache
def _code(names: tuple[str, ...]) -> str:
    """A digest of some files: what another version made is another thing."""
    code = b"".join((SOURCE / name).read_bytes() for name in names)
    return hashlib.blake2b(code, digest_size=16).hexdigest()
