import math
from pathlib import Path

import pytest
import torch

from loclin import theory
from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian, prefix_capture
from loclin.geometry.sketch import Sketch
from loclin.geometry.subspace import random_subspace
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.training import Trajectory, make_optimiser, minibatches, record, train
from loclin.updates import Keeping


def batches(problem: Problem, seed: int = 0):
    return minibatches(problem.batch("recovery", "halves"), 8, seed=seed)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_recording_changes_nothing_and_adds_up(trained: Problem, name: str) -> None:
    space = ParameterSpace(trained.model)
    start = space.read()
    with space.restored():
        losses = train(trained.model, space, batches(trained), make_optimiser(name, space, 1e-3), 6)
        plain = space.read()
    with space.restored():
        trajectory = record(
            trained.model, space, batches(trained), make_optimiser(name, space, 1e-3), 6
        )
        assert torch.equal(space.read(), plain)
    assert torch.equal(trajectory.losses, losses)
    assert torch.equal(trajectory.start, start)
    assert torch.allclose(trajectory.displacement, plain - start, atol=1e-6)
    assert torch.allclose(trajectory.future(4), trajectory.updates[4] + trajectory.updates[5])


@pytest.mark.parametrize("store", ["disk", "sketch"])
def test_where_updates_are_kept_changes_nothing_else(
    trained: Problem, store: str, tmp_path: Path
) -> None:
    """A mapped file holds the same bits; a sketch the same inner products within its stated error,
    its head the same bits.
    """
    space = ParameterSpace(trained.model)
    sketch = Sketch(size=4096, seed=0)

    def run(keeping: Keeping) -> Trajectory:
        with space.restored():
            optimiser = make_optimiser("adamw", space, 1e-3)
            return record(
                trained.model, space, batches(trained), optimiser, 12, keeping=keeping, exactly=5
            )

    exact, other = run(Keeping()), run(Keeping(store=store, folder=tmp_path, sketch=sketch))
    assert torch.equal(exact.head[:5], other.head[:5])
    assert torch.equal(exact.losses, other.losses)
    assert list(tmp_path.iterdir()) == []  # the file has no name that could be left behind
    if store == "disk":
        assert torch.equal(exact.updates, other.updates)
        return
    assert other.updates.shape == (12, 4096)
    ks = [1, 2, 5, 10]
    for held, seen in zip(
        prefix_capture(gramian(exact.updates), ks),
        prefix_capture(gramian(other.updates), ks),
        strict=True,
    ):
        bias, sd = theory.sketched_capture(held, 10, 4096)
        assert abs(seen - held) < 5 * sd + 2 * abs(bias)


def test_the_first_steps_are_those_of_the_definitions(trained: Problem) -> None:
    """SGD steps along −lr·g; Adam's first step is about −lr·sign(g), which is no gradient."""
    space = ParameterSpace(trained.model)
    first = next(batches(trained))
    from loclin.tasks.batch import answer_loss

    g = space.gradient(lambda b: answer_loss(trained.model, b), [first])
    with space.restored():
        sgd = record(
            trained.model, space, batches(trained), make_optimiser("sgd", space, 0.1), 1
        ).updates[0]
    with space.restored():
        adam = record(
            trained.model, space, batches(trained), make_optimiser("adamw", space, 1e-3), 1
        ).updates[0]
    assert torch.allclose(sgd, -0.1 * g, atol=1e-6)
    large = g.abs() > 1e-5
    assert torch.allclose(adam[large], -1e-3 * g[large].sign(), rtol=0.02)


def test_confined_training_stays_in_its_subspace(trained: Problem) -> None:
    space = ParameterSpace(trained.model)
    start, basis = space.read(), random_subspace(5, space.dimension, seed=0)
    with space.restored():
        train(
            trained.model,
            space,
            batches(trained),
            make_optimiser("sgd", space, 10.0),
            5,
            confine_to=basis,
        )
        moved = space.read() - start
    assert moved.norm() > 0
    assert basis.capture(moved) > 0.999


def test_a_reset_forgets_the_moments(trained: Problem) -> None:
    space = ParameterSpace(trained.model)

    def updates(reset_at: int | None) -> torch.Tensor:
        with space.restored():
            optimiser = make_optimiser("adamw", space, 1e-3)
            return record(
                trained.model, space, batches(trained), optimiser, 4, reset_at=reset_at
            ).updates

    kept, reset = updates(None), updates(2)
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
    space = ParameterSpace(trained.model)
    with (
        space.restored(),
        pytest.raises(
            LoclinError, match=r"finite loss, found nan at step \d of 9: lower the learning"
        ),
    ):
        train(trained.model, space, batches(trained), make_optimiser("sgd", space, 1e30), 9)
