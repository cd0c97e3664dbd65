"""What a user takes away: the best candidate as a safetensors delta or a peft adapter, the ensemble
as seeds.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import PeftModel

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.search.candidate import Candidate, Perturbed, weights_hash

FORMAT = 1  # of ensemble.json; raised when a reader of older ones would be wrong


@dataclass(frozen=True, kw_only=True)
class Member:
    """A candidate as it is kept: enough to build it again, and to know that it is the same.

    Attributes:
        candidate: index, seed, σ and sign.
        weights: hash of every tensor of the space with the candidate in place.
    """

    candidate: Candidate
    weights: str


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """ensemble.json: the best candidate and the ensemble as seeds.

    Attributes:
        noise: how a seed becomes noise, as `Noise.parse` reads it.
        base: hash of the tensors that candidates start from.
        fingerprint: hashes of model, space and data.
        best: chosen on validate.
        members: of the ensemble, best ranked first; majority vote, ties to the first.
    """

    noise: str
    base: str
    fingerprint: Mapping[str, Any]
    best: Member
    members: tuple[Member, ...]

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1) + "\n"

    @staticmethod
    def read(path: Path) -> Ensemble:
        """From the file of a finished search.

        Raises:
            LoclinError: no such file, another format, or not what is expected in it.
        """
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held.pop("format") != FORMAT:
                raise ValueError("another format")
            best, *members = (
                Member(candidate=Candidate(**m["candidate"]), weights=m["weights"])
                for m in (held["best"], *held["members"])
            )
            return Ensemble(**{**held, "best": best, "members": tuple(members)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            kind = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise LoclinError(
                f"expected the ensemble of a finished search in {path}, found {kind}: let `loclin "
                "search` end first"
            ) from error


def member(perturbed: Perturbed, candidate: Candidate) -> Member:
    """A candidate with the hash of its weights; the model is back at its base afterwards."""
    with perturbed.at(candidate):
        return Member(candidate=candidate, weights=weights_hash(perturbed.tensors))


def write_candidate(
    problem: Problem, perturbed: Perturbed, candidate: Candidate, folder: Path
) -> Path:
    """Write a candidate: the folder of a peft adapter where an adapter was searched, else
    delta.safetensors.

    The delta is θ′ − θ of every tensor as it was really placed, in float32 or better: exact for
    weights in half precision, to one rounding for others (`loclin search replay` gives the very
    bits). `loclin radius --direction` reads both. The folder appears whole or not at all, in place
    of an older one. Gives back what was written.

    Raises:
        LoclinError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            with perturbed.at(candidate):
                if isinstance(problem.model, PeftModel):
                    problem.model.save_pretrained(str(made))
                else:
                    _write_delta(perturbed, candidate, made / "delta.safetensors")
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise LoclinError(
            f"expected to write {folder}, found {error}: make room or choose another --out; the "
            "search itself is kept"
        ) from error
    return folder if isinstance(problem.model, PeftModel) else folder / "delta.safetensors"


def _write_delta(perturbed: Perturbed, candidate: Candidate, path: Path) -> None:
    changes = {}
    for name, here in perturbed.tensors.items():
        precise = torch.promote_types(here.dtype, torch.float32)
        change = here.detach().to(precise) - perturbed.base[name].to(precise)
        changes[name] = change.cpu().contiguous()
    metadata = {
        "base": weights_hash(perturbed.base),
        "seed": str(candidate.seed),
        "sigma": repr(candidate.sigma),
        "sign": str(candidate.sign),
        "index": str(candidate.index),
        "noise": str(perturbed.noise),
    }
    safetensors.torch.save_file(changes, path, metadata=metadata)


def check_rebuilt(perturbed: Perturbed, wanted: Member) -> None:
    """Whether a candidate's weights, built again, are bit for bit what was kept.

    Raises:
        LoclinError: they are not.
    """
    weights = member(perturbed, wanted.candidate).weights
    if weights != wanted.weights:
        raise LoclinError(
            f"expected candidate {wanted.candidate.index} with weights of hash {wanted.weights}, "
            f"found {weights}: use the torch and the kind of processor that searched"
        )
