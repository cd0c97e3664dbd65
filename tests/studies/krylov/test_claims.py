"""Calibration of the rule on planted ways and on planted captures; its numbers recomputed."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from loclin.geometry.krylov import lanczos
from loclin.run.rows import Part, Row, by_run
from loclin.stats import over_models
from loclin.studies.captures import family_rows
from loclin.studies.krylov import claims
from loclin.studies.krylov.names import EIGENVECTORS, KRYLOV, PRECONDITIONED
from loclin.studies.krylov.rows import excess_rows
from loclin.studies.krylov.settings import KrylovSettings
from loclin.studies.names import MINIBATCH, PREFIX
from loclin.studies.verdict import Rule
from tests.planted import quadratic_descent
from tests.properties import World, assert_rarely_decided, verdict_shares
from tests.recompute.krylov import captures, estimates
from tests.studies.krylov.conftest import LORA, TINY
from tests.studies.planted import nested

SETTINGS = KrylovSettings(k=6, ks=(6,), steps=40, times=(1,), seeds=6)
NESTED = replace(SETTINGS, seeds=12)


def shares(world: World, draws: int, settings: KrylovSettings = SETTINGS) -> dict[str, float]:
    """Of verdicts, with as strict a correction as the other optimiser's claim can bring."""

    def rule(rows: list[Row]) -> Rule:
        return claims.krylov(settings, rows, "sgd")

    return verdict_shares(world, rule, draws, settings.seeds, family=2)


def captured(run: int, held: dict[str, float]) -> list[Row]:
    """Rows of the captures of one run."""
    here = {"run": run, "optimiser": "sgd"}
    there = {**here, "space": "weights", "k": 6, "of": "displacement"}
    held = {PREFIX: 0.5, PRECONDITIONED: 0.5, **held}
    rows = [
        Row(quantity="basis_capture", value=value, context={**there, "basis": basis})
        for basis, value in held.items()
    ]
    rows.append(Row(quantity="bound_premise", value=1.0, context=here))
    return [*rows, *excess_rows(rows, 6, here, "weights")]


def measured(run: int, u: np.ndarray, bases: dict[str, np.ndarray]) -> list[Row]:
    """The same by the code that measures real runs."""
    rows = [
        row
        for name, b in bases.items()
        for row in family_rows(b @ b.T, b @ u.T, u @ u.T, (6,), u.shape[1], {"basis": name})
    ]
    held = {r.context["basis"]: r.value for r in rows if r.context["of"] == "displacement"}
    return captured(run, {name: value for name, value in held.items() if value is not None})


def in_plane(kinds: dict[str, str], plane: int) -> World:
    """The way lies in a plane, and each basis is random in it ("plane") or anywhere."""

    def make(rng: np.random.Generator, run: int) -> list[Row]:
        around = np.linalg.qr(rng.standard_normal((80, plane)))[0].T
        u = rng.standard_normal((40, plane)) @ around
        wide = {"plane": around, "anywhere": np.eye(80)}
        return measured(
            run, u, {n: rng.standard_normal((6, len(wide[k]))) @ wide[k] for n, k in kinds.items()}
        )

    return make


@pytest.mark.parametrize(
    ("krylov", "eigenvectors", "gradients", "plane"),
    [
        ("plane", "plane", "anywhere", 9),  # curvature alone does as well
        ("plane", "anywhere", "plane", 9),  # the gradient with its noise does as well
        ("plane", "anywhere", "anywhere", 12),  # half of the way, on average, and not more
    ],
)
def test_at_a_threshold_chance_decides_nothing(
    krylov: str, eigenvectors: str, gradients: str, plane: int
) -> None:
    kinds = {KRYLOV: krylov, EIGENVECTORS: eigenvectors, MINIBATCH: gradients}
    assert_rarely_decided(shares(in_plane(kinds, plane), 200), 200)


def test_a_space_that_holds_nothing_is_refuted() -> None:
    kinds = dict.fromkeys((KRYLOV, EIGENVECTORS, MINIBATCH), "anywhere")
    assert shares(in_plane(kinds, 9), 200)["refuted"] >= 0.95


def share(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


@pytest.mark.parametrize("kind", ["capture", "skewed capture", "excess"])
def test_skewed_shares_on_models_that_differ_decide_nothing_by_chance(kind: str) -> None:
    """Two runs on each of six models: captures whose mean on the logit scale is that of a half,
    skewed even there; or captures near 1, as large by eigenvectors, some of which are far lower.
    """

    def make(rng: np.random.Generator, run: int) -> list[Row]:
        others = {EIGENVECTORS: 0.0, MINIBATCH: 0.0}
        if kind == "capture":
            return captured(run, {KRYLOV: share(nested(rng, run, 6, 1.5)), **others})
        if kind == "skewed capture":
            return captured(run, {KRYLOV: share(1 - rng.exponential()), **others})
        both = [share(3 + nested(rng, run + 6 * i, 12, 1.5)) for i in range(2)]
        return captured(run, {KRYLOV: both[0], EIGENVECTORS: both[1], MINIBATCH: 0.0})

    assert_rarely_decided(shares(make, 400, NESTED), 400)


def test_intervals_of_skewed_shares_cover_and_stay_within_0_and_1() -> None:
    hits, draws = {"logit": 0, "plain": 0}, 1000
    for study in range(draws):
        rng = np.random.default_rng([study, 5])
        held = [share(3 + nested(rng, run, 6, 2.0)) for run in range(12)]
        e = over_models(held, 6, "logit")
        hits["logit"] += e.low < share(3) < e.high
        assert 0 <= e.low <= e.high <= 1
        hits["plain"] += over_models(held, 6).high > 1
    assert 0.93 <= hits["logit"] / draws <= 0.97
    assert hits["plain"] / draws > 0.3  # of t on raw shares


def test_the_rule_supports_noisy_descent_of_quadratics() -> None:
    """Many small eigenvalues, a few large ones; steps and minibatch gradients with noise of the
    gradient's own size.
    """

    def make(rng: np.random.Generator, run: int) -> list[Row]:
        spectrum = np.concatenate([rng.uniform(0.02, 0.5, 74), rng.uniform(0.8, 1.6, 6)])
        g = rng.standard_normal(80) / np.sqrt(80)
        noise = rng.standard_normal((46, 80)) / np.sqrt(80)
        u = quadratic_descent(spectrum, g / spectrum, 0.5, 40) + 0.05 * noise[:40]
        values = torch.from_numpy(spectrum)
        space = lanczos(lambda v: values * v, torch.from_numpy(g), 6).basis.numpy()
        bases = {KRYLOV: space, EIGENVECTORS: np.eye(80)[-6:], MINIBATCH: g + noise[40:]}
        return measured(run, u, bases)

    assert shares(make, 200)["supported"] >= 0.95


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_the_numbers_follow_from_the_arrays(kind: str, request: pytest.FixtureRequest) -> None:
    part: Part = request.getfixturevalue(kind)
    settings = replace(TINY if kind == "part" else LORA, models_per_claim=1)
    again = estimates(asdict(settings), dict(part.arrays))
    space = settings.spaces[0]
    for claim, optimiser in zip(claims.decide(settings, part.rows), ("sgd", "adamw"), strict=True):
        value, low, high = again[claim.id, claim.setting.split(", ")[-1]]
        assert value == pytest.approx(claim.value, abs=1e-9)
        assert (low, high, claim.low) == (-np.inf, np.inf, None)  # of one run
        for basis in (KRYLOV, EIGENVECTORS, MINIBATCH):
            here = {"optimiser": optimiser, "space": space, "k": settings.k, "of": "displacement"}
            (held,) = by_run(part.rows, "basis_capture", basis=basis, **here)
            found = captures(settings.k, dict(part.arrays), space, optimiser, basis)
            assert found == pytest.approx([held], abs=1e-9)
