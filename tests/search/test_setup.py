"""Real small models; running out of memory is planted, since no test may fill a machine's."""

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.exam import Exam
from loclin.models.lora import Lora, attach
from loclin.models.pretrained import How, read_pretrained
from loclin.parameters import ParameterSpace
from loclin.search import setup as module
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.noise import Noise
from loclin.search.scoring import Outcome, score
from loclin.search.setup import Setup
from loclin.tasks.example import Example
from loclin.training import make_optimiser, minibatches, train

GROUP = candidates(4, [0.02], seed=0)


def examples(problem: Problem, split: str, count: int) -> tuple[Example, ...]:
    return tuple(e for task in problem.tasks for e in problem.examples[split][task][:count])


@pytest.fixture
def plain(trained: Problem) -> Setup:
    return Setup(model="sequences-small", examples=examples(trained, "recovery", 6))


def losses(outcomes: Sequence[Outcome]) -> list[float]:
    return [o.loss for o in outcomes]


def same(one: Sequence[Outcome], other: Sequence[Outcome]) -> bool:
    return losses(one) == losses(other) and all(
        np.array_equal(a.right, b.right) for a, b in zip(one, other, strict=True)
    )


def test_a_worker_scores_as_the_model_and_its_exam_do(trained: Problem, plain: Setup) -> None:
    worker = plain.build()
    found = worker.score(GROUP)
    with Perturbed(ParameterSpace(trained.model), Noise()) as perturbed:
        assert same(found, score(perturbed, Exam.of(trained, plain.examples), GROUP, batched=False))
    assert len({o.loss for o in found}) == 4
    assert same(worker.score(GROUP[2:]), found[2:])
    assert worker.notes == []
    worker.perturbed.verify()


def test_another_process_builds_the_same(trained: Problem, plain: Setup) -> None:
    for setup in (
        plain,
        replace(plain, space="lora", noise=Noise.parse("lowrank:2"), seed=0, lora=Lora(rank=2)),
        replace(plain, space="prefix:3", lessons=examples(trained, "train", 4)),
    ):
        other = pickle.loads(pickle.dumps(setup))
        assert other == setup
        worker = setup.build()
        assert other.fingerprint() == worker.fingerprint()
        assert same(other.build().score(GROUP), worker.score(GROUP))


def test_the_space_is_what_is_asked_for(trained: Problem, plain: Setup) -> None:
    full = ParameterSpace(trained.model)
    assert plain.build().perturbed.space.names == full.names
    some = replace(plain, space="*attn*").build().perturbed.space
    assert some.names == tuple(n for n in full.names if "attn" in n)
    lora = replace(plain, space="lora", lora=Lora(rank=3)).build()
    assert all(".lora_" in n for n in lora.perturbed.space.names)
    assert lora.fingerprint()["coordinates"] == lora.perturbed.space.dimension
    with pytest.raises(LoclinError, match="expected a pattern that matches"):
        replace(plain, space="*nothing*").build()


def test_float64_reaches_the_factors_of_an_adapter(plain: Setup) -> None:
    worker = replace(plain, space="lora", how=How(dtype="float64")).build()
    assert {p.dtype for p in worker.perturbed.space.parameters} == {torch.float64}


def test_statements_are_asked_by_their_options(speaking: Problem) -> None:
    asked = Setup(model="statements-small", examples=examples(speaking, "recovery", 8))
    worker = asked.build()
    assert worker.exam.choices is not None
    with Perturbed(ParameterSpace(speaking.model), Noise()) as perturbed:
        assert same(
            worker.score(GROUP),
            score(perturbed, Exam.of(speaking, asked.examples), GROUP, batched=False),
        )


def test_a_prefix_is_the_span_of_the_first_updates_and_leaves_the_model_where_it_was(
    trained: Problem, plain: Setup
) -> None:
    lessons = examples(trained, "train", 10)
    worker = replace(plain, space="prefix:3", lessons=lessons, prefix_batch=8).build()
    basis = worker.perturbed.basis
    assert basis is not None
    assert basis.shape == (3, worker.perturbed.space.dimension)
    assert torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-5)
    space = ParameterSpace(trained.model)
    before = space.read()
    assert torch.equal(worker.perturbed.space.read(), before)
    with space.restored():
        data = trained.collate(lessons)
        batches = minibatches(data, 8, seed=module.derived(0, "search prefix"))
        optimiser = make_optimiser("adamw", space, 3e-4)
        for step in range(1, 5):
            train(trained.model, space, batches, optimiser, 1)
            moved = space.read() - before
            held = float((basis @ moved).square().sum() / moved.square().sum())
            assert (held > 1 - 1e-4) == (step <= 3)  # the fourth update leaves the span
    vector = worker.perturbed.vector(GROUP[0])
    assert float((basis @ vector).norm() / vector.norm()) == pytest.approx(1, abs=1e-5)


def test_the_seed_draws_the_prefix_and_the_factors(trained: Problem, speaking: Problem) -> None:
    asked = Setup(
        model="statements-small", examples=examples(speaking, "recovery", 4)
    )  # one model, whatever the seed
    lessons = examples(speaking, "train", 16)
    prefix = [
        replace(asked, space="prefix:2", lessons=lessons, prefix_batch=4, seed=s).fingerprint()
        for s in (0, 0, 1)
    ]
    assert prefix[0] == prefix[1]
    assert {k for k in prefix[0] if prefix[0][k] != prefix[2][k]} == {"basis"}
    factors = [replace(asked, space="lora", seed=s).fingerprint() for s in (0, 0, 1)]
    assert factors[0] == factors[1]
    assert {k for k in factors[0] if factors[0][k] != factors[2][k]} == {"searched weights"}


@pytest.mark.parametrize(
    "space", ["prefix:0", "prefix:", "prefix:-1", "prefix", "prefix:two", "prefix:²"]
)
def test_a_prefix_needs_a_number(plain: Setup, space: str) -> None:
    with pytest.raises(LoclinError, match="expected prefix:K with K of at least 1, found --space"):
        replace(plain, space=space).build()


def test_a_prefix_needs_lessons_of_its_own(trained: Problem, plain: Setup) -> None:
    with pytest.raises(LoclinError, match="expected examples to train a prefix on"):
        replace(plain, space="prefix:2").build()
    mixed = (*examples(trained, "train", 1), plain.examples[3])
    with pytest.raises(LoclinError, match=r"expected a prefix trained on other groups .* in both"):
        replace(plain, space="prefix:2", lessons=mixed).build()
    lessons = examples(trained, "train", 2)
    with pytest.raises(LoclinError, match="expected weights of at least float32 for prefix:2"):
        replace(plain, space="prefix:2", lessons=lessons, how=How(dtype="bfloat16")).build()


def test_the_fingerprint_names_what_is_another(
    trained: Problem, plain: Setup, tmp_path: Path
) -> None:
    base = plain.fingerprint()
    assert base["examples"] == len(plain.examples)
    folder = tmp_path / "copied"
    trained.model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    moved = replace(plain, model=str(folder))
    assert moved.fingerprint() == base  # a model is its content, not its name

    def differing(other: Setup) -> set[str]:
        found = other.fingerprint()
        return {name for name in base if base[name] != found[name]}

    assert differing(replace(plain, examples=plain.examples[::-1])) == {"questions", "tokens"}
    assert differing(replace(plain, noise=Noise.parse("tied"))) == {"noise"}
    assert differing(replace(plain, batched=True)) == {"batched"}
    part = differing(replace(plain, space="*attn*"))
    assert part == {"searched weights", "other weights", "space", "coordinates"}
    assert "dtype" in differing(replace(plain, how=How(dtype="bfloat16")))
    network, _ = read_pretrained(str(folder), How())
    with torch.no_grad():
        network.transformer.h[0].ln_1.weight[0] += 1e-6
    network.save_pretrained(folder)
    assert differing(moved) == {"searched weights"}
    assert (
        differing(replace(moved, space="*attn*")) == part
    )  # the other weights are others than all but these were
    scales = [
        replace(plain, space="lora", lora=Lora(alpha=alpha)).fingerprint() for alpha in (8, 16)
    ]
    assert {k for k in scales[0] if scales[0][k] != scales[1][k]} == {"configuration"}


@pytest.fixture
def adapter(trained: Problem, tmp_path: Path) -> Path:
    """A trained adapter of the model in tmp_path/base."""
    trained.model.save_pretrained(tmp_path / "base")
    trained.tokenizer.save_pretrained(tmp_path / "base")
    network, _ = read_pretrained(str(tmp_path / "base"), How())
    adapted = attach(network, Lora(rank=2), seed=0)
    problem = Problem(model=adapted, tokenizer=trained.tokenizer, examples=trained.examples)
    space = ParameterSpace(adapted)
    batches = minibatches(problem.batch("train", "swap"), 8, seed=0)
    train(adapted, space, batches, make_optimiser("adamw", space, 1e-2), 3)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_trained_adapter_is_searched_around_as_it_is(plain: Setup, adapter: Path) -> None:
    setup = replace(plain, model=str(adapter.parent / "base"), space="lora", adapter=adapter)
    state = torch.get_rng_state()
    worker = setup.build()
    assert torch.equal(torch.get_rng_state(), state)
    factors = dict(
        zip(worker.perturbed.space.names, worker.perturbed.space.parameters, strict=True)
    )
    assert all(".lora_" in n for n in factors)
    assert any(p.any() for n, p in factors.items() if ".lora_B." in n)  # it is no new one
    assert worker.score(GROUP)[0].loss != replace(setup, adapter=None).build().score(GROUP)[0].loss
    assert setup.fingerprint() == worker.fingerprint()


def test_what_is_no_adapter_of_the_model_is_named(
    plain: Setup, adapter: Path, tmp_path: Path
) -> None:
    def refused(folder: Path, text: str, **changes: Any) -> None:
        asked = replace(
            plain,
            **{"model": str(tmp_path / "base"), "space": "lora", "adapter": folder, **changes},
        )
        with pytest.raises(LoclinError, match=text):
            asked.build()

    refused(tmp_path / "nowhere", "expected a trained adapter with adapter_config.json")
    refused(tmp_path / "base", "expected a trained adapter with adapter_config.json")
    refused(adapter, "expected an adapter of this model", model="statements-small")
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    written, kept = config.read_text(), weights.read_bytes()
    config.write_text(written.replace('"LORA"', '"LOHA"'))
    refused(adapter, "expected a LoRA adapter in .*, found LOHA")
    config.write_text("{")
    refused(adapter, "expected an adapter of this model")
    config.write_text(written)
    weights.write_bytes(kept[: len(kept) // 2])
    refused(adapter, "expected an adapter of this model")
    weights.rename(adapter / "adapter_model.bin")
    refused(adapter, "adapter_model.safetensors .* pickles are never loaded")


class Small:
    """Scoring on a device with room for so many examples times candidates in a pass."""

    def __init__(self, room: int) -> None:
        self.room, self.calls = room, 0

    def __call__(
        self, perturbed: Perturbed, exam: Exam, group: Sequence[Candidate], *, batched: bool
    ) -> list[Outcome]:
        self.calls += 1
        if len(exam.batch) * (len(group) if batched else 1) > self.room:
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return score(perturbed, exam, group, batched=batched)


@pytest.mark.parametrize(
    ("batched", "room"), [(True, 80), (True, 40), (True, 7), (False, 20), (False, 1)]
)
def test_out_of_memory_takes_smaller_batches_and_says_so_once(
    plain: Setup, monkeypatch: pytest.MonkeyPatch, batched: bool, room: int
) -> None:
    worker = replace(plain, batched=batched).build()
    wanted = worker.score(GROUP)
    worker = replace(plain, batched=batched).build()
    small = Small(room)
    monkeypatch.setattr(module, "score", small)
    found = worker.score(GROUP)
    assert losses(found) == pytest.approx(losses(wanted), rel=1e-5)
    assert all(np.array_equal(a.right, b.right) for a, b in zip(found, wanted, strict=True))
    assert [o.candidate for o in found] == GROUP
    assert len(worker.notes) == 1
    assert "out of memory on cpu: from here on" in worker.notes[0]
    tried = small.calls
    worker.score(GROUP)
    assert len(worker.notes) == 1
    assert small.calls - tried <= tried  # it stays with what fits


def test_no_room_for_a_single_example_is_an_error(
    plain: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = replace(plain, batched=True).build()
    monkeypatch.setattr(module, "score", Small(0))
    with pytest.raises(
        LoclinError,
        match=r"expected room for one candidate and one example on cpu, found too little \(tried",
    ):
        worker.score(GROUP)


def test_a_candidate_that_gives_nothing_finite_is_an_outcome(plain: Setup) -> None:
    worker = plain.build()
    wild = replace(GROUP[0], sigma=1e30)
    found = worker.score([wild, GROUP[1]])
    assert not math.isfinite(found[0].loss)
    assert not found[0].right.any()
    assert same(found[1:], worker.score(GROUP[1:2]))


def test_a_model_that_does_not_come_back_is_noticed(
    plain: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = plain.build()
    monkeypatch.setattr(worker.perturbed, "restore", lambda: None)
    with pytest.raises(LoclinError, match="at its base, found other bytes"):
        worker.score(GROUP)


def test_a_worker_that_finds_another_model_is_refused(plain: Setup) -> None:
    """A folder that was trained on, or another revision, in the middle of a search."""
    own = plain.build().fingerprint()
    replace(plain, expected=own).build()
    with pytest.raises(
        LoclinError,
        match=r"found others \(other weights is 'x' in the record, .*: score with what the search "
        r"began",
    ):
        replace(plain, expected={**own, "other weights": "x"}).build()


def test_a_basis_that_was_made_is_taken(trained: Problem, plain: Setup) -> None:
    asked = replace(plain, space="prefix:3", lessons=examples(trained, "train", 4))
    made = asked.build().perturbed.basis
    assert made is not None
    taken = (
        replace(asked, lessons=(), basis=made).build().perturbed.basis
    )  # without lessons none could be made
    assert taken is not None
    assert torch.equal(taken, made)
