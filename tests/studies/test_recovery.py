"""One real run of the study on the small model, its numbers held against what can be recomputed
from the record.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.geometry.gramian import future_capture, prefix_capture
from loclin.models import Problem, twice_differentiable
from loclin.parameters import ParameterSpace
from loclin.record import Part, Row
from loclin.studies.directions import (
    disjoint_batches,
    hessian_directions,
    norm_matched_noise,
    task_vectors,
)
from loclin.studies.recovery import claims, experiment
from loclin.studies.recovery.config import Config, preset
from loclin.studies.table import by_run, summaries
from loclin.tasks.batch import answer_loss

TINY = dataclasses.replace(
    preset("smoke"),
    task="swap",
    seeds=1,
    steps=12,
    k=3,
    ks=(1, 2, 3, 6),
    times=(1, 5, 12),
    gradients=8,
    gradient_batch=4,
    hessian_batch=32,
    project_steps=8,
    project_ks=(3, 6),
    task_vector_steps=3,
    shuffles=9,
).checked()


@pytest.fixture(scope="session")
def part(trained: Problem) -> Part:
    return experiment.run_one(TINY, 0, lambda stage, share: None)


def values(part: Part, quantity: str, **context: Any) -> list[float]:
    return [float(v) for v in by_run(part.rows, quantity, **context)]


def test_the_task_was_known_is_lost_and_the_others_are_kept(part: Part) -> None:
    assert values(part, "score", point="pretrained", on="swap")[0] > 0.95
    assert values(part, "score", point="damaged", on="swap")[0] < 0.05
    for task in ("copy", "reverse", "halves", "increment", "rotate"):
        assert values(part, "score", point="damaged", on=task)[0] > 0.8


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_captures_can_be_recomputed_from_the_kept_gramian(part: Part, optimiser: str) -> None:
    g = part.arrays[f"update_gramian/weights/{optimiser}/0"]
    assert g.shape == (12, 12)
    assert g.dtype == np.float64
    for k in (1, 2, 3, 6, 12):
        assert values(part, "prefix_capture", optimiser=optimiser, k=k) == pytest.approx(
            prefix_capture(g, [k])
        )
    for k in (1, 2, 3, 6):
        assert values(part, "future_capture", optimiser=optimiser, k=k) == pytest.approx(
            future_capture(g, [k])
        )
    assert values(part, "prefix_capture", optimiser=optimiser, k=12) == pytest.approx([1.0])


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_every_null_and_control_is_there(part: Part, optimiser: str) -> None:
    here: dict[str, Any] = {"optimiser": optimiser, "k": 3}
    for null in ("white", "white, own norms", "heavy ball", "stationary drift", "shuffled order"):
        assert len(values(part, "prefix_capture_null", null=null, **here)) == 1
    controls = (
        "another run's prefix",
        "another task's prefix",
        "minibatch gradients",
        "norm-matched noise",
    )
    for basis in (*claims.STATIC, "random", *controls):
        for of in ("displacement", "future"):
            assert 0 <= values(part, "basis_capture", basis=basis, of=of, **here)[0] <= 1
        assert len(values(part, "regained_score", basis=basis, **here)) == 1
    assert len(values(part, "reset_future_capture", optimiser=optimiser)) == (optimiser == "adamw")
    for t in (1, 5, 12):
        assert len(values(part, "rho", optimiser=optimiser, t=t)) == 1


def test_random_bases_hold_what_chance_gives(part: Part) -> None:
    dimension = values(part, "dimension")[0]
    for basis in ("random", "norm-matched noise"):
        assert (
            values(part, "basis_capture", basis=basis, of="displacement", optimiser="sgd", k=3)[0]
            < 50 * 3 / dimension
        )


def test_the_other_orders_differ_but_share_the_start(part: Part) -> None:
    same_start = values(
        part, "basis_capture", basis="another run's prefix", of="displacement", optimiser="sgd", k=3
    )[0]
    noise = values(
        part, "basis_capture", basis="norm-matched noise", of="displacement", optimiser="sgd", k=3
    )[0]
    assert noise < same_start < 1 - 1e-6


def test_a_run_is_the_same_whenever_it_is_done(part: Part) -> None:
    again = experiment.run_one(TINY, 0, lambda stage, share: None)
    assert list(again.rows) == list(part.rows)
    assert all(np.array_equal(again.arrays[k], part.arrays[k]) for k in part.arrays)


def test_claims_are_decided_even_on_one_run_without_pretending(part: Part) -> None:
    decided = claims.decide(TINY, part.rows)
    assert {c.id for c in decided} == {
        "static-bases-miss", "basis-drifts", "prefix-captures", "prefix-predicts-recovery",
    }  # fmt: skip
    assert {c.verdict for c in decided} == {"inconclusive"}
    assert all(c.low is None and c.high is None for c in decided)
    assert all(isinstance(r, Row) for r in summaries(part.rows))


def test_hessian_directions_are_eigenvectors_of_the_largest_eigenvalues(trained: Problem) -> None:
    space = ParameterSpace(trained.model, "transformer.h.0.ln_1.*,transformer.ln_f.*")
    data = trained.batch("recovery", "swap").rows(slice(0, 16))
    top = hessian_directions(trained, space, data, 4, seed=0)
    with twice_differentiable(trained.model):
        columns = [
            space.hessian_product(lambda b: answer_loss(trained.model, b), [data], e)
            for e in torch.eye(space.dimension)
        ]
    dense = torch.stack(columns).double().numpy()
    _, vectors = np.linalg.eigh((dense + dense.T) / 2)
    for i in range(4):
        assert abs(top[i].double().numpy() @ vectors[:, -1 - i]) > 0.99


def test_norm_matched_noise_has_the_norms_of_its_model(trained: Problem) -> None:
    space = ParameterSpace(trained.model)
    like = torch.stack([space.noise(seed=1), space.noise(seed=2)])
    like[:, : space.dimension // 2] *= 10
    noise = norm_matched_noise(space, like, seed=0)
    for row, model in zip(noise, like, strict=True):
        for a, b in zip(
            space.by_tensor(row).values(), space.by_tensor(model).values(), strict=True
        ):
            assert torch.isclose(a.norm(), b.norm(), rtol=1e-4)
    assert abs(float(torch.corrcoef(torch.stack([noise[0], like[0]]))[0, 1])) < 0.1


def test_task_vectors_differ_and_leave_the_model_where_it_was(trained: Problem) -> None:
    space = ParameterSpace(trained.model)
    before = space.read()
    vectors = task_vectors(
        trained, space, 7, batch=TINY.batch, lr=TINY.adamw_lr, steps=TINY.task_vector_steps, seed=0
    )
    assert torch.equal(space.read(), before)
    assert torch.linalg.matrix_rank(vectors) == 7


def test_disjoint_batches_share_no_example(trained: Problem) -> None:
    data = trained.batch("gradients", "swap")
    drawn = disjoint_batches(data, 4, 10, seed=0) + disjoint_batches(data, 4, 10, seed=0, skip=10)
    rows = [tuple(r) for b in drawn for r in b.input_ids.tolist()]
    assert len(set(rows)) == len(rows) == 80
    with pytest.raises(
        LoclinError, match="at least 400 examples for 100 disjoint batches of 4, found 240"
    ):
        disjoint_batches(data, 4, 100, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "fly"}, "unknown task 'fly': expected each, or one of copy"),
        ({"model": "gpt5", "data": "sequences"}, "found that 'gpt5' is none of these"),
        (
            {"batch": 5000},
            r"at least 5000 examples of swap in the recovery split, found \d+: give more data or "
            r"lower --batch",
        ),
        ({"space": "nothing"}, "expected a pattern that matches"),
        ({"device": "cuda" if not torch.cuda.is_available() else "tpu"}, "expected a device among"),
        ({"sgd_lr": 1e30}, "expected a finite loss, found nan: lower the learning rate"),
        (
            {"damage_lr": 1e-9, "damage_steps": 1},
            "expected a score of 0.05 or less on swap after damage",
        ),
    ],
)
def test_runs_that_cannot_go_on_say_why(
    trained: Problem, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config: Config = dataclasses.replace(TINY, **change)
    with pytest.raises(LoclinError, match=message):
        experiment.run_one(config, 0, lambda stage, share: None)
