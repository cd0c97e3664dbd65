"""What is taken away: a delta or an adapter that others read, and seeds that give the same weights
again.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.direction import read_direction
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.search.candidate import Candidate, Perturbed, weights_hash
from loclin.search.export import Ensemble, check_rebuilt, member, write_candidate
from loclin.search.noise import Noise

CANDIDATE = Candidate(index=7, seed=12, sigma=0.01, sign=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_delta_is_what_was_really_added_and_others_read_it(
    trained: Problem, tmp_path: Path, dtype: torch.dtype
) -> None:
    problem = Problem(
        model=copy.deepcopy(trained.model).to(dtype),
        tokenizer=trained.tokenizer,
        examples=trained.examples,
    )
    perturbed = Perturbed(ParameterSpace(problem.model, "*mlp*"), Noise())
    base = {n: p.detach().clone() for n, p in problem.model.named_parameters()}
    path = write_candidate(problem, perturbed, CANDIDATE, tmp_path / "best")
    assert path == tmp_path / "best" / "delta.safetensors"
    assert all(torch.equal(p, base[n]) for n, p in problem.model.named_parameters())
    changes = load_file(path)
    perturbed.place(CANDIDATE)
    for name, placed in zip(perturbed.space.names, perturbed.space.parameters, strict=True):
        again = (base[name].float() + changes[name]).to(dtype)
        # a float32 difference of float32 weights is itself rounded; that of half-precision weights
        # is exact
        assert (
            torch.allclose(again, placed, rtol=2e-7, atol=1e-8)
            if dtype == torch.float32
            else torch.equal(again, placed)
        )
    perturbed.restore()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "base": weights_hash(perturbed.base),
        "seed": "12",
        "sigma": "0.01",
        "sign": "-1",
        "index": "7",
        "noise": "gaussian",
    }
    direction = read_direction(str(path), problem.model)
    assert set(direction.tensors) == set(perturbed.space.names)
    write_candidate(
        problem, perturbed, replace(CANDIDATE, sign=1), tmp_path / "best"
    )  # in place of the older one
    assert (
        torch.equal(
            load_file(path)[perturbed.space.names[0]] > 0, changes[perturbed.space.names[0]] < 0
        )
        or dtype == torch.bfloat16
    )
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


@pytest.mark.filterwarnings("ignore:.*base model.*:UserWarning")
def test_an_adapter_is_a_folder_that_peft_and_radius_read(trained: Problem, tmp_path: Path) -> None:
    model = copy.deepcopy(trained.model)
    shown = copy.deepcopy(model)
    problem = Problem(
        model=attach(model, Lora(rank=2), seed=0),
        tokenizer=trained.tokenizer,
        examples=trained.examples,
    )
    perturbed = Perturbed(ParameterSpace(problem.model), Noise())
    folder = write_candidate(problem, perturbed, CANDIDATE, tmp_path / "best")
    held = load_file(folder / "adapter_model.safetensors")
    vector = perturbed.space.by_tensor(perturbed.vector(CANDIDATE) + perturbed.space.read())
    for name, values in vector.items():
        assert torch.allclose(held[name.replace(".default", "")], values, atol=1e-7)
    direction = read_direction(str(folder), shown)
    assert len(direction.tensors) == len(held) // 2


def kept(perturbed: Perturbed) -> Ensemble:
    return Ensemble(
        noise="gaussian",
        base=weights_hash(perturbed.base),
        fingerprint={"space": "full"},
        best=member(perturbed, CANDIDATE),
        members=(
            member(perturbed, CANDIDATE),
            member(perturbed, replace(CANDIDATE, index=8, seed=13)),
        ),
    )


def test_an_ensemble_is_read_as_it_was_written_and_its_weights_are_checked(
    trained: Problem, tmp_path: Path
) -> None:
    perturbed = Perturbed(ParameterSpace(trained.model, "*ln*"), Noise())
    made = kept(perturbed)
    path = tmp_path / "ensemble.json"
    path.write_text(made.text())
    assert Ensemble.read(path) == made
    assert len({m.weights for m in made.members} | {made.base}) == 3
    check_rebuilt(perturbed, made.best)
    assert weights_hash(perturbed.base) == made.base
    perturbed.verify()
    with pytest.raises(
        LoclinError,
        match=r"expected candidate 7 with weights of hash x, found .*: use the torch and the kind",
    ):
        check_rebuilt(perturbed, replace(made.best, weights="x"))
    other = Perturbed(ParameterSpace(trained.model, "*ln*"), Noise(kind="tied"))
    with pytest.raises(LoclinError, match="expected candidate 7"):
        check_rebuilt(other, made.best)


@pytest.mark.parametrize(
    "damage",
    [lambda h: h.pop("best"), lambda h: h.update(format=2), lambda h: h["best"].pop("weights")],
)
def test_what_is_no_ensemble_says_so(trained: Problem, tmp_path: Path, damage: object) -> None:
    held = json.loads(kept(Perturbed(ParameterSpace(trained.model, "*ln_f*"), Noise())).text())
    damage(held)  # type: ignore[operator]
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(held))
    with pytest.raises(
        LoclinError,
        match=r"expected the ensemble of a finished search in .*: let `loclin search` end first",
    ) as error:
        Ensemble.read(path)
    assert "\n" not in str(error.value)
    with pytest.raises(LoclinError, match="found No such file or directory"):
        Ensemble.read(tmp_path / "nowhere.json")


def test_a_place_that_cannot_be_written_is_named_and_the_model_is_back(
    trained: Problem, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    perturbed = Perturbed(ParameterSpace(trained.model, "*ln_f*"), Noise())
    with pytest.raises(
        LoclinError, match=r"expected to write .*best, found .*: make room or choose another --out"
    ):
        write_candidate(trained, perturbed, CANDIDATE, tmp_path / "file" / "best")
    perturbed.verify()
