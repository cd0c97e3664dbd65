"""A run's movement against dense tensors."""

import numpy as np
import pytest
import torch

from loclin.errors import LoclinError
from loclin.geometry.gramian import gramian
from loclin.models import points
from loclin.models.points import Adapted, Points
from loclin.studies.trajectory.movement import run_of
from tests.planted import white_steps
from tests.studies.trajectory.planted import points_of, walk


@pytest.mark.parametrize("block", [1, 100, 1 << 23])
def test_the_gramian_is_that_of_all_tensors_in_any_blocks(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(points, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "h.0.attn.weight": torch.randn(5, 7, 3, generator=generator),
        "h.0.mlp.weight": torch.randn(5, 4, 2, 2, generator=generator),
        "scale": torch.randn(5, generator=generator),
    }
    run = run_of(points_of(tensors))
    dense = torch.cat([t.reshape(5, -1) for t in tensors.values()], dim=1).diff(dim=0)
    found = run.spaces["weights"]
    assert np.allclose(found.gramian, gramian(dense), rtol=1e-6)
    assert np.allclose((found.norms**2).sum(1), np.diag(found.gramian))
    assert (found.names, found.sizes, found.dimension) == (tuple(tensors), (21, 16, 1), 38)


def test_tied_tensors_count_once_and_still_ones_not_at_all() -> None:
    moving = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    tensors = {
        "wte": moving,
        "lm_head": moving.clone(),
        "like": moving + 1,
        "frozen": torch.ones(4, 9),
    }
    found = run_of(points_of(tensors)).spaces["weights"]
    assert found.names == ("wte", "like")
    assert (found.dimension, found.still) == (60, 1)


def test_an_adapter_is_measured_in_both_spaces_with_what_was_trained_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "x.lora_A.weight": torch.randn(4, 2, 6, generator=generator).double(),
        "x.lora_B.weight": torch.randn(4, 5, 2, generator=generator).double(),
        "head.weight": torch.randn(4, 3, 2, generator=generator).double(),
    }
    pair = {"x": Adapted(a="x.lora_A.weight", b="x.lora_B.weight", scale=0.5)}
    run = run_of(Points(**{**vars(points_of(tensors)), "adapted": pair}))
    made = (0.5 * tensors["x.lora_B.weight"] @ tensors["x.lora_A.weight"]).flatten(1)
    dense = torch.cat([made, tensors["head.weight"].flatten(1)], dim=1).diff(dim=0)
    assert np.allclose(run.spaces["weights"].gramian, gramian(dense))
    assert (run.spaces["weights"].dimension, run.spaces["factors"].dimension) == (
        6 + 2 * (6 + 5 - 2),
        28,
    )


def test_points_that_cannot_be_measured_say_why() -> None:
    moving = walk(white_steps(3, 50, np.random.default_rng(0)))
    moving[2, 7] = np.inf
    with pytest.raises(
        LoclinError,
        match="finite weights, found NaN or infinity in w at checkpoint-2: leave that point",
    ):
        run_of(points_of({"w": moving}))
    with pytest.raises(
        LoclinError,
        match="points that differ, found the same weights at all of checkpoint-0 to checkpoint-3",
    ):
        run_of(points_of({"w": torch.ones(4, 5)}))


def test_how_far_the_reading_is_is_shown_in_one_stage() -> None:
    seen: list[tuple[str, float]] = []
    tensors = {name: torch.arange(6.0).reshape(3, 2) * (i + 1) for i, name in enumerate("abcd")}
    run_of(points_of(tensors), lambda stage, share: seen.append((stage, share)))
    assert seen == [("reading 3 points", share) for share in (0.0, 0.25, 0.5, 0.75)]
