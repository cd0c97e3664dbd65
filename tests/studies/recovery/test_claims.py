"""Calibration: on planted nulls at most 5 % of verdicts are "supported" and at most 5 % "refuted",
on planted structure at least 95 % are right.

Every planted world goes through the code that measures real runs.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import special

from loclin import theory
from loclin.geometry.gramian import gramian, prefix_capture
from loclin.geometry.spectrum import principal_directions
from loclin.run.rows import Part, Row
from loclin.studies.captures import prefix_rows, step_response
from loclin.studies.names import DRIFT, FROM_REST, PREFIX
from loclin.studies.recovery import claims
from loclin.studies.recovery.drift import PAIRS, corrected_overlap, overlap_of
from loclin.studies.recovery.names import FULL, STATIC
from loclin.studies.recovery.settings import RecoverySettings
from loclin.studies.verdict import Rule, decided
from tests.planted import adam_steps, filtered_steps, white_steps
from tests.properties import World, assert_rarely_decided, verdict_shares
from tests.recompute.recovery import estimates, over_runs
from tests.studies.recovery.conftest import LORA, TINY

T, K = 60, 5
SETTINGS = RecoverySettings(k=K, ks=(K,), steps=T, times=(1, 20), seeds=12, models_per_claim=6)
DRAWS = 200
FADING = np.geomspace(1, 0.2, T)
MEMORY = theory.impulse_response(range(T + 1), 0.9)

Steps = Callable[[np.random.Generator], np.ndarray]
Rules = Callable[[RecoverySettings, list[Row], str], Rule]


def shares(
    world: World, rule: Rules, optimiser: str = "sgd", runs: int = SETTINGS.seeds
) -> dict[str, float]:
    settings = replace(SETTINGS, seeds=runs)
    return verdict_shares(world, lambda rows: rule(settings, rows, optimiser), DRAWS, runs=runs)


def filtered(response: np.ndarray, s: float, *, at_rest: bool = False) -> Steps:
    return lambda rng: filtered_steps(response, s, FADING, 50_000, rng, at_rest=at_rest)


def plane(rng: np.random.Generator) -> np.ndarray:
    """Steps that shrink within a plane of three directions, each with a little noise of its own."""
    span = np.linalg.qr(rng.standard_normal((400, 3)))[0].T
    weights = rng.standard_normal((T, 3)) + np.array([2.0, 1.0, 0.5])
    return (weights @ span + 0.3 * white_steps(T, 400, rng)) * np.geomspace(1, 0.05, T)[:, None]


def turning(rng: np.random.Generator) -> np.ndarray:
    """A drift that turns by a right angle, with noise of its own size."""
    angle = np.linspace(0, np.pi / 2, T)
    drift = np.zeros((T, 400))
    drift[:, 0], drift[:, 1] = np.cos(angle), np.sin(angle)
    return (drift + white_steps(T, 400, rng)) * FADING[:, None]


def turned(rng: np.random.Generator) -> np.ndarray:
    """A drift that has another direction from the eighth step on, through memory."""
    drift = np.zeros((T, 400))
    drift[:8, 0] = drift[8:, 1] = 1.0
    return (MEMORY @ (drift + white_steps(T, 400, rng))) * FADING[:, None]


def trajectory(make: Steps, optimiser: str) -> World:
    def world(rng: np.random.Generator, run: int) -> list[Row]:
        u = make(rng)
        here = {"run": run, "optimiser": optimiser, "space": "weights"}
        response = step_response(optimiser, T)
        return list(prefix_rows(u @ u.T, (K,), 50_000, 1, here, seed=run, response=response))

    return world


@pytest.mark.parametrize(
    ("optimiser", "make"),
    [
        ("sgd", lambda rng: white_steps(T, 1000, rng, np.geomspace(1, 0.01, T))),
        ("sgd", filtered(np.eye(T), 0.03)),
        ("sgd", filtered(np.eye(T), 0.6)),
        ("sgd", filtered(np.eye(T), 20.0)),
        ("adamw", filtered(MEMORY, 0.0)),
        ("adamw", filtered(MEMORY, 0.3)),
        ("adamw", filtered(MEMORY, 0.3, at_rest=True)),
        ("adamw", lambda rng: adam_steps(T, 400, 0.0, rng)),
        ("adamw", lambda rng: adam_steps(T, 400, 0.03, rng)),
    ],
    ids=[
        "white, fading 100-fold", "weak drift", "drift", "constant direction",
        "momentum noise", "drift and momentum noise", "the same from rest", "Adam's noise",
        "Adam's drift and noise",
    ],
)  # fmt: skip
def test_what_is_no_more_than_drift_is_not_beyond_it(optimiser: str, make: Steps) -> None:
    world = trajectory(make, optimiser)
    assert_rarely_decided(shares(world, claims.prefix_beyond_drift, optimiser, 6), DRAWS)


@pytest.mark.parametrize(
    ("optimiser", "make", "verdict"),
    [
        ("sgd", plane, "supported"),
        ("adamw", plane, "supported"),
        ("sgd", turning, "refuted"),
        ("adamw", turned, "refuted"),
    ],
)
def test_special_bases_and_turning_directions_are_seen(
    optimiser: str, make: Steps, verdict: str
) -> None:
    world = trajectory(make, optimiser)
    assert shares(world, claims.prefix_beyond_drift, optimiser, 6)[verdict] >= 0.95


def nested(rng: np.random.Generator, size: int, model: float, run: float) -> np.ndarray:
    """Normal errors of a study's runs, shared in part by the runs of a model."""
    of_model = model * rng.standard_normal((SETTINGS.models, size))
    return np.array([of_model[r % SETTINGS.models] for r in range(SETTINGS.seeds)]) + (
        run * rng.standard_normal((SETTINGS.seeds, size))
    )


def of_study(make: Callable[[np.random.Generator], list[list[Row]]]) -> World:
    """A world whose runs are drawn together, since those of one model are not independent."""
    kept: dict[int, list[list[Row]]] = {}

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        if run == 0:
            kept[0] = make(rng)
        return kept[0][run]

    return world


@pytest.mark.parametrize(("share", "verdict"), [(0.5, None), (0.8, "supported"), (0.2, "refuted")])
def test_prefix_holds_most(share: float, verdict: str | None) -> None:
    """Shares that are skewed, of runs that are nested in models."""

    def make(rng: np.random.Generator) -> list[list[Row]]:
        of_model = rng.gamma(4, 0.2, SETTINGS.models)[np.arange(SETTINGS.seeds) % SETTINGS.models]
        skewed = of_model[:, None] - 0.8 + nested(rng, 1, 0.0, 0.2)
        held = special.expit(special.logit(share) + skewed)
        return [
            [
                Row(
                    quantity=quantity,
                    value=float(v[0]),
                    null=0.1,
                    context={
                        "run": run, "optimiser": "sgd", "k": K, "space": "weights", "null": DRIFT
                    },
                )
                for quantity in ("prefix_capture", "prefix_capture_null")
            ]
            for run, v in enumerate(held)
        ]  # fmt: skip

    found = shares(of_study(make), claims.prefix_holds_most)
    if verdict is None:
        assert_rarely_decided(found, DRAWS)
    else:
        assert found[verdict] >= 0.95


def around(plane: np.ndarray | None, signal: float, rng: np.random.Generator) -> torch.Tensor:
    """Top directions of noisy gradients around a plane, or around nothing."""
    rows = 0.5 * rng.standard_normal((16, 200))
    if plane is not None:
        rows += signal * rng.standard_normal((16, K)) @ plane
    return principal_directions(torch.from_numpy(rows), K).basis


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("stays", "refuted"),
        ("stays and fades", "refuted"),
        ("half of it", None),
        ("isotropic", "not run"),
        ("moves", "supported"),
    ],
)
def test_basis_drifts(kind: str, verdict: str | None) -> None:
    """A plane that stays while its signal falls to 0.35 of what it was does not drift; planes that
    keep half of their squared cosines in the mean are at the threshold.
    """

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        q = np.linalg.qr(rng.standard_normal((200, 2 * K)))[0].T
        first, new = (q[:K], q[K:])
        kept = np.clip(0.5 + 0.15 * rng.standard_normal(), 0, 1)
        half = np.sqrt(kept) * first + np.sqrt(1 - kept) * new
        turned = {"moves": new, "half of it": half}.get(kind, first)
        if kind == "isotropic":
            first = turned = None
        fade = 0.35 if kind == "stays and fades" else 1.0
        bases = {
            "start": [around(first, 4.0, rng) for _ in range(2)],
            "later": [around(turned, 4.0 * fade, rng) for _ in range(2)],
        }
        held = {
            name: overlap_of(gramian(*(bases[point][i] for i, point in pair)))
            for name, pair in PAIRS.items()
        }
        floors = held["floor"], held["floor later"]
        rho = corrected_overlap(
            (held["independent"] + held["independent again"]) / 2, floors, K / 200
        )
        here = {"run": run, "optimiser": "sgd", "t": 20}
        return [
            *(
                Row(quantity="overlap_floor", value=floor, context={**here, "point": p})
                for p, floor in zip(("damaged", "recovery"), floors, strict=True)
            ),
            *(
                Row(quantity="overlap", value=held[b], context={**here, "batches": b})
                for b in ("independent", "same")
            ),
            Row(quantity="rho", value=None if np.isnan(rho) else rho, context=here),
        ]

    found = shares(world, claims.basis_drifts)
    if kind == "isotropic":
        assert found.get("supported", 0) + found.get("refuted", 0) <= 0.05
    elif verdict is None:
        assert_rarely_decided(found, DRAWS)
    else:
        assert found[verdict] >= 0.95


def confined_rows(run: int, scores: dict[str, float], full: float, lost: float) -> list[Row]:
    unconfined = {"run": run, "optimiser": "sgd"}
    here = {**unconfined, "k": K}
    space = {**here, "space": "weights"}
    return [
        Row(quantity="regained_score", value=full, context={**unconfined, "basis": FULL}),
        Row(
            quantity="score",
            value=lost,
            context={"run": run, "task": "a", "on": "a", "point": "damaged"},
        ),
        Row(quantity="prefix_capture", value=0.5, context=space),
        *(
            Row(quantity="regained_score", value=score, context={**here, "basis": basis})
            for basis, score in scores.items()
        ),
        *(
            Row(
                quantity="basis_capture",
                value=0.1,
                context={**space, "basis": basis, "of": "displacement"},
            )
            for basis in STATIC
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("behind", "verdict"),
    [
        ((0.05, 0.05, 0.05, 0.05), None),
        ((0.05, 0.6, 0.7, 0.8), None),
        ((0.0, 0.6, 0.7, 0.8), "refuted"),
        ((0.2, 0.6, 0.7, 0.8), "supported"),
    ],
)
def test_static_bases_miss(behind: tuple[float, ...], verdict: str | None) -> None:
    """One fixed basis that regains as much as the prefix is enough to refute."""

    def make(rng: np.random.Generator) -> list[list[Row]]:
        apart = nested(rng, len(STATIC), 0.015, 0.015)
        full, lost = 0.95, 0.05 + 0.1 * rng.uniform(size=SETTINGS.seeds)
        return [
            confined_rows(
                run,
                {PREFIX: 0.9}
                | {
                    b: 0.9 - (gap + more) * (full - lost[run])
                    for b, gap, more in zip(STATIC, behind, apart[run], strict=True)
                },
                full,
                float(lost[run]),
            )
            for run in range(SETTINGS.seeds)
        ]

    found = shares(of_study(make), claims.static_bases_miss)
    if verdict is None:
        assert_rarely_decided(found, DRAWS)
    else:
        assert found[verdict] >= 0.95


def test_a_run_that_regains_nothing_has_no_share() -> None:
    scores = dict.fromkeys((PREFIX, *STATIC), 0.1)
    rows = [row for run in range(3) for row in confined_rows(run, scores, 0.1, 0.05)]
    rule = claims.static_bases_miss(replace(SETTINGS, seeds=3), rows, "sgd")
    assert not rule.conditions
    assert decided([rule])[0].verdict == "not run"
    assert "0.1 or more in 0 of 3 runs" in rule.claim.note


@pytest.mark.parametrize(("relation", "verdict"), [(0, None), (1, "supported"), (-1, "refuted")])
def test_prefix_predicts_recovery(
    relation: int, verdict: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a type of basis holds and regains is the same in every run, up to noise: with types that
    are not related, runs add no evidence.
    """
    monkeypatch.setattr(claims, "PERMUTATIONS", 399)

    def make(rng: np.random.Generator) -> list[list[Row]]:
        types = rng.uniform(size=10)
        others = rng.uniform(size=10) if relation == 0 else relation * types
        captures = types + 0.05 * rng.standard_normal((SETTINGS.seeds, 10))
        scores = others + 0.05 * rng.standard_normal((SETTINGS.seeds, 10))
        return [
            [
                Row(
                    quantity=quantity,
                    value=float(of[run, i]),
                    context={"run": run, "optimiser": "sgd", "k": K, "basis": str(i)},
                )
                for i in range(10)
                for quantity, of in (("regained_by_capture", captures), ("regained_score", scores))
            ]
            for run in range(SETTINGS.seeds)
        ]

    found = shares(of_study(make), claims.prefix_predicts_recovery)
    if verdict is None:
        assert_rarely_decided(found, DRAWS)
    else:
        assert found[verdict] >= 0.95


@pytest.mark.parametrize(
    ("models", "related", "verdict"),
    [(6, False, None), (12, False, None), (12, True, "supported"), (4, True, "not run")],
)
def test_prefix_predicts_over_models(
    models: int, related: bool, verdict: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both optimisers of a run, and both runs of a model, share what makes the model easy."""
    monkeypatch.setattr(claims, "PERMUTATIONS", 399)
    settings = replace(SETTINGS, seeds=2 * models, models_per_claim=models)

    def make(rng: np.random.Generator) -> list[list[Row]]:
        shared, runs = rng.uniform(0.2, 0.8, (models, 2)), []
        for run in range(settings.seeds):
            of_capture, of_score = shared[run % models]
            rows: list[Row] = []
            for optimiser in ("sgd", "adamw"):
                capture = of_capture + 0.05 * rng.standard_normal()
                score = (of_capture if related else of_score) + 0.05 * rng.standard_normal()
                here = {"run": run, "optimiser": optimiser, "k": K, "basis": PREFIX}
                there = {**here, "space": "weights"}
                rows.append(Row(quantity="regained_by_capture", value=capture, context=there))
                rows.append(Row(quantity="regained_score", value=score, context=here))
            runs.append(rows)
        return runs

    def rule(rows: list[Row]) -> Rule:
        return claims.prefix_predicts_over_runs(settings, rows)

    found = verdict_shares(of_study(make), rule, DRAWS, runs=settings.seeds)
    if verdict is None:
        assert_rarely_decided(found, DRAWS)
    else:
        assert found[verdict] >= 0.95


def lora_rows(run: int, factors: float) -> list[Row]:
    here = {"run": run, "optimiser": "adamw", "k": K}
    rows = []
    for space, value in (("weights", 0.6 + 0.01 * run), ("factors", factors + 0.012 * run)):
        context = {**here, "space": space}
        rows.append(Row(quantity="prefix_capture", value=value, null=0.1, context=context))
        for null in (DRIFT, FROM_REST):
            there = {**context, "null": null}
            rows.append(Row(quantity="prefix_capture_null", value=0.2, context=there))
    return rows


@pytest.mark.parametrize(
    ("factors", "words"), [(0.9, "they disagree"), (0.597, "they do not disagree")]
)
def test_lora_is_decided_in_the_weights_and_a_disagreement_is_in_the_note(
    factors: float, words: str
) -> None:
    settings = replace(SETTINGS, space="lora", seeds=6)
    rows = [row for run in range(6) for row in lora_rows(run, factors)]
    claim = claims.prefix_holds_most(settings, rows, "adamw").claim
    held = special.expit(special.logit(0.6 + 0.01 * np.arange(6)).mean())
    assert claim.value == pytest.approx(held)
    assert claim.setting == "sequences, LoRA, AdamW"
    assert words in claim.note


def test_claims_are_decided_even_on_one_run_without_pretending(part: Part) -> None:
    made = claims.decide(TINY, part.rows)
    assert {c.id for c in made} == {
        "static-bases-miss", "basis-drifts", "prefix-holds-most", "prefix-beyond-drift",
        "prefix-predicts-recovery",
    }  # fmt: skip
    assert {c.verdict for c in made} <= {"inconclusive", "not run"}
    assert all(c.low is None and c.high is None for c in made)


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_every_estimate_can_be_computed_again_from_the_arrays(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Six runs on three models, made of one run and other scores within the prefix."""
    one: Part = request.getfixturevalue(kind)
    settings = replace(TINY if kind == "part" else LORA, seeds=6, models_per_claim=3)
    rows, arrays = [], {}
    for run, more in enumerate((0.0, 0.02, 0.05, 0.01, 0.09, 0.03)):
        for r in one.rows:
            of_prefix = r.quantity == "regained_score" and r.context["basis"] == PREFIX
            value = r.value + more if of_prefix else r.value
            rows.append(replace(r, value=value, context={**r.context, "run": run}))
        for key, array in one.arrays.items():
            of_prefix = key.startswith("regained_score/") and f"/{PREFIX}/" in key
            arrays[f"{key.removesuffix('0')}{run}"] = array + more if of_prefix else array
    again = estimates(json.loads(json.dumps(asdict(settings), default=str)), arrays)
    made = [c for c in claims.decide(settings, rows) if c.value is not None]
    assert len(made) == len(again) >= 9
    for claim in made:
        label = claim.setting.split(", ")[-1]
        numbers = [claim.value, claim.low, claim.high]
        assert again[claim.id, label] == pytest.approx(numbers, abs=1e-9), claim.id


def test_the_relation_over_models_can_be_computed_again() -> None:
    rng, rows, arrays = np.random.default_rng(0), [], {}
    for run in range(12):
        for optimiser in ("sgd", "adamw"):
            u = filtered_steps(np.eye(T), rng.uniform(), FADING, 5000, rng)
            score, here = rng.uniform(), {"run": run, "optimiser": optimiser, "basis": PREFIX}
            there = {**here, "k": K, "space": "weights"}
            held = float(prefix_capture(u @ u.T, [K])[0])
            rows.append(Row(quantity="regained_by_capture", value=held, context=there))
            rows.append(Row(quantity="regained_score", value=score, context={**here, "k": K}))
            arrays[f"update_gramian/weights/{optimiser}/{run}"] = u @ u.T
            arrays[f"regained_score/{optimiser}/{PREFIX}/{K}/{run}"] = np.array([score])
    claim = claims.prefix_predicts_over_runs(SETTINGS, rows).claim
    again = over_runs(arrays, "weights", K, SETTINGS.models)
    assert claim.n == 6
    assert again == pytest.approx((claim.value, claim.low, claim.high), abs=1e-9)
