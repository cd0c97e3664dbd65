"""A description builds the same scorer in every process: real small models."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.evaluation import EvalSet
from loclin.models.lora import Lora
from loclin.models.pretrained import read_pretrained
from loclin.options import LoadOptions
from loclin.parameters import ParameterSpace
from loclin.search import spec as module
from loclin.search.candidate import Perturbed, candidates
from loclin.search.noise import Noise
from loclin.search.scoring import Outcome, score
from loclin.search.spec import SearchSpec
from loclin.seeds import derived
from loclin.tasks.example import Example
from loclin.training import make_optimiser, minibatches, train

GROUP = candidates(4, [0.02], seed=0)


def examples(problem: Problem, split: str, count: int) -> tuple[Example, ...]:
    return tuple(e for task in problem.tasks for e in problem.examples[split][task][:count])


def options(model: str = "sequences-small", **more: object) -> LoadOptions:
    return LoadOptions(model=model, **{"device": "cpu", **more})  # type: ignore[arg-type]


@pytest.fixture
def plain(trained: Problem) -> SearchSpec:
    return SearchSpec(options=options(), examples=examples(trained, "recovery", 6))


def same(one: Sequence[Outcome], other: Sequence[Outcome]) -> bool:
    return [o.loss for o in one] == [o.loss for o in other] and all(
        np.array_equal(a.right, b.right) for a, b in zip(one, other, strict=True)
    )


def test_another_process_builds_the_same(trained: Problem, plain: SearchSpec) -> None:
    for spec in (
        plain,
        replace(plain, space="lora", noise=Noise.parse("lowrank:2"), seed=0, lora=Lora(rank=2)),
        replace(plain, space="prefix:3", train_examples=examples(trained, "train", 4)),
    ):
        other = pickle.loads(pickle.dumps(spec))
        assert other == spec
        scorer = spec.build()
        assert other.build().fingerprint == scorer.fingerprint
        assert same(other.build().do(GROUP), scorer.do(GROUP))


def test_the_space_is_what_is_asked_for(trained: Problem, plain: SearchSpec) -> None:
    full = ParameterSpace(trained.model)
    assert plain.build().perturbed.space.names == full.names
    some = replace(plain, space="*attn*").build().perturbed.space
    assert some.names == tuple(n for n in full.names if "attn" in n)
    lora = replace(plain, space="lora", lora=Lora(rank=3)).build()
    assert all(".lora_" in n for n in lora.perturbed.space.names)
    assert lora.fingerprint["coordinates"] == lora.perturbed.space.dimension
    with pytest.raises(LoclinError, match="expected a pattern that matches"):
        replace(plain, space="*nothing*").build()


def test_float64_reaches_the_factors_of_an_adapter(plain: SearchSpec) -> None:
    scorer = replace(plain, space="lora", options=options(dtype="float64")).build()
    assert {p.dtype for p in scorer.perturbed.space.parameters} == {torch.float64}


def test_statements_are_asked_by_their_options(speaking: Problem) -> None:
    shown = examples(speaking, "recovery", 8)
    scorer = SearchSpec(options=options("statements-small"), examples=shown).build()
    assert scorer.eval_set.choices is not None
    with Perturbed(ParameterSpace(speaking.model), Noise()) as perturbed:
        assert same(scorer.do(GROUP), score(perturbed, EvalSet.of(speaking, shown), GROUP))


def test_a_prefix_is_the_span_of_the_first_updates_and_leaves_the_model_where_it_was(
    trained: Problem, plain: SearchSpec
) -> None:
    train_examples = examples(trained, "train", 10)
    scorer = replace(plain, space="prefix:3", train_examples=train_examples).build()
    basis = scorer.perturbed.basis
    assert basis is not None
    assert basis.shape == (3, scorer.perturbed.space.dimension)
    assert torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-5)
    space = ParameterSpace(trained.model)
    before = space.read()
    assert torch.equal(scorer.perturbed.space.read(), before)
    with space.restored():
        data = trained.collate(train_examples)
        batches = minibatches(data, module.PREFIX_BATCH, seed=derived(0, "search prefix"))
        optimiser = make_optimiser("adamw", space, module.PREFIX_LR)
        for step in range(1, 5):
            train(trained.model, space, batches, optimiser, 1)
            moved = space.read() - before
            held = float((basis @ moved).square().sum() / moved.square().sum())
            assert (held > 1 - 1e-4) == (step <= 3)  # the fourth update leaves the span
    vector = scorer.perturbed.vector(GROUP[0])
    assert float((basis @ vector).norm() / vector.norm()) == pytest.approx(1, abs=1e-5)


def test_the_seed_draws_the_prefix_and_the_factors(speaking: Problem, tmp_path: Path) -> None:
    speaking.model.save_pretrained(tmp_path)  # one model, whatever the seed
    speaking.tokenizer.save_pretrained(tmp_path)
    asked = SearchSpec(
        options=options(str(tmp_path), data=("self",)), examples=examples(speaking, "recovery", 4)
    )
    made = replace(asked, space="prefix:2", train_examples=examples(speaking, "train", 16))
    prefix = [replace(made, seed=s).build().fingerprint for s in (0, 0, 1)]
    assert prefix[0] == prefix[1]
    assert {k for k in prefix[0] if prefix[0][k] != prefix[2][k]} == {"basis"}
    factors = [replace(asked, space="lora", seed=s).build().fingerprint for s in (0, 0, 1)]
    assert factors[0] == factors[1]
    assert {k for k in factors[0] if factors[0][k] != factors[2][k]} == {"searched weights"}


@pytest.mark.parametrize(
    "space", ["prefix:0", "prefix:", "prefix:-1", "prefix", "prefix:two", "prefix:²"]
)
def test_a_prefix_needs_a_number(plain: SearchSpec, space: str) -> None:
    with pytest.raises(LoclinError, match="expected prefix:K with K of at least 1, found --space"):
        replace(plain, space=space).build()


def test_a_prefix_needs_train_examples_of_its_own(trained: Problem, plain: SearchSpec) -> None:
    with pytest.raises(LoclinError, match="expected examples to train a prefix on"):
        replace(plain, space="prefix:2").build()
    mixed = (*examples(trained, "train", 1), plain.examples[3])
    with pytest.raises(LoclinError, match=r"expected a prefix trained on other groups .* in both"):
        replace(plain, space="prefix:2", train_examples=mixed).build()
    half = replace(plain, train_examples=examples(trained, "train", 2))
    half = replace(half, options=options(dtype="bfloat16"), space="prefix:2")
    with pytest.raises(LoclinError, match="expected weights of at least float32 for prefix:2"):
        half.build()


def test_the_fingerprint_names_what_is_another(
    trained: Problem, plain: SearchSpec, tmp_path: Path
) -> None:
    base = plain.build().fingerprint
    assert base["examples"] == len(plain.examples)
    folder = tmp_path / "copied"
    trained.model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    moved = replace(plain, options=options(str(folder)))
    assert moved.build().fingerprint == base  # a model is its content, not its name

    def differing(other: SearchSpec) -> set[str]:
        found = other.build().fingerprint
        return {name for name in base if base[name] != found[name]}

    assert differing(replace(plain, examples=plain.examples[::-1])) == {"questions", "tokens"}
    assert differing(replace(plain, noise=Noise.parse("tied"))) == {"noise"}
    part = differing(replace(plain, space="*attn*"))
    assert part == {"searched weights", "other weights", "coordinates"}
    assert "dtype" in differing(replace(plain, options=options(dtype="bfloat16")))
    network, *_ = read_pretrained(str(folder), options())
    with torch.no_grad():
        network.transformer.h[0].ln_1.weight[0] += 1e-6
    network.save_pretrained(folder)
    assert differing(moved) == {"searched weights"}
    # the other weights are others than all but these were
    assert differing(replace(moved, space="*attn*")) == part
    adapted = replace(plain, space="lora")
    scales = [replace(adapted, lora=Lora(alpha=a)).build().fingerprint for a in (8, 16)]
    assert {k for k in scales[0] if scales[0][k] != scales[1][k]} == {"configuration"}


def test_a_loaded_model_is_taken_as_it_is(trained: Problem, plain: SearchSpec) -> None:
    for spec in (plain, replace(plain, space="*attn*")):
        scorer = spec.build(trained)
        assert scorer.problem.model is trained.model
        assert scorer.fingerprint == spec.build().fingerprint


def test_a_scorer_of_another_model_is_refused(plain: SearchSpec) -> None:
    """A folder that was trained on, or another revision, in the middle of a search."""
    own = plain.build().fingerprint
    replace(plain, expected=own).build()
    other = replace(plain, expected={**own, "other weights": "x"})
    text = (
        r"found others \(other weights is 'x' in the record, .*: score with what the search began"
    )
    with pytest.raises(LoclinError, match=text):
        other.build()


def test_a_basis_that_was_made_is_taken(trained: Problem, plain: SearchSpec) -> None:
    spec = replace(plain, space="prefix:3", train_examples=examples(trained, "train", 4))
    made = spec.build().perturbed.basis
    assert made is not None
    # without train examples none could be made
    taken = replace(spec, train_examples=(), basis=made).build().perturbed.basis
    assert taken is not None
    assert torch.equal(taken, made)
