"""The recovery study by LoRA on the small statement model: ΔW against dense matrices, storage,
dropout, what is said.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from loclin import theory
from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian, prefix_capture
from loclin.models import Problem
from loclin.record import Part
from loclin.studies.bench import Bench, make_bench
from loclin.studies.families import chord_family, products, steps_family, tangent_family
from loclin.studies.recovery import claims, experiment
from loclin.studies.recovery.config import Config, preset
from loclin.studies.table import by_run

TINY = dataclasses.replace(
    preset("smoke", "statements-small"),
    seeds=1,
    ranks=(2,),
    steps=12,
    k=3,
    ks=(1, 2, 3, 6),
    times=(1, 5, 12),
    gradients=6,
    hessian_batch=16,
    project_steps=8,
    project_ks=(3, 6),
    task_vector_steps=3,
    shuffles=9,
).checked()


def silent(stage: str, share: float) -> None:
    pass


@pytest.fixture(scope="session")
def part(speaking: Problem) -> Part:
    return experiment.run_one(TINY, 0, silent)


@pytest.fixture(scope="session")
def bench(speaking: Problem) -> Bench[Config]:
    """A taught adapter. Tests that move it do so inside `space.restored()`."""
    return make_bench(TINY, 0, experiment.demand(TINY), silent)


def values(part: Part, quantity: str, **context: Any) -> list[float]:
    return [float(v) for v in by_run(part.rows, quantity, **context)]


def dense_weights(bench: Bench[Config], points: list[torch.Tensor]) -> torch.Tensor:
    """ΔW of every adapted weight at each point, by peft's own merge, laid end to end in float64."""
    rows = []
    with bench.space.restored():
        for point in points:
            bench.space.write(point)
            layers = [m for m in bench.problem.model.modules() if isinstance(m, LoraLayer)]
            rows.append(
                torch.cat(
                    [m.get_delta_weight("default").detach().double().reshape(-1) for m in layers]
                )
            )
    return torch.stack(rows)


def recorded(bench: Bench[Config]) -> Any:
    return experiment._record(bench, "adamw", bench.task, bench.space.read(), 8, order="recovery")


def test_the_task_was_known_is_lost_and_comes_back(part: Part) -> None:
    known, lost = (
        values(part, "score", point=p, on="colour")[0] for p in ("pretrained", "damaged")
    )
    assert known > 0.8
    assert lost < 0.5
    assert (
        values(part, "score", point="recovery", on="colour", optimiser="sgd", t=12)[0] > lost + 0.1
    )


def test_steps_in_weight_space_are_those_of_the_merged_weights(bench: Bench[Config]) -> None:
    real = recorded(bench)
    points = [real.start + real.updates[:t].sum(0) for t in range(9)]
    dense = dense_weights(bench, points).diff(dim=0)
    found = products(bench, steps_family(bench, real))
    assert np.allclose(
        found["weights"],
        (dense @ dense.T).numpy(),
        rtol=1e-3,
        atol=1e-4 * float(dense[0].square().sum()),
    )
    assert np.allclose(found["factors"], gramian(real.updates))
    assert not np.allclose(
        prefix_capture(found["weights"], [2]), prefix_capture(found["factors"], [2]), atol=1e-3
    )


def test_chords_are_finite_and_tangents_small_displacements_of_the_merged_weights(
    bench: Bench[Config],
) -> None:
    start, directions = bench.space.read(), torch.stack([bench.space.noise(seed=s) for s in (0, 1)])
    for family, step in ((chord_family, 1.0), (tangent_family, 1e-3)):
        rows = directions * step
        dense = dense_weights(bench, [start, *(start + row for row in rows)])
        moved = dense[1:] - dense[0]
        found = products(bench, family(bench, start, rows))["weights"]
        assert np.allclose(found, (moved @ moved.T).numpy(), rtol=2e-2 if step < 1 else 1e-4)


def test_every_capture_is_given_in_both_spaces_and_projected_training_in_the_factors(
    part: Part,
) -> None:
    for space in ("weights", "factors"):
        here: dict[str, Any] = {"optimiser": "adamw", "k": 3, "space": space}
        assert 0 < values(part, "prefix_capture", **here)[0] < 1
        assert 0 < values(part, "future_capture", **here)[0] < 1
        for basis in (
            *claims.STATIC,
            "random",
            "another run's prefix",
            "another task's prefix",
            "norm-matched noise",
        ):
            assert (
                0 <= values(part, "basis_capture", basis=basis, of="displacement", **here)[0] <= 1
            )
        assert len(values(part, "regained_by_capture", basis="prefix", **here)) == 1
    assert len(values(part, "regained_score", basis="prefix", optimiser="adamw", k=3)) == 1


def test_random_directions_hold_what_chance_gives_in_both_spaces(
    part: Part, bench: Bench[Config]
) -> None:
    """The set of all ΔW has r² dimensions a weight fewer than there are factors."""
    assert bench.dimension("factors") - bench.dimension("weights") == 2 * 2 * 8
    for space in ("weights", "factors"):
        here: dict[str, Any] = {"optimiser": "sgd", "k": 3, "space": space, "of": "displacement"}
        law = theory.random_capture(3, bench.dimension(space))
        assert values(part, "basis_capture", column="null", basis="random", **here)[
            0
        ] == pytest.approx(law.mean())
        assert values(part, "basis_capture", basis="random", **here)[0] < 30 * law.mean()


def test_a_run_says_what_it_loaded_taught_and_kept(part: Part) -> None:
    data, taught, kept = part.notes
    assert data.startswith("statements: 1152 read, 1152 kept in 2 tasks")
    assert taught.startswith("known before the damage: 0.")
    assert kept.endswith("are kept in memory")


@pytest.mark.parametrize("store", ["disk", "sketch"])
def test_where_updates_are_kept_changes_numbers_at_most_within_the_stated_error(
    part: Part, store: str
) -> None:
    config = dataclasses.replace(TINY, store=store, sketch_size=4096)
    other = experiment.run_one(config, 0, silent)
    for optimiser in ("sgd", "adamw"):
        for k in (1, 3, 6):
            here: dict[str, Any] = {"optimiser": optimiser, "k": k}
            held = values(part, "prefix_capture", space="factors", **here)[0]
            seen = values(other, "prefix_capture", space="factors", **here)[0]
            bias, sd = theory.sketched_capture(held, k, 4096)
            assert abs(seen - held) <= (0 if store == "disk" else 5 * sd + abs(bias))
        scores = [
            values(p, "regained_score", optimiser=optimiser, basis="prefix", k=3)
            for p in (part, other)
        ]
        assert scores[0] == scores[1]
    if store == "sketch":
        assert {r.context.get("space") for r in other.rows} == {None, "factors"}
        assert {c.setting for c in claims.decide(config, other.rows)} >= {
            "statements-small, LoRA, SGD"
        }


def test_dropout_is_drawn_by_the_seed_and_off_when_scoring(bench: Bench[Config]) -> None:
    config = dataclasses.replace(TINY, dropout=0.3)
    made = make_bench(config, 0, experiment.demand(config), silent)
    first, second = (recorded(made).updates for _ in range(2))
    assert torch.equal(first, second)
    assert made.score() == made.score()
    with torch.no_grad():
        batch = made.problem.batch("test", "town")
        logits = [made.problem.model(input_ids=batch.input_ids).logits for _ in range(2)]
    assert torch.equal(*logits)
    asleep: list[bool] = []
    watch = {
        "after_step": lambda t: asleep.append(
            not any(m.training for m in made.problem.model.modules())
        )
    }
    experiment._record(made, "sgd", made.task, made.space.read(), 3, order="recovery", **watch)
    assert asleep == [True] * 3  # what is measured on the way is measured without dropout
    assert not torch.equal(first, recorded(bench).updates)


def test_a_task_that_cannot_be_learned_is_refused() -> None:
    """Answers that follow from nothing: known before the damage no better than guessed."""
    config = dataclasses.replace(TINY, teach_lr=0.3, teach_steps=5, reach=1.0)
    with pytest.raises(
        LoclinError,
        match=r"score of at least 0.55 on colour before the damage, found 0\.\d\d: there is "
        r"nothing to",
    ):
        make_bench(config, 0, experiment.demand(config), silent)


def test_directions_that_do_not_fit_are_refused_before_any_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loclin.studies.bench.free_memory", lambda device: 1000)
    monkeypatch.setattr("loclin.studies.bench.teach", lambda *_: pytest.fail("taught"))
    with pytest.raises(
        LoclinError,
        match=r"room for about \d+ directions of 3072 coordinates .* --space lora or a pattern",
    ):
        make_bench(TINY, 0, experiment.demand(TINY), silent)


def test_splits_too_small_are_refused_before_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loclin.studies.bench.teach", lambda *_: pytest.fail("taught"))
    config = dataclasses.replace(TINY, gradients=60)
    with pytest.raises(
        LoclinError,
        match=r"at least 480 examples of colour in the gradients split, found \d+: give more data",
    ):
        make_bench(config, 0, experiment.demand(config), silent)
