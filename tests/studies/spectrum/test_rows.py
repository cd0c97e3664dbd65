"""Rows of planted gradients against dense projections and subspaces."""

import numpy as np
import pytest
import torch
from torch import nn

from loclin.geometry.spectrum import principal_directions
from loclin.parameters import ParameterSpace
from loclin.run.rows import by_run
from loclin.studies.spectrum.gradients import tensor_gramians
from loclin.studies.spectrum.rows import (
    crossfit_rows,
    crossfitted,
    layer_rows,
    overlap_rows,
    rank_rows,
    spectrum_rows,
)
from tests.rows import value, values
from tests.studies.spectrum.planted import gathered


def test_unit_norm_ranks_do_not_follow_the_norms() -> None:
    """Orthogonal vectors of very unequal norms: low rank by their norms, full rank without them."""
    gram = np.diag(np.geomspace(1, 1e-3, 8) ** 2)
    drawn = {"per tensor": 2 * gram, "isotropic": np.eye(8)}
    rows = list(rank_rows(gram, drawn, (4, 8), {"run": 0}))
    here = {"vectors": "measured", "mean": "uncentred", "gradients": 8}
    ranks = {n: value(rows, "participation_rank", norms=n, **here) for n in ("own", "unit")}
    assert ranks["own"] < 2
    assert ranks["unit"] == pytest.approx(8)
    assert values(rows, "participation_rank", "null", norms="unit", **here) == pytest.approx([8])


def test_ratio_and_growth_are_those_of_centred_ranks_at_the_last_two_n() -> None:
    rng = np.random.default_rng(0)
    low = rng.standard_normal((16, 2)) @ rng.standard_normal((2, 40))
    white = rng.standard_normal((16, 4000))
    drawn = dict.fromkeys(("isotropic", "per tensor"), white @ white.T)
    rows = list(rank_rows(low @ low.T, drawn, (2, 4, 16), {"run": 0}))
    for norms in ("unit", "own"):

        def rank(vectors: str, n: int, norms: str = norms) -> float:
            here = {"norms": norms, "mean": "centred", "gradients": n}
            return value(rows, "participation_rank", vectors=vectors, **here)

        growth = value(rows, "rank_growth", norms=norms, vectors="measured")
        assert growth == pytest.approx((rank("measured", 16) / rank("measured", 4)) ** 0.5)
        ratio = value(rows, "rank_ratio", norms=norms, control="isotropic")
        assert ratio == pytest.approx(rank("measured", 16) / rank("isotropic", 16))
    assert value(rows, "rank_growth", norms="unit", vectors="isotropic") > 2  # 15 over 3, centred


def test_shares_are_those_of_the_centred_vectors() -> None:
    vectors = np.random.default_rng(0).standard_normal((6, 40)) * np.geomspace(1, 0.1, 40) + 1
    rows = list(spectrum_rows(vectors @ vectors.T, {}, 3, {"run": 0}))
    energy = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False) ** 2
    assert [r.value for r in rows] == pytest.approx((energy / energy.sum())[:3].tolist())


def test_crossfitted_energy_equals_that_of_a_dense_projection() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 60)) + 2 * np.outer(np.ones(20), rng.standard_normal(60))
    signal, energy = crossfitted(rows @ rows.T, slice(0, 10), slice(10, 20), 3)
    basis = principal_directions(torch.from_numpy(rows[:10]), 3).basis.numpy()
    new, held = rows[10:], rows[10:] @ basis.T
    pairs = ~np.eye(10, dtype=bool)
    assert signal == pytest.approx((held @ held.T)[pairs].sum() / (new @ new.T)[pairs].sum())
    assert energy == pytest.approx((held**2).sum() / (new**2).sum())
    made = list(crossfit_rows(rows @ rows.T, np.eye(20), (3,), 60, {"run": 0}))
    assert by_run(made, "crossfit_energy", vectors="measured")[0] == energy
    assert by_run(made, "crossfit_signal", column="null")[0] == 3 / 60


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
    # the first task lives in the plane, the second anywhere
    rows[:12] += rng.standard_normal((12, 3)) @ plane
    white = rng.standard_normal((24, 200))
    sets = {"a": (slice(0, 6), slice(6, 12)), "b": (slice(12, 18), slice(18, 24))}
    measured = list(overlap_rows(rows @ rows.T, white @ white.T, sets, 3, {"run": 0}))
    spaces = [principal_directions(torch.from_numpy(rows[s]), 3) for s in (*sets["a"], *sets["b"])]
    overlaps = [r for r in measured if r.quantity == "task_overlap"]
    value = {(r.context["a"], r.context["b"]): r.value or 0.0 for r in overlaps}
    assert value["a", "a"] == pytest.approx(spaces[0].overlap(spaces[1]))
    assert value["a", "b"] == pytest.approx(
        (spaces[0].overlap(spaces[3]) + spaces[1].overlap(spaces[2])) / 2
    )
    assert value["a", "a"] > 0.8
    assert max(value["a", "b"], value["b", "b"]) < 0.2
    assert np.mean([r.null or 0.0 for r in overlaps]) == pytest.approx(3 / 200, rel=0.5)
    assert by_run(measured, "overlap_within")[0] == pytest.approx(
        (value["a", "a"] + value["b", "b"]) / 2
    )


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
    gradients = gathered(rows, space)
    table = list(layer_rows(gradients, tensor_gramians(gradients), {"run": 0}, seed=0))
    ratio = {r.context["layer"]: r.value for r in table if r.quantity == "layer_rank_ratio"}
    assert ratio[0] is not None
    assert ratio[0] < 0.2
    assert ratio[1] == pytest.approx(1, abs=0.1)
    assert ratio[-1] is None
    assert sum(r.value or 0 for r in table if r.quantity == "layer_energy") == pytest.approx(1)
