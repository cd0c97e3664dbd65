"""Points that every study of a run starts from: the taught and the damaged one, trained once and
kept beside the built-in models.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
from loclin.parameters import ParameterSpace
from loclin.studies.settings import DamageSettings

SOURCE = Path(__file__).parent.parent
FILE = "point.safetensors"
#: The code that decides a taught or damaged point.
TRAINS = (
    "training.py", "parameters.py", "models/lora.py", "models/problem.py", "tasks/batch.py",
    "tasks/choices.py", "tasks/wrong.py", "studies/context.py", "studies/damage.py",
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
    what the processor can do. Only points of built-in models are kept: others may be large.

    Args:
        problem, space: the model as it stands, and which of its weights are the point.
        settings: of the study; only those of `DamageSettings` count, so that studies share.
        make: trains it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _depends_on(problem, space, settings, seed, name):
        digest.update(hashlib.blake2b(part).digest())

    def write(folder: Path) -> None:
        safetensors.torch.save_file({"point": make()}, folder / FILE)

    folder = kept(f"points/{digest.hexdigest()}", write)
    return safetensors.torch.load_file(folder / FILE)["point"].to(space.parameters[0].device)


def _depends_on(
    problem: Problem, space: ParameterSpace, settings: DamageSettings, seed: int, name: str
) -> Iterator[bytes]:
    shared = [f.name for f in dataclasses.fields(DamageSettings) if f.name not in NO_MATTER]
    yield repr((name, seed, [(n, getattr(settings, n)) for n in shared], space.names)).encode()
    versions = [metadata.version(name) for name in ("torch", "transformers", "peft")]
    processor = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    yield repr((versions, processor, str(space.parameters[0].device), _code())).encode()
    yield repr({split: dict(tasks) for split, tasks in problem.examples.items()}).encode()
    for tensor_name, tensor in problem.model.state_dict().items():
        yield tensor_name.encode()
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@cache
def _code() -> str:
    """A digest of the code that trains: a point trained by another version is another point."""
    code = b"".join((SOURCE / name).read_bytes() for name in TRAINS)
    return hashlib.blake2b(code, digest_size=16).hexdigest()
