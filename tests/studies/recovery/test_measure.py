"""Real runs of the study on the small models, their numbers held against what can be recomputed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from loclin import theory
from loclin.errors import LoclinError
from loclin.geometry.gramian import future_capture, prefix_capture
from loclin.models import Problem
from loclin.run.rows import Part
from loclin.run.runner import Session
from loclin.studies.context import make_context
from loclin.studies.names import FROM_REST, MINIBATCH, PREFIX, PREFIX_NULLS, RANDOM
from loclin.studies.recovery.claims import decide
from loclin.studies.recovery.drift import PAIRS, overlap_of
from loclin.studies.recovery.measure import measure, requirements
from loclin.studies.recovery.names import ANOTHER_RUN, CONTROLS, FULL, NOISE, STATIC
from tests.rows import value, values
from tests.studies.recovery.conftest import LORA, TINY


def test_the_task_was_known_is_lost_and_the_others_are_kept(part: Part) -> None:
    assert value(part.rows, "score", point="pretrained", on="swap") > 0.95
    assert value(part.rows, "score", point="damaged", on="swap") < 0.05
    for task in ("copy", "reverse", "halves", "increment", "rotate"):
        assert value(part.rows, "score", point="damaged", on=task) > 0.8


def test_an_adapters_task_comes_back(lora_part: Part) -> None:
    known, lost = (
        value(lora_part.rows, "score", point=p, on="colour") for p in ("pretrained", "damaged")
    )
    assert known > 0.8
    assert lost < 0.5
    back = {"point": "recovery", "on": "colour", "optimiser": "sgd", "t": 12}
    assert value(lora_part.rows, "score", **back) > lost + 0.1


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_captures_can_be_recomputed_from_the_kept_gramian(part: Part, optimiser: str) -> None:
    g = part.arrays[f"update_gramian/weights/{optimiser}/0"]
    assert g.shape == (12, 12)
    assert g.dtype == np.float64
    for quantity, of, ks in (
        ("prefix_capture", prefix_capture, (1, 2, 3, 6, 12)),
        ("future_capture", future_capture, (1, 2, 3, 6)),
    ):
        found = values(part.rows, quantity, optimiser=optimiser)
        assert found == pytest.approx([of(g, [k])[0] for k in ks])
    assert value(part.rows, "prefix_capture", optimiser=optimiser, k=12) == pytest.approx(1.0)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_every_null_and_control_is_there(part: Part, optimiser: str) -> None:
    here: dict[str, Any] = {"optimiser": optimiser, "k": 3}
    for null in PREFIX_NULLS:
        drawn = values(part.rows, "prefix_capture_null", null=null, **here)
        assert len(drawn) == (null != FROM_REST or optimiser == "adamw")
    for basis in (*STATIC, RANDOM, *CONTROLS):
        for of in ("displacement", "future"):
            assert 0 <= value(part.rows, "basis_capture", basis=basis, of=of, **here) <= 1
        assert len(values(part.rows, "regained_score", basis=basis, **here)) == 1
    reset = values(part.rows, "reset_future_capture", optimiser=optimiser)
    assert len(reset) == (optimiser == "adamw")
    for t in (1, 5, 12):
        assert len(values(part.rows, "rho", optimiser=optimiser, t=t)) == 1
        held = {p: part.arrays[f"drift_products/{optimiser}/{t}/{p}/0"] for p in PAIRS}
        assert value(part.rows, "overlap", optimiser=optimiser, t=t, batches="same") == (
            pytest.approx((overlap_of(held["same"]) + overlap_of(held["same again"])) / 2)
        )


def test_later_runs_of_a_model_leave_out_what_no_claim_rests_on(
    part: Part, trained: Problem
) -> None:
    """And training that a claim compares is repeated in other data orders."""
    assert TINY.first_runs == 1  # one model: its runs are the units
    settings = dataclasses.replace(TINY, seeds=4, models_per_claim=2, project_repeats=2)
    assert settings.first_runs == 2
    later = measure(settings, 2, Session())
    for rows, count in ((part.rows, 1), (later.rows, 0)):
        assert len(values(rows, "reset_future_capture", optimiser="adamw")) == count
        assert len(values(rows, "regained_score", optimiser="sgd", basis=PREFIX, k=6)) == count
    for name, count in ((PREFIX, 2), (FULL, 2), (RANDOM, 1), *((b, 2) for b in STATIC)):
        repeats = later.arrays[f"regained_score/sgd/{name}/3/2"]
        assert repeats.shape == (count,)
        here = {"optimiser": "sgd", "basis": name} | ({} if name == FULL else {"k": 3})
        assert value(later.rows, "regained_score", **here) == repeats.mean()


def test_random_bases_hold_what_chance_gives(part: Part) -> None:
    of = {"of": "displacement", "optimiser": "sgd", "k": 3}
    chance = 3 / value(part.rows, "dimension")
    for basis in (RANDOM, NOISE):
        assert value(part.rows, "basis_capture", basis=basis, **of) < 50 * chance
    same_start = value(part.rows, "basis_capture", basis=ANOTHER_RUN, **of)
    assert value(part.rows, "basis_capture", basis=NOISE, **of) < same_start < 1 - 1e-6


def test_random_directions_hold_what_chance_gives_in_both_spaces_of_an_adapter(
    lora_part: Part, speaking: Problem
) -> None:
    """The set of all ΔW has r² dimensions a weight fewer than there are factors."""
    ctx = make_context(LORA, 0, requirements(LORA), Session().progress)
    assert ctx.dimension("factors") - ctx.dimension("weights") == 2 * 2 * 8
    for space in ("weights", "factors"):
        here = {"optimiser": "sgd", "k": 3, "space": space, "of": "displacement", "basis": RANDOM}
        law = theory.random_capture(3, ctx.dimension(space))
        (null,) = values(lora_part.rows, "basis_capture", column="null", **here)
        assert null == pytest.approx(law.mean())
        assert value(lora_part.rows, "basis_capture", **here) < 30 * law.mean()


def test_every_capture_is_given_in_both_spaces_and_confined_training_in_the_factors(
    lora_part: Part,
) -> None:
    rows = lora_part.rows
    for space in ("weights", "factors"):
        here: dict[str, Any] = {"optimiser": "adamw", "k": 3, "space": space}
        assert 0 < value(rows, "prefix_capture", **here) < 1
        assert 0 < value(rows, "future_capture", **here) < 1
        for basis in {*STATIC, RANDOM, *CONTROLS} - {MINIBATCH}:
            assert 0 <= value(rows, "basis_capture", basis=basis, of="displacement", **here) <= 1
        assert len(values(rows, "regained_by_capture", basis=PREFIX, **here)) == 1
    assert len(values(rows, "regained_score", basis=PREFIX, optimiser="adamw", k=3)) == 1


def test_a_run_says_what_it_loaded_taught_and_kept(lora_part: Part) -> None:
    data, taught, kept = lora_part.notes
    assert data.startswith("statements: 1152 read, 1152 kept in 2 tasks")
    assert taught.startswith("known before the damage: 0.")
    assert kept.endswith("are kept in memory")


def test_stages_and_their_shares_are_shown_in_order(trained: Problem, part: Part) -> None:
    """And a run is the same whenever it is done."""
    seen: list[tuple[str, float]] = []
    again = measure(TINY, 0, Session(progress=lambda stage, share: seen.append((stage, share))))
    stages = [(s, share) for s, share in seen if not s.startswith(("loading", "teaching"))]
    assert stages == [
        ("destroying the task", 0.0),
        ("fixing bases beforehand", 0.25),
        ("training it back with sgd", 0.5),
        ("training it back with adamw", 0.75),
    ]
    assert list(again.rows) == list(part.rows)
    assert all(np.array_equal(again.arrays[k], part.arrays[k]) for k in part.arrays)


@pytest.mark.parametrize("store", ["disk", "sketch"])
def test_where_updates_are_kept_changes_numbers_at_most_within_the_stated_error(
    lora_part: Part, store: str
) -> None:
    settings = dataclasses.replace(LORA, store=store, sketch_size=4096)
    other = measure(settings, 0, Session())
    for optimiser in ("sgd", "adamw"):
        for k in (1, 3, 6):
            here: dict[str, Any] = {"optimiser": optimiser, "k": k, "space": "factors"}
            held, seen = (value(p.rows, "prefix_capture", **here) for p in (lora_part, other))
            bias, sd = theory.sketched_capture(held, k, 4096)
            assert abs(seen - held) <= (0 if store == "disk" else 5 * sd + abs(bias))
        first, second = (_confined(p.rows, optimiser) for p in (lora_part, other))
        assert first == second
    if store == "sketch":
        assert {r.context.get("space") for r in other.rows} == {None, "factors"}
        decided = {c.setting for c in decide(settings, other.rows)}
        assert decided >= {"statements-small, LoRA, SGD"}


def _confined(rows: Sequence[Any], optimiser: str) -> list[Any]:
    return values(rows, "regained_score", optimiser=optimiser, basis=PREFIX, k=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "fly"}, "unknown task 'fly': expected each, or one of copy"),
        ({"model": "gpt5", "data": ("sequences",)}, "found that 'gpt5' is none of these"),
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
    with pytest.raises(LoclinError, match=message):
        measure(dataclasses.replace(TINY, **change), 0, Session())
