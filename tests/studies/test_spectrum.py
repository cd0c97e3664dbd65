"""The spectrum study: what is kept against dense twins, planted gradients, one real run."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian
from loclin.geometry.sketch import Sketch
from loclin.geometry.spectrum import effective_ranks, principal_directions
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.record import Claim, Part, Row
from loclin.studies.directions import batch_gradients, disjoint_batches
from loclin.studies.settings import Profile
from loclin.studies.spectrum import claims, experiment
from loclin.studies.spectrum.config import Config, preset, settings
from loclin.studies.spectrum.gather import Gathered, controls, gather, tensor_gramians
from loclin.studies.spectrum.ranks import layer_rows, rank_rows
from loclin.studies.spectrum.shared import crossfit_rows, crossfitted, overlap_rows
from loclin.studies.table import by_run
from loclin.updates import Keeping
from tests.properties import share_supported
from tests.reference import dense_ranks

CONFIG = Config(counts=(16, 32), ks=(1, 5), k=5)
TINY = replace(
    preset("smoke"),
    task="swap",
    seeds=1,
    counts=(4, 8),
    ks=(1, 2),
    k=2,
    overlap_gradients=3,
    gradient_batch=4,
).checked()


@pytest.fixture(scope="session")
def part(trained: Problem) -> Part:
    return experiment.run_one(TINY, 0, lambda stage, share: None)


@pytest.fixture(scope="module")
def found(trained: Problem) -> Gathered:
    space = ParameterSpace(trained.model)
    batches = disjoint_batches(trained.batch("gradients", "swap"), 4, 8, seed=0)
    return gather(trained.model, space, Keeping(), batches)


def test_the_gradients_are_those_of_the_batches_and_their_spectrum_that_of_a_dense_svd(
    trained: Problem, found: Gathered
) -> None:
    batches = disjoint_batches(trained.batch("gradients", "swap"), 4, 8, seed=0)
    dense = batch_gradients(trained, found.space, batches)
    torch.testing.assert_close(found.rows, dense)
    whole = np.sum(list(tensor_gramians(found).values()), axis=0)
    assert whole == pytest.approx(gramian(dense), rel=1e-10)
    ranks = effective_ranks(whole)
    assert (ranks.stable, ranks.participation, ranks.entropy) == pytest.approx(
        dense_ranks(dense.numpy()), rel=1e-6
    )
    assert found.norms.square().sum(1).numpy() == pytest.approx(np.diag(whole), rel=1e-5)


def test_sketched_gradients_are_held_against_sketched_noise(
    trained: Problem, found: Gathered
) -> None:
    keeping = Keeping(store="sketch", sketch=Sketch(size=4096, seed=0))
    batches = disjoint_batches(trained.batch("gradients", "swap"), 4, 8, seed=0)
    sketched = gather(trained.model, found.space, keeping, batches)
    assert sketched.columns == 4096
    assert not sketched.whole
    torch.testing.assert_close(sketched.norms, found.norms)
    for name, products in controls(sketched, seed=0).items():
        expected = np.diag(gramian(found.rows))
        assert np.diag(products) == pytest.approx(expected, rel=0.2), (
            name
        )  # a norm read from 4096 numbers: 1/√2048
        scale = np.sqrt(np.outer(expected, expected))
        off = (products / scale)[~np.eye(8, dtype=bool)]
        assert np.abs(off).max() < 0.15, name


def gathered(rows: torch.Tensor, space: ParameterSpace) -> Gathered:
    norms = torch.stack(
        [torch.stack([t.norm() for t in space.by_tensor(g).values()]) for g in rows]
    ).double()
    return Gathered(space=space, keeping=Keeping(), rows=rows, norms=norms)


def planted(rank: int | None, rng: np.random.Generator, space: ParameterSpace) -> torch.Tensor:
    noise = torch.from_numpy(rng.standard_normal((32, space.dimension))).float()
    if rank is None:
        return noise
    shared = rng.standard_normal((32, rank)) @ rng.standard_normal((rank, space.dimension))
    return 0.05 * noise + torch.from_numpy(shared).float()


@pytest.mark.parametrize("rank", [None, 2, 5])
def test_low_rank_gradients(rank: int | None) -> None:
    """Calibration: at most 5 % of isotropic worlds called low rank before Holm's correction, at
    least 95 % of rank r after it.
    """
    space = ParameterSpace(nn.Sequential(nn.Linear(20, 15), nn.Linear(15, 10)))

    def world(rng: np.random.Generator, run: int) -> list[Row]:
        found = gathered(planted(rank, rng, space), space)
        products, drawn = gramian(found.rows), controls(found, seed=int(rng.integers(1 << 30)))
        here = {"run": run, "point": "damaged"}
        rows = list(rank_rows(products, drawn, CONFIG.counts, here))
        return [
            *rows,
            *crossfit_rows(products, drawn["per tensor"], CONFIG.ks, space.dimension, here),
        ]

    def rule(rows: list[Row]) -> Claim:
        return claims.low_rank_gradients(CONFIG, rows, "damaged")

    share = share_supported(world, rule, 200, family=2 if rank else 1)
    assert share >= 0.95 if rank else share <= 0.05


def test_unit_norm_ranks_do_not_follow_the_norms() -> None:
    """Orthogonal vectors of very unequal norms: low rank by their norms, full rank without them."""
    norms = np.geomspace(1, 1e-3, 8)
    rows = list(rank_rows(np.diag(norms**2), {"per tensor": np.diag(norms**2)}, (8,), {"run": 0}))
    own, unit = (
        by_run(rows, "participation_rank", vectors=v, mean="uncentred")[0]
        for v in ("measured", "measured, unit norm")
    )
    assert own < 2
    assert unit == pytest.approx(8)


def test_crossfitted_energy_equals_that_of_a_dense_projection() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 60)) + 2 * np.outer(np.ones(20), rng.standard_normal(60))
    signal, energy = crossfitted(rows @ rows.T, slice(0, 10), slice(10, 20), 3)
    basis = principal_directions(torch.from_numpy(rows[:10]), 3).basis.numpy()
    new, held = rows[10:], rows[10:] @ basis.T
    pairs = ~np.eye(10, dtype=bool)
    assert signal == pytest.approx((held @ held.T)[pairs].sum() / (new @ new.T)[pairs].sum())
    assert energy == pytest.approx((held**2).sum() / (new**2).sum())


def test_crossfitted_energy_of_isotropic_gradients_is_chance() -> None:
    rng = np.random.default_rng(1)
    energies = []
    for _ in range(50):
        rows = rng.standard_normal((20, 100))
        energies.append(crossfitted(rows @ rows.T, slice(0, 10), slice(10, 20), 5)[1])
    assert np.mean(energies) == pytest.approx(0.05, abs=0.005)


def test_task_overlaps_equal_those_of_dense_subspaces() -> None:
    rng = np.random.default_rng(2)
    plane = rng.standard_normal((3, 200))
    rows = 0.3 * rng.standard_normal((24, 200))
    rows[:12] += (
        rng.standard_normal((12, 3)) @ plane
    )  # the first task lives in the plane, the second anywhere
    white = rng.standard_normal((24, 200))
    sets = {"a": (slice(0, 6), slice(6, 12)), "b": (slice(12, 18), slice(18, 24))}
    measured = list(overlap_rows(rows @ rows.T, white @ white.T, sets, 3, {"run": 0}))
    spaces = [principal_directions(torch.from_numpy(rows[s]), 3) for s in (*sets["a"], *sets["b"])]
    value = {
        (r.context["a"], r.context["b"]): r.value for r in measured if r.quantity == "task_overlap"
    }
    assert value["a", "a"] == pytest.approx(spaces[0].overlap(spaces[1]))
    assert value["a", "b"] == pytest.approx(
        (spaces[0].overlap(spaces[3]) + spaces[1].overlap(spaces[2])) / 2
    )
    assert value["a", "a"] > 0.8
    assert max(value["a", "b"], value["b", "b"]) < 0.2  # type: ignore[type-var]
    nulls = [r.null for r in measured if r.quantity == "task_overlap"]
    assert np.mean(nulls) == pytest.approx(3 / 200, rel=0.5)  # type: ignore[type-var]
    assert by_run(measured, "overlap_within")[0] == pytest.approx(
        (value["a", "a"] + value["b", "b"]) / 2
    )  # type: ignore[operator]


def test_a_low_rank_layer_is_found_where_it_is() -> None:
    """One layer's gradients share a direction, the other's do not; a third has none."""
    module = nn.ModuleDict(
        {"h": nn.ModuleList([nn.Linear(20, 20) for _ in range(2)]), "out": nn.Linear(4, 4)}
    )
    space, rng = ParameterSpace(module), np.random.default_rng(3)
    rows = torch.from_numpy(rng.standard_normal((16, space.dimension))).float()
    for row in rows:
        pieces = space.by_tensor(row)
        pieces["h.0.weight"][:] = rng.standard_normal() * torch.ones(20, 20)
        pieces["h.0.bias"][:] = 0
        pieces["out.weight"][:], pieces["out.bias"][:] = 0, 0
    found = gathered(rows, space)
    table = list(layer_rows(found, tensor_gramians(found), {"run": 0}, seed=0))
    ratio = {r.context["layer"]: r.value for r in table if r.quantity == "layer_rank_ratio"}
    assert ratio[0] is not None
    assert ratio[0] < 0.2
    assert ratio[1] == pytest.approx(1, abs=0.1)
    assert ratio[-1] is None
    assert sum(r.value or 0 for r in table if r.quantity == "layer_energy") == pytest.approx(1)


def test_one_real_run(part: Part) -> None:
    for point in ("pretrained", "damaged"):
        here: dict[str, Any] = {"point": point}
        gram = part.arrays[f"gradient_gramian/{point}/0"]
        assert gram.shape == (8, 8)
        rank = by_run(
            part.rows,
            "participation_rank",
            vectors="measured",
            mean="uncentred",
            gradients=8,
            **here,
        )
        assert rank[0] == pytest.approx(effective_ranks(gram).participation)
        shares = [
            r.value
            for r in part.rows
            if r.quantity == "energy_share" and r.context["point"] == point
        ]
        assert len(shares) == 3 * 8
        overlaps = [
            r for r in part.rows if r.quantity == "task_overlap" and r.context["point"] == point
        ]
        assert len(overlaps) == 36
        within, between = (
            by_run(part.rows, f"overlap_{w}", **here)[0] for w in ("within", "between")
        )
        assert within > between > 2 / by_run(part.rows, "dimension")[0]
        energies = [
            r.value
            for r in part.rows
            if r.quantity == "layer_energy" and r.context["point"] == point
        ]
        assert sum(map(float, energies)) == pytest.approx(1)  # type: ignore[arg-type]
    assert len(claims.decide(TINY, part.rows)) == 2


@pytest.mark.parametrize("profile", ["smoke", "standard", "paper"])
def test_every_profile_can_be_run(profile: Profile) -> None:
    for config in settings(profile):
        assert config.checked().entry.startswith("spectrum-")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (8, 8)}, "at least two growing numbers of gradients"),
        ({"counts": (8,)}, "at least two growing numbers of gradients"),
        ({"counts": (16, 8)}, "at least two growing numbers"),
        ({"ks": (65,)}, r"ks from 1 to 64, half of the gradients, found \[65\]"),
        ({"k": 30}, "k of at most 16 gradients, found 30"),
        ({"gradient_batch": 0}, "gradient-batch of at least 1"),
        (
            {"store": "sketch", "sketch_size": 100},
            "sketch of at least 4 n = 512 numbers, found 100",
        ),
    ],
)
def test_bad_settings_are_named_with_their_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(Config(), **change).checked()


def test_too_few_examples_are_named_before_anything_is_taught(trained: Problem) -> None:
    config = replace(TINY, counts=(400, 800), gradient_batch=8)
    with pytest.raises(
        LoclinError,
        match=r"expected at least 6400 examples of swap in the gradients split, found .*--counts",
    ):
        experiment.run_one(config, 0, lambda stage, share: None)
