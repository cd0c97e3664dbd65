"""The Krylov study: rows against dense twins and exact descents, calibration of its rule, real
runs, and their page.
"""

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from loclin.curvature import hessian_operator
from loclin.errors import LoclinError
from loclin.geometry.krylov import Krylov, lanczos
from loclin.geometry.subspace import Subspace
from loclin.models import Problem, twice_differentiable
from loclin.record import Claim, Part, Row
from loclin.report import krylov as page
from loclin.studies.bench import Bench, make_bench
from loclin.studies.course import damage
from loclin.studies.krylov import claims, experiment
from loclin.studies.krylov.config import Config, preset, settings
from loclin.studies.krylov.curved import Curved, chosen, curved_at
from loclin.studies.krylov.rows import (
    bound_rows,
    captures_until,
    descent_rows,
    prefix_rows,
    premise_row,
)
from loclin.studies.recovery.captures import family_rows
from loclin.studies.settings import Profile
from loclin.studies.table import by_run, summaries
from loclin.tasks.batch import answer_loss
from tests.planted import quadratic_descent, white_steps
from tests.properties import share_supported
from tests.reference import dense_capture

TINY = replace(
    preset("smoke"),
    task="swap",
    seeds=1,
    steps=10,
    k=2,
    ks=(1, 2, 3),
    times=(1, 2, 5, 10),
    curvature_examples=16,
    probes=2,
).checked()
LORA = replace(
    preset("smoke", "statements-small"),
    seeds=1,
    ranks=(2,),
    steps=8,
    k=2,
    ks=(1, 2, 3),
    times=(1, 2, 8),
    curvature_examples=16,
    curvature_chunk=6,
    probes=2,
).checked()


def silent(stage: str, share: float) -> None:
    pass


@pytest.fixture(scope="session")
def part(trained: Problem) -> Part:
    return experiment.run_one(TINY, 0, silent)


@pytest.fixture(scope="session")
def lora_part(speaking: Problem) -> Part:
    return experiment.run_one(LORA, 0, silent)


@pytest.fixture(scope="module")
def bench(trained: Problem) -> Bench[Config]:
    return make_bench(TINY, 0, experiment.demand(TINY), silent)


@pytest.fixture(scope="module")
def damaged(bench: Bench[Config]) -> torch.Tensor:
    return damage(bench, bench.task)


@pytest.fixture(scope="module")
def found(bench: Bench[Config], damaged: torch.Tensor) -> Curved:
    return curved_at(bench, damaged)


def value(rows: list[Row], quantity: str, **context: Any) -> float:
    (row,) = [
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    ]
    assert row.value is not None
    return row.value


def descent(
    spectrum: np.ndarray, g: np.ndarray, rate: float, steps: int
) -> tuple[Krylov, np.ndarray]:
    """Krylov space and updates of gradient descent on a diagonal quadratic."""
    values = torch.from_numpy(spectrum)
    return lanczos(lambda v: values * v, torch.from_numpy(g), 6), quadratic_descent(
        spectrum, g / spectrum, rate, steps
    )


def test_captures_until_are_those_of_the_summed_steps() -> None:
    rng = np.random.default_rng(0)
    u, b = white_steps(12, 30, rng), rng.standard_normal((4, 30))
    captured = captures_until(b @ b.T, b @ u.T, u @ u.T, [1, 3, 12])
    assert captured == pytest.approx([dense_capture(b, u[:t].sum(0)) for t in (1, 3, 12)])
    assert np.isnan(captures_until(b @ b.T, 0 * (b @ u.T), 0 * (u @ u.T), [5])).all()


def test_prefix_rows_have_no_null_and_hold_all_of_themselves() -> None:
    u = white_steps(6, 40, np.random.default_rng(0))
    rows = list(prefix_rows(u @ u.T, (2, 6), {"basis": "prefix"}))
    assert value(rows, "basis_capture", k=2, of="displacement") == pytest.approx(
        dense_capture(u[:2], u.sum(0))
    )
    assert value(rows, "basis_capture", k=2, of="future") == pytest.approx(
        dense_capture(u[:2], u[2:].sum(0))
    )
    assert value(rows, "basis_capture", k=6, of="displacement") == pytest.approx(1)
    assert len(rows) == 3
    assert all(r.null is None and r.p is None for r in rows)


def test_descent_on_a_quadratic_is_the_models_own_and_another_is_not() -> None:
    rng = np.random.default_rng(0)
    krylov, u = descent(np.linspace(0.2, 3, 20), rng.standard_normal(20), 0.3, 12)
    q = krylov.basis.numpy()
    rows = list(descent_rows(krylov, q @ u.T, u @ u.T, 0.3, (1, 4, 6, 7), {}))
    assert [r.context["t"] for r in rows if r.quantity == "descent_cosine"] == [
        1,
        4,
        6,
    ]  # 7 is beyond the space
    assert all(r.value == pytest.approx(1) for r in rows)
    half = list(descent_rows(krylov, q @ u.T / 2, u @ u.T / 4, 0.3, (4,), {}))
    assert (value(half, "descent_cosine"), value(half, "descent_length")) == (
        pytest.approx(1),
        pytest.approx(0.5),
    )
    noise = white_steps(12, 20, rng)
    assert (
        abs(
            value(
                list(descent_rows(krylov, q @ noise.T, noise @ noise.T, 0.3, (4,), {})),
                "descent_cosine",
            )
        )
        < 0.9
    )


def test_the_bound_holds_for_an_exact_descent_whose_premise_holds() -> None:
    rate, times = 0.3, (1, 2, 6, 12, 40)
    krylov, u = descent(
        np.linspace(0.01, 2 / rate, 25), np.random.default_rng(1).standard_normal(25), rate, 40
    )
    q = krylov.basis.numpy()
    captured = captures_until(np.eye(6), q @ u.T, u @ u.T, times)
    rows = list(bound_rows(krylov, captured, u @ u.T, rate, 6, times, {}))
    for t in times:
        d = u[:t].sum(0)
        left = value(rows, "left_over", t=t)
        assert left == pytest.approx(
            np.linalg.norm(d - q.T @ (q @ d)) / np.linalg.norm(d), abs=1e-6
        )
        assert left <= value(rows, "left_over_bound", t=t) + 1e-6


@pytest.mark.parametrize(
    ("lowest", "largest", "holds"),
    [(0.1, 5.0, True), (-1e-6, 5.0, True), (-0.1, 5.0, False), (0.1, 21.0, False)],
)
def test_the_premise_is_a_spectrum_between_nought_and_two_over_the_rate(
    lowest: float, largest: float, holds: bool, found: Curved
) -> None:
    values = torch.linspace(lowest, largest, 6).double()
    krylov = lanczos(lambda v: values * v, torch.ones(6).double(), 6)
    planted = dataclasses.replace(found, krylov=krylov, eigenvalues=np.array([largest]))
    assert premise_row(planted, 0.1, {}).value == float(holds)


def test_gradient_and_products_are_those_of_the_chosen_examples(
    bench: Bench[Config], damaged: torch.Tensor, found: Curved
) -> None:
    problem, space = bench.problem, bench.space
    before = space.read()
    again = curved_at(replace_chunk(bench, 5), damaged)
    assert torch.equal(space.read(), before)
    assert Subspace(basis=again.krylov.basis).overlap(
        Subspace(basis=found.krylov.basis)
    ) == pytest.approx(1, abs=1e-3)
    assert found.eigenvalues == pytest.approx(again.eigenvalues, rel=0.02)
    assert found.probes.forms == pytest.approx(again.probes.forms, rel=1e-2, abs=1e-2)
    rows = found.families["Krylov"].exact
    assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-5)
    own = found.preconditioned.exact
    assert torch.allclose(own @ own.T, torch.eye(3), atol=1e-5)
    with space.restored():
        space.write(damaged)
        shown = [problem.batch("recovery", bench.task)]
        whole = space.gradient(lambda b: answer_loss(problem.model, b), shown)
        assert Subspace(basis=rows[:1]).capture(whole) > 0.3  # a sample of the same gradient
        with twice_differentiable(problem.model):
            top = found.families["top eigenvectors"].exact[0]
            product = hessian_operator(space, lambda b: answer_loss(problem.model, b), shown)(top)
    assert float(top @ product) > 0


def replace_chunk(bench: Bench[Config], size: int) -> Bench[Config]:
    return dataclasses.replace(bench, config=replace(bench.config, curvature_chunk=size))


def test_finite_differences_find_nearly_the_same_space_and_are_named(
    bench: Bench[Config], damaged: torch.Tensor, found: Curved
) -> None:
    other = dataclasses.replace(bench, config=replace(bench.config, products="finite differences"))
    near = curved_at(other, damaged)
    first, second = (Subspace(basis=c.krylov.basis) for c in (found, near))
    assert first.overlap(second) > 0.99
    assert "finite differences" in near.note
    assert found.note.endswith("attention switched from sdpa to eager")


def test_examples_are_drawn_once(trained: Problem) -> None:
    data = trained.batch("recovery", "swap")
    drawn = chosen(data, 40, seed=3)
    assert len(torch.unique(drawn.input_ids, dim=0)) == len(drawn) == 40
    assert not torch.equal(drawn.input_ids, chosen(data, 40, seed=4).input_ids)


BASES = {"Krylov", "top eigenvectors", "minibatch gradients", "random", "prefix"}


def test_a_run_measures_every_basis_for_both_optimisers(part: Part) -> None:
    rows = list(part.rows)
    for optimiser, names in (("sgd", BASES), ("adamw", BASES | {"preconditioned Krylov"})):
        mine = [r for r in rows if r.context.get("optimiser") == optimiser]
        captures = [
            r for r in mine if r.quantity == "basis_capture" and r.context["of"] == "displacement"
        ]
        assert {(r.context["basis"], r.context["k"]) for r in captures} == {
            (n, k)
            for n in names
            for k in (1, 2, 3)
            if k <= 2 or n != "top eigenvectors"  # as many as the claim needs
        }
        assert all(0 <= (r.value or 0) <= 1 for r in captures)
        assert {r.context["basis"] for r in mine if r.quantity == "capture_until"} == names
        assert value(mine, "capture_until", basis="prefix", t=1) == pytest.approx(1)
        assert value(mine, "basis_capture", basis="Krylov", of="displacement", k=3) > 20 * 3 / 26336
        at_end = value(mine, "capture_until", basis="Krylov", t=10)
        assert at_end == pytest.approx(
            value(mine, "basis_capture", basis="Krylov", k=2, of="displacement")
        )
    assert part.arrays["tridiagonal/0"].shape == (3, 3)
    assert "eager" in part.notes[-1]
    assert value(rows, "trace") == pytest.approx(part.arrays["probes/forms/0"].mean())
    assert value(rows, "frobenius_norm") ** 2 == pytest.approx(
        part.arrays["probes/squares/0"].mean()
    )
    assert value(rows, "eigenvalue", i=1) >= value(rows, "ritz_value", i=1) * 0.98
    assert value(rows, "lowest_ritz_value") == value(rows, "ritz_value", i=3)


def test_the_same_run_gives_the_same_record(part: Part) -> None:
    again = experiment.run_one(TINY, 0, silent)
    assert list(again.rows) == list(part.rows)
    assert all(np.array_equal(again.arrays[k], v) for k, v in part.arrays.items())


def test_lora_is_measured_in_both_spaces(lora_part: Part) -> None:
    held = [
        r
        for r in lora_part.rows
        if r.quantity == "basis_capture" and r.context["basis"] == "Krylov"
    ]
    assert {r.context["space"] for r in held} == {"weights", "factors"}
    assert len({r.value for r in held}) > len(held) / 2
    bounds = [r for r in lora_part.rows if r.quantity == "left_over"]
    factors = {
        r.context["t"]: r.value
        for r in lora_part.rows
        if r.quantity == "capture_until"
        and (r.context["basis"], r.context["space"], r.context["optimiser"])
        == ("Krylov", "factors", "sgd")
    }
    for row in bounds:  # of the trained coordinates
        assert row.value == pytest.approx(np.sqrt(1 - (factors[row.context["t"]] or 0)))


def test_too_few_examples_are_refused_before_the_teaching(trained: Problem) -> None:
    with pytest.raises(
        LoclinError,
        match=r"at least 5000 examples of swap in the recovery split, found .*--curvature-ex",
    ):
        experiment.run_one(replace(TINY, curvature_examples=5000), 0, silent)


# The rule. Every planted world goes through the code that measures real runs.

CONFIG = Config(k=6, ks=(6,), steps=40, times=(1,), seeds=6)
NULL_DRAWS, DRAWS = 200, 60


def rows_of(run: int, u: np.ndarray, bases: dict[str, np.ndarray]) -> list[Row]:
    here, gram = {"run": run, "optimiser": "sgd", "space": "weights"}, u @ u.T
    prefix = {**here, "basis": "prefix", "k": 6, "of": "displacement"}
    rows = [
        Row(quantity="bound_premise", value=1.0, context=here),
        Row(quantity="basis_capture", value=0.5, context=prefix),
    ]
    for name, b in bases.items():
        rows += family_rows(b @ b.T, b @ u.T, gram, (6,), u.shape[1], {**here, "basis": name})
    return rows


def share(kinds: dict[str, str], draws: int, *, plane: int = 9) -> float:
    """How often the rule supports where the way lies in a plane, and each basis is random in it
    ("plane") or anywhere.
    """

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        around = np.linalg.qr(rng.standard_normal((80, plane)))[0].T
        u = rng.standard_normal((40, plane)) @ around
        wide = {"plane": around, "anywhere": np.eye(80)}
        return rows_of(
            run, u, {n: rng.standard_normal((6, len(wide[k]))) @ wide[k] for n, k in kinds.items()}
        )

    return share_supported(world, lambda rows: claims.krylov(CONFIG, rows, "sgd"), draws)


@pytest.mark.parametrize(
    ("krylov", "eigenvectors", "gradients", "plane"),
    [
        ("anywhere", "anywhere", "anywhere", 9),
        ("plane", "plane", "anywhere", 9),  # curvature alone does as well
        ("plane", "anywhere", "plane", 9),  # the gradient with its noise does as well
        ("plane", "anywhere", "anywhere", 12),  # half of the way, on average, and not more
    ],
)
def test_the_rule_supports_no_null(
    krylov: str, eigenvectors: str, gradients: str, plane: int
) -> None:
    kinds = {"Krylov": krylov, "top eigenvectors": eigenvectors, "minibatch gradients": gradients}
    assert share(kinds, NULL_DRAWS, plane=plane) <= 0.05


def test_the_rule_supports_noisy_descent_of_quadratics() -> None:
    """Many small eigenvalues, a few large ones; steps and minibatch gradients with noise of the
    gradient's own size.
    """

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        spectrum = np.concatenate([rng.uniform(0.02, 0.5, 74), rng.uniform(0.8, 1.6, 6)])
        g = rng.standard_normal(80) / np.sqrt(80)
        noise = rng.standard_normal((46, 80)) / np.sqrt(80)
        u = quadratic_descent(spectrum, g / spectrum, 0.5, 40) + 0.05 * noise[:40]
        values = torch.from_numpy(spectrum)
        space = lanczos(lambda v: values * v, torch.from_numpy(g), 6).basis.numpy()
        return rows_of(
            run,
            u,
            {
                "Krylov": space,
                "top eigenvectors": np.eye(80)[-6:],
                "minibatch gradients": g + noise[40:],
            },
        )

    assert share_supported(world, lambda rows: claims.krylov(CONFIG, rows, "sgd"), DRAWS) >= 0.95


def claim_of(rows: list[Row], optimiser: str, config: Config) -> Claim:
    return next(
        c
        for c in claims.decide(config, rows)
        if c.setting.endswith({"sgd": "SGD", "adamw": "AdamW"}[optimiser])
    )


def several(part: Part) -> list[Row]:
    """Three runs that differ a little, made from one."""
    return [
        replace(
            r,
            value=None if r.value is None else r.value * (1 - 0.01 * run),
            context={**r.context, "run": run},
        )
        for run in range(3)
        for r in part.rows
    ]


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_claims_and_page_say_what_the_rows_say(kind: str, request: pytest.FixtureRequest) -> None:
    part, config = request.getfixturevalue(kind), TINY if kind == "part" else LORA
    rows = several(part)
    sgd, adamw = (claim_of(rows, optimiser, config) for optimiser in ("sgd", "adamw"))
    here = {
        "optimiser": "sgd",
        "basis": "Krylov",
        "k": 2,
        "of": "displacement",
        "space": config.spaces[0],
    }
    assert sgd.value == pytest.approx(by_run(rows, "basis_capture", **here).mean())
    assert "the premise of the bound for stopped descent, in" in sgd.note
    assert "AdamW's own space" in adamw.note
    assert ("d in ΔW" in sgd.measured) == (kind == "lora_part")
    kept = [*rows, *summaries(rows)]
    sections = page.sections(kept, dataclasses.asdict(config))
    assert sum(len(s.figures) for s in sections) == 7
    assert all(figure.svg.startswith("<?xml") for s in sections for figure in s.figures)
    text = "\n".join(line for s in sections for line in s.sees)
    assert f"the Krylov space holds {sgd.value:.3g} [" in text
    assert "not defined" not in text
    assert ("All of this is measured in ΔW" in text) == (kind == "lora_part")
    fallback = page.sections(kept, {**dataclasses.asdict(config), "products": "finite differences"})
    assert "a fallback that is not exact" in fallback[-1].sees[-1]
    assert (
        "finite differences"
        in claim_of(rows, "sgd", replace(config, products="finite differences")).note
    )


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile) -> None:
    for config in settings(profile):
        assert config.checked().k in config.ks
    assert preset(profile, "distilgpt2").curvature_chunk < preset(profile).curvature_chunk


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 4}, r"expected --k to be one of --ks \[1, 2, 3\], found 4: add it there"),
        (
            {"ks": (2, 11)},
            r"expected ks from 1 to T = 10, found \[2, 11\]: change --ks or raise --steps",
        ),
        ({"times": (0,)}, "expected times from 1 to T = 10"),
        ({"probes": 1}, "at least 2 probes for an interval, found 1: raise --probes"),
        (
            {"curvature_examples": 0},
            "expected curvature-examples of at least 1, found 0: change --curvature-examples",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(TINY, **change).checked()
