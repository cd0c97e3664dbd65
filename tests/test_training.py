import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loclin import theory
from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian, prefix_capture
from loclin.geometry.sketch import Sketch
from loclin.geometry.subspace import Subspace
from loclin.models import Problem
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.tasks.batch import answer_loss
from loclin.training import (
    OptimiserName,
    Trajectory,
    adapter_dropout,
    make_optimiser,
    minibatches,
    record,
    train,
)
from loclin.updates import Store, UpdateStorage
from tests.conftest import random_model


def batches(problem: Problem):
    return minibatches(problem.batch("recovery", "halves"), 8, seed=0)


def recorded(
    problem: Problem, steps: int, name: OptimiserName = "adamw", lr: float = 1e-3, **options
) -> Trajectory:
    """A short training; the model is afterwards what it was."""
    space = ParameterSpace(problem.model)
    with space.restored():
        optimiser = make_optimiser(name, space, lr)
        return record(problem.model, space, batches(problem), optimiser, steps, **options)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_recording_changes_nothing_and_adds_up(trained: Problem, name: OptimiserName) -> None:
    space = ParameterSpace(trained.model)
    start = space.read()
    with space.restored():
        losses = train(trained.model, space, batches(trained), make_optimiser(name, space, 1e-3), 6)
        plain = space.read()
    with space.restored():
        optimiser = make_optimiser(name, space, 1e-3)
        trajectory = record(trained.model, space, batches(trained), optimiser, 6)
        assert torch.equal(space.read(), plain)
    assert torch.equal(trajectory.losses, losses)
    assert torch.equal(trajectory.start, start)
    assert torch.allclose(trajectory.displacement, plain - start, atol=1e-6)
    assert torch.allclose(trajectory.future(4), trajectory.updates[4] + trajectory.updates[5])


@pytest.mark.parametrize("store", ["disk", "sketch"])
def test_where_updates_are_kept_changes_nothing_else(
    trained: Problem, store: Store, tmp_path: Path
) -> None:
    """A mapped file holds the same bits; a sketch the same inner products within its stated error,
    its head the same bits.
    """
    storage = UpdateStorage(store=store, folder=tmp_path, sketch=Sketch(size=4096, seed=0))
    whole, other = recorded(trained, 12), recorded(trained, 12, storage=storage, head=5)
    assert torch.equal(whole.head[:5], other.head[:5])
    assert torch.equal(whole.losses, other.losses)
    assert list(tmp_path.iterdir()) == []  # the file has no name that could be left behind
    if store == "disk":
        assert torch.equal(whole.updates, other.updates)
        return
    assert other.updates.shape == (12, 4096)
    sides = (prefix_capture(gramian(run.updates), [1, 2, 5, 10]) for run in (whole, other))
    for held, seen in zip(*sides, strict=True):
        bias, sd = theory.sketched_capture(held, 10, 4096)
        assert abs(seen - held) < 5 * sd + 2 * abs(bias)


def test_the_first_steps_are_those_of_the_definitions(trained: Problem) -> None:
    """SGD steps along −lr·g; Adam's first step is about −lr·sign(g), which is no gradient."""
    space, first = ParameterSpace(trained.model), next(batches(trained))
    g = space.gradient(lambda b: answer_loss(trained.model, b), [first])
    sgd, adam = recorded(trained, 1, "sgd", 0.1).updates[0], recorded(trained, 1).updates[0]
    assert torch.allclose(sgd, -0.1 * g, atol=1e-6)
    large = g.abs() > 1e-5
    assert torch.allclose(adam[large], -1e-3 * g[large].sign(), rtol=0.02)


def test_confined_training_stays_in_its_subspace(trained: Problem) -> None:
    model = copy.deepcopy(trained.model).double()  # a small step is a difference of large points
    space = ParameterSpace(model)
    start = space.read()
    basis = Subspace.spanned_by(torch.stack([space.noise(seed=i) for i in range(5)]))
    train(model, space, batches(trained), make_optimiser("sgd", space, 10.0), 5, confine_to=basis)
    moved = space.read() - start
    assert moved.norm() > 0
    assert basis.capture(moved) > 1 - 1e-9


def test_a_reset_forgets_the_moments(trained: Problem) -> None:
    kept, reset = recorded(trained, 4).updates, recorded(trained, 4, reset_at=2).updates
    assert torch.equal(kept[:2], reset[:2])
    assert math.isclose(float(reset[2].abs().max()), 1e-3, rel_tol=0.05)  # a first Adam step again
    assert not torch.allclose(kept[2], reset[2])


def test_an_epoch_shows_every_example_once(trained: Problem) -> None:
    data = trained.batch("recovery", "copy").rows(slice(0, 12))
    drawn = minibatches(data, 4, seed=0)
    seen = torch.cat([next(drawn).input_ids for _ in range(3)])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, data.input_ids.tolist()))
    assert not torch.equal(seen, data.input_ids)


def test_bad_batches_and_a_diverging_loss_are_refused(trained: Problem) -> None:
    with pytest.raises(LoclinError, match="batch size from 1 to the split's 60 examples, found 81"):
        minibatches(trained.batch("test", "copy"), 81, seed=0)
    with pytest.raises(
        LoclinError, match=r"finite loss, found nan at step \d of 9: lower the learning"
    ):
        recorded(trained, 9, "sgd", 1e30)


def test_dropout_is_drawn_by_its_seed_and_off_again_after_an_exception() -> None:
    adapted = attach(random_model("llama", 320), Lora(rank=2, dropout=0.5), seed=3)
    space = ParameterSpace(adapted)
    space.add(space.noise(seed=0))  # B is zero in a new adapter, and dropout cannot be seen
    tokens, before = torch.arange(3, 15).view(2, 6), torch.get_rng_state()

    @torch.no_grad()
    def logits(seed: int | None) -> Tensor:
        with adapter_dropout(adapted, seed=seed):
            return adapted(input_ids=tokens).logits

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    assert torch.equal(logits(None), logits(None))

    def interrupted() -> None:
        with adapter_dropout(adapted, seed=1):
            assert any(m.training for m in adapted.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(m.training for m in adapted.modules())
    assert torch.equal(torch.get_rng_state(), before)
