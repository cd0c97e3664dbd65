"""The search study: its parts against dense twins, real runs, and their page. Its rules are
calibrated in test_search_claims.py.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from loclin.errors import LoclinError
from loclin.geometry.subspace import Subspace
from loclin.law import expected_maximum
from loclin.models import Problem
from loclin.models.exam import Exam
from loclin.parameters import ParameterSpace
from loclin.record import Part, Row
from loclin.report import searched as page
from loclin.search.candidate import Candidate, Perturbed, candidates
from loclin.search.noise import Noise
from loclin.studies.bench import Bench, make_bench
from loclin.studies.course import damage
from loclin.studies.directions import task_vectors
from loclin.studies.search import claims, experiment
from loclin.studies.search.config import Config, preset, settings
from loclin.studies.search.local import in_space, in_subspace, of_matrix, second_order, tied
from loclin.studies.search.material import Material, divided, material, recover, score_of
from loclin.studies.search.scored import Gains, gains
from loclin.studies.search.spaces import static_plane, subspaces
from loclin.studies.search.votes import chosen_size, ranked_by_select
from loclin.studies.settings import Profile
from loclin.studies.table import by_run, summaries
from loclin.tasks.example import Example

SMALL: dict[str, Any] = {
    "seeds": 1,
    "candidates": 8,
    "others": 6,
    "inside": 5,
    "n": 2,
    "best_of": (1, 2, 4),
    "sizes": (0.05, 0.2, 1.0),
    "k": 3,
    "gradients": 4,
    "gradient_batch": 4,
    "select_examples": 16,
    "validate_examples": 32,
    "test_examples": 16,
    "probes": 2,
    "steps": 12,
    "task_vector_steps": 2,
    "votes": (1, 3),
    "asked": 4,
    "noises": ("lowrank:1", "tied"),
}
TINY = replace(preset("smoke"), task="swap", **SMALL).checked()
LORA = replace(preset("smoke", "statements-small"), ranks=(2,), **SMALL).checked()


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
def drawn(bench: Bench[Config]) -> Material:
    return material(bench)


@pytest.fixture(scope="module")
def damaged(bench: Bench[Config]) -> Tensor:
    return damage(bench, bench.task)


@pytest.fixture
def there(bench: Bench[Config], damaged: Tensor) -> Iterator[ParameterSpace]:
    """The space, standing at θ_D."""
    with bench.space.restored():
        bench.space.write(damaged)
        yield bench.space


def value(rows: list[Row], quantity: str, **context: Any) -> float:
    (row,) = [
        r
        for r in rows
        if r.quantity == quantity and all(r.context.get(k) == v for k, v in context.items())
    ]
    assert row.value is not None
    return row.value


# What the law sees.


def symmetric(size: int, seed: int) -> Tensor:
    h = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return h + h.T


def test_a_subspace_sees_the_hessian_between_its_directions() -> None:
    h, generator = symmetric(12, 0), torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(12, 3, generator=generator, dtype=torch.float64))[0].T
    g = torch.randn(12, generator=generator, dtype=torch.float64)
    seen = in_subspace(lambda v: h @ v, g, basis)
    dense = of_matrix((basis @ g).numpy(), (basis @ h @ basis.T).numpy())
    assert dataclasses.astuple(seen) == pytest.approx(dataclasses.astuple(dense))


def test_all_coordinates_are_seen_by_probes() -> None:
    module = nn.Linear(4, 3).double()
    space, h, g = (
        ParameterSpace(module),
        symmetric(15, 0),
        torch.randn(15, generator=torch.Generator().manual_seed(1)).double(),
    )
    seen = in_space(lambda v: h @ v, space, g, 4000, seed=0)
    dense = of_matrix(g.numpy(), h.numpy())
    assert (seen.gradient, seen.along) == (
        pytest.approx(dense.gradient),
        pytest.approx(dense.along),
    )
    assert seen.trace == pytest.approx(dense.trace, abs=4 * np.sqrt(2 / 4000) * dense.frobenius)
    assert seen.frobenius == pytest.approx(dense.frobenius, rel=0.1)


def test_tied_noise_sees_everything_folded_over_the_tensors() -> None:
    space = ParameterSpace(
        nn.Linear(4, 3).double()
    )  # 12 numbers, and 3 that repeat the first of them
    fold = torch.cat([torch.eye(12), torch.eye(12)[:3]]).double()
    h, g = symmetric(15, 0), torch.randn(15, generator=torch.Generator().manual_seed(1)).double()
    seen = tied(lambda v: h @ v, space, g, 300, seed=0)
    dense = of_matrix((fold.T @ g).numpy(), (fold.T @ h @ fold).numpy())
    assert (seen.gradient, seen.along) == (
        pytest.approx(dense.gradient),
        pytest.approx(dense.along),
    )
    assert seen.trace == pytest.approx(dense.trace, abs=4 * np.sqrt(2 / 300) * dense.frobenius)


def test_products_are_those_of_the_examples_that_score(
    there: ParameterSpace, bench: Bench[Config], drawn: Material
) -> None:
    scored = list(drawn.select.fold(0))
    with second_order(bench.problem, there, scored, differences=False) as product:
        v = there.noise(seed=0)
        exactly = product(v)
    with second_order(bench.problem, there, scored, differences=True) as product:
        assert torch.nn.functional.cosine_similarity(product(v), exactly, dim=0) > 0.999


# What a candidate gains.


def test_gains_are_those_of_weights_moved_by_hand(there: ParameterSpace, drawn: Material) -> None:
    drawn_ones = candidates(5, [0.02], seed=3)
    with Perturbed(there, Noise()) as moved:
        found = gains(moved, drawn.select, drawn_ones)
        together = gains(moved, drawn.select, drawn_ones, stacked=2)
        steps = [moved.vector(c) for c in drawn_ones]
    origin = there.read()
    before, right = losses(drawn.select)
    for i, step in enumerate(steps):
        there.write(origin + step)
        after, now = losses(drawn.select)
        assert found.loss[i] == pytest.approx(before - after, abs=1e-6)
        assert found.score[i] == pytest.approx(now - right)
        assert found.right[i].mean() == pytest.approx(now)
    assert together.loss == pytest.approx(found.loss, abs=1e-5)


def losses(exam: Exam) -> tuple[float, float]:
    sums, counts = exam.tallies()
    return float(sums[0] / counts[0]), float(sums[1] / counts[1])


def test_a_candidate_without_a_finite_loss_gains_nothing_and_is_never_selected(
    there: ParameterSpace, drawn: Material
) -> None:
    wild = [Candidate(index=0, seed=0, sigma=1e30), *candidates(3, [1e-3], seed=0)]
    with Perturbed(there, Noise()) as moved:
        found = gains(moved, drawn.select, wild)
    assert np.isnan(found.loss[0])
    assert np.isfinite(found.loss[1:]).all()
    assert 0 not in ranked_by_select(found)


def made_up(score: list[float], loss: list[float]) -> Gains:
    drawn = tuple(candidates(len(score), [0.1], seed=0))
    return Gains(
        candidates=drawn,
        loss=np.array(loss),
        score=np.array(score),
        right=np.zeros((len(score), 1), bool),
    )


def test_candidates_are_ranked_by_score_then_loss_then_place() -> None:
    found = made_up([0.1, 0.3, 0.3, 0.1, 0.9], [5.0, 1.0, 2.0, 5.0, np.nan])
    assert ranked_by_select(found) == [2, 1, 0, 3]


def test_sigma_is_chosen_by_the_select_examples() -> None:
    poor, good = made_up([0.0, 0.1, 0.0, 0.0], [0.3] * 4), made_up([0.0, 0.3, 0.2, 0.0], [0.1] * 4)
    assert chosen_size({0.1: poor, 0.5: good}, 2) == 0.5
    tied_score = made_up([0.0, 0.1, 0.0, 0.0], [0.4] * 4)
    assert chosen_size({0.1: poor, 0.5: tied_score}, 2) == 0.5
    lost = made_up([0.9, 0.9, 0.0, 0.0], [np.nan, np.nan, 0.1, 0.1])
    assert (
        chosen_size({0.1: poor, 0.5: lost}, 2) == 0.1
    )  # what has no loss is not chosen for its score


# What a run draws.


def test_no_group_is_in_two_parts() -> None:
    pool = [Example(prompt=f"{i}", answer=" x", group=f"{i // 3}") for i in range(30)]
    some, others = divided(pool, 7, seed=1)
    assert len(some) == 7
    assert not {e.group for e in some} & {e.group for e in others}
    assert divided(pool, 7, seed=1)[0] == some != divided(pool, 7, seed=2)[0]
    assert divided(pool, 100, seed=1) == (sorted(pool, key=divided(pool, 100, seed=1)[0].index), [])


def test_too_few_groups_are_refused(bench: Bench[Config]) -> None:
    with pytest.raises(
        LoclinError, match=r"expected 16 \+ 4000 examples of swap in the gradients split in groups"
    ):
        material(replace(bench, config=replace(TINY, gradients=1000)))


def test_the_plane_holds_the_tasks_own_vector_and_the_gradients(
    bench: Bench[Config], drawn: Material
) -> None:
    plane = static_plane(bench, drawn.batches)
    assert len(plane.basis) == TINY.k
    assert plane.basis @ plane.basis.T == pytest.approx(torch.eye(TINY.k), abs=1e-5)
    from loclin.seeds import derived

    order = ("swap", *(t for t in bench.problem.tasks if t != "swap"))
    own = replace(
        bench.problem,
        examples={n: {t: part[t] for t in order} for n, part in bench.problem.examples.items()},
    )
    seed = derived(bench.seed, "task vectors of the plane")
    vectors = task_vectors(
        own, bench.space, 2, batch=TINY.batch, lr=TINY.adamw_lr, steps=2, seed=seed
    )
    assert [plane.capture(v) for v in vectors] == pytest.approx([1, 1], abs=1e-4)


def test_halfway_is_half_of_the_score_and_on_the_recorded_way(
    bench: Bench[Config], drawn: Material, damaged: Tensor
) -> None:
    longer = replace(bench, config=replace(TINY, steps=40, halfway_every=2))
    known = score_of(drawn.validate)
    way = recover(longer, drawn.validate, known, damaged)
    assert way.step is not None
    assert way.step % 2 == 0
    with bench.space.restored():
        bench.space.write(damaged)
        lost = score_of(drawn.validate)
        bench.space.write(way.halfway)
        assert score_of(drawn.validate) >= (known + lost) / 2 > lost
    assert way.prefix.shape == (TINY.k, bench.space.dimension)
    short = replace(bench, config=replace(TINY, steps=3, k=2))
    end = recover(short, drawn.validate, 2.0, damaged)  # never half of 2
    assert end.step is None
    assert torch.allclose(
        end.halfway,
        damaged
        + recover(
            replace(short, config=replace(short.config, k=3)), drawn.validate, 2.0, damaged
        ).prefix.sum(0),
        atol=1e-6,
    )


def test_subspaces_are_orthonormal_and_differ(
    bench: Bench[Config], drawn: Material, there: ParameterSpace
) -> None:
    g = there.gradient(drawn.select.loss, drawn.select.fold(0))
    prefix = there.noise(seed=5).expand(1, -1)
    found = subspaces(
        bench,
        drawn.batches,
        drawn.recovery,
        torch.cat([prefix, g[None], 2 * prefix + g]),
        Subspace.spanned_by(g[None]),
    )
    for name, space in found.items():
        assert space.basis @ space.basis.T == pytest.approx(
            torch.eye(len(space.basis)), abs=1e-4
        ), name
    assert len(found["first updates"].basis) == 2  # the third depends on the others
    assert found["static plane"].capture(g) == pytest.approx(1, abs=1e-4)
    assert found["gradients at θ_D"].capture(g) > 20 * TINY.k / there.dimension
    assert found["random"].capture(g) < found["Krylov"].capture(g)


# Real runs.


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_a_run_measures_everything(kind: str, request: pytest.FixtureRequest) -> None:
    rows = list(request.getfixturevalue(kind).rows)
    for point in ("damaged", "halfway"):
        for size in (0.05, 0.2, 1.0):
            here = {"point": point, "space": "all", "noise": "gaussian", "size": size}
            assert value(rows, "finite", **here) == 1
            assert value(rows, "sigma", **here) == pytest.approx(
                size * value(rows, "reference_sigma", point=point)
            )
        small = {"point": point, "space": "all", "noise": "gaussian", "size": 0.05}
        ratio = value(rows, "gain_ratio", **small)
        assert ratio == pytest.approx(
            value(rows, "gain", best_of=2, **small) / value(rows, "gain_law", best_of=2, **small)
        )
        assert value(rows, "gain_per_slope", **small) == pytest.approx(
            ratio * expected_maximum(2), rel=0.2
        )
        assert value(rows, "law_error", point=point, over="sizes") >= abs(
            value(rows, "law_bias", point=point, over="sizes")
        )
    spaces = {r.context["space"] for r in rows if r.quantity == "gain_ratio"}
    subspaces_ = {r.context["space"] for r in rows if r.quantity == "signal_density"}
    assert spaces == subspaces_ | {"all", "largest tensor"}
    assert len(subspaces_) == 6
    radius = value(rows, "equal_radius")
    for space in subspaces_:
        density = value(rows, "signal_density", space=space)
        linear = value(rows, "equal_radius_law", space=space)
        assert linear == pytest.approx(radius * expected_maximum(2) * np.sqrt(density))
    assert len([r for r in rows if r.quantity == "candidate_gain"]) == 8
    assert {r.context["noise"] for r in rows if r.quantity == "gain_ratio"} == {
        "gaussian",
        "lowrank:1",
        "tied",
    }


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_errors_are_means_over_the_domain_and_over_kinds_of_spaces(
    kind: str, request: pytest.FixtureRequest
) -> None:
    rows = list(request.getfixturevalue(kind).rows)
    here: dict[str, Any] = {"point": "damaged", "noise": "gaussian"}

    def off(quantity: str, **context: Any) -> float:
        (found,) = (
            r
            for r in rows
            if r.quantity == quantity and {**here, **context}.items() <= r.context.items()
        )
        assert found.value is not None
        return found.value / (found.null or 1.0) - 1

    domain = [
        r.context["size"]
        for r in rows
        if r.quantity == "in_domain" and r.value == 1 and r.context["point"] == "damaged"
    ]
    assert 0.05 in domain
    assert 1.0 not in domain
    subspaces_ = {r.context["space"] for r in rows if r.quantity == "signal_density"}
    for quantity, mean in (("gain_ratio", "law_error"), ("gain_per_slope", "linear_error")):
        sizes = [abs(off(quantity, space="all", size=size)) for size in domain]
        assert value(rows, mean, point="damaged", over="sizes") == pytest.approx(np.mean(sizes))
        many = np.mean([abs(off(quantity, space=space, size=0.2)) for space in subspaces_])
        kinds = [
            many,
            *(abs(off(quantity, space=space, size=0.2)) for space in ("all", "largest tensor")),
        ]
        assert value(rows, mean, point="damaged", over="spaces") == pytest.approx(np.mean(kinds))
    planes = {
        r.context["plane"]: r
        for r in rows
        if r.quantity == "overlap_correlation" and r.context["point"] == "damaged"
    }
    assert list(planes) == ["static plane", "gradients at θ_D", "random"]
    told = [
        r.null
        for r in rows
        if r.quantity == "overlap_correlation"
        and r.context["point"] == "damaged"
        and r.context["of"] == "loss"
    ]
    assert all(t is not None and abs(t) < 1 for t in told)


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_the_table_is_a_ladder_with_an_oracle_above(
    kind: str, request: pytest.FixtureRequest
) -> None:
    rows = list(request.getfixturevalue(kind).rows)
    table = {(r.context["arm"], r.context["votes"]): r for r in rows if r.quantity == "table_score"}
    assert set(table) == {
        ("the model", 1),
        *(
            (arm, k)
            for arm in ("vote of the best", "vote without selection", "vote of samples")
            for k in (1, 3)
        ),
        *(("any of them (oracle)", k) for k in (1, 2, 4)),
    }
    assert table["the model", 1].p == 1
    oracle = [table["any of them (oracle)", k].value or 0.0 for k in (1, 2, 4)]
    assert oracle == sorted(oracle)
    assert {r.null for r in table.values()} == {table["the model", 1].value}


def test_the_same_run_gives_the_same_record(part: Part) -> None:
    assert list(experiment.run_one(TINY, 0, silent).rows) == list(part.rows)


def test_correlations_are_those_of_the_candidates(part: Part) -> None:
    rows = list(part.rows)
    of = {
        q: claims.by_candidate(rows, f"candidate_{q}")[0] for q in ("gain", "alignment", "overlap")
    }
    r = np.corrcoef(of["gain"], of["alignment"])[0, 1]
    assert value(
        rows, "alignment_correlation", point="damaged", of="loss", size=1.0
    ) == pytest.approx(r)
    assert of["overlap"].mean() == pytest.approx(TINY.k / 26336, rel=1.5)
    assert np.abs(of["alignment"]).max() < 6 / np.sqrt(26336)


def several(part: Part) -> list[Row]:
    """Three runs that differ a little, made from one."""
    rng = np.random.default_rng(0)
    return [
        replace(
            r, value=None if r.value is None else r.value * luck, context={**r.context, "run": run}
        )
        for run in range(3)
        for r, luck in zip(part.rows, 1 + 0.01 * rng.standard_normal(len(part.rows)), strict=True)
    ]


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_claims_and_page_say_what_the_rows_say(kind: str, request: pytest.FixtureRequest) -> None:
    part, config = request.getfixturevalue(kind), TINY if kind == "part" else LORA
    rows = several(part)
    decided = {c.id + c.setting[-3:]: c for c in claims.decide(config, rows)}
    assert len(decided) == 6
    law = decided["best-of-n-lawθ_D"]
    assert law.value == pytest.approx(
        by_run(rows, "law_error", point="damaged", over="sizes").mean()
    )
    assert all(c.p_holm is not None for c in decided.values())
    kept = [*rows, *summaries(rows)]
    sections = page.sections(kept, dataclasses.asdict(config))
    assert [len(s.figures) for s in sections] == [4, 2, 3, 2, 2]
    assert all(figure.svg.startswith("<?xml") for s in sections for figure in s.figures)
    text = "\n".join(line for s in sections for line in s.sees)
    assert f"gains within {law.value:.3g} [" in text
    assert "the best candidate" in text
    assert "not defined in score" not in text


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile) -> None:
    for config in settings(profile):
        assert config.checked().profile == profile
    assert preset(profile, "distilgpt2").curvature_chunk < preset(profile).curvature_chunk


def test_six_runs_hold_1200_candidates_for_figure_3() -> None:
    for config in settings("standard"):
        assert config.seeds * config.candidates >= 1200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"n": 6},
            r"expected n from 2 to the fewest candidates, 5, found 6: change --n, or raise "
            r"--candidates",
        ),
        ({"n": 3}, r"expected --n 3 among --best-of, from 1 on, found \[1, 2, 4\]: add it"),
        ({"sizes": (0.2, 0.05, 1.0)}, "expected growing sizes above 0"),
        ({"sizes": (0.2, 0.5)}, "expected 1 and --size 0.2 among --sizes"),
        (
            {"size": 1.0},
            r"expected a size of at most 0.25, within the law's domain, found 1.0: lower --size",
        ),
        ({"edge": 1.5}, "expected an edge between 0 and 1, found 1.5: change --edge"),
        ({"votes": (3,)}, r"expected growing votes that begin with 1, found \[3\]: change --votes"),
        (
            {"asked": 2},
            r"expected from 3 \(the largest vote\) to 6 candidates to be asked, found 2: change "
            r"--asked",
        ),
        ({"temperature": 0.0}, "expected a temperature above 0"),
        ({"noises": ("gaussian",)}, "expected noises beside gaussian, each once"),
        ({"probes": 1}, "at least 2 probes for an interval, found 1: raise --probes"),
        ({"gradients": 2}, "expected at least k = 3 gradients, found 2: raise --gradients"),
        ({"k": 13}, r"expected k from 1 to T = 12, found \[13\]: change --k or raise --steps"),
        ({"stacked": 0}, "expected stacked of at least 1, found 0: change --stacked"),
        (
            {"space": "lora", "dtype": "bfloat16"},
            "expected float32 or float64 for gains this small",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(TINY, **change).checked()


def test_unknown_noise_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(LoclinError, match="found 'uniform': change --noise"):
        experiment.run_one(replace(TINY, noises=("uniform",)), 0, silent)
