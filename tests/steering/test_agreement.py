"""Cosines between routes: their intervals cover, their parts add up to the whole, their null has no
side.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.stats import Estimate
from loclin.steering import agreement as module
from loclin.steering.agreement import agreement, gradient_batches
from loclin.steering.averages import Averaged, loss_of, step_averaged
from loclin.steering.compare import cosines
from loclin.steering.estimands import Estimand
from loclin.steering.gradient import centred_shift, step_direction
from loclin.steering.prompts import prompt_set
from tests.steering.test_routes import examples


def quiet(share: float) -> None:
    assert 0 <= share <= 1


def noisy(
    centre: np.ndarray,
    groups: int,
    each: int,
    rng: np.random.Generator,
    labels: np.ndarray | None = None,
) -> Averaged:
    """Vectors around a centre, noise shared within groups; with labels, ± half the centre."""
    shared = rng.standard_normal((groups, len(centre))).repeat(each, axis=0)
    sign = np.ones(groups * each) if labels is None else labels - 0.5
    h = sign[:, None] * centre + 0.3 * shared + 0.1 * rng.standard_normal(shared.shape)
    names = tuple(str(i // each) for i in range(groups * each))
    return Averaged(each=torch.from_numpy(h)[None], labels=labels, groups=names)


@pytest.mark.parametrize("width", [4, 48])
def test_intervals_cover(width: int) -> None:
    """Two routes with group noise, with labels and without, and one of batches and prompts.

    In few dimensions the planted cosine is covered. In many, noise lowers every cosine of vectors
    made from few examples, and what is covered is their mean.
    """
    rng, trials = np.random.default_rng(0), 120
    a, b = np.zeros(width), np.zeros(width)
    a[:2], b[:3] = (1.0, 0.2), (0.6, 0.8, 0.3)
    found: dict[str, list[Estimate]] = {"logits": [], "gradient": []}
    for trial in range(trials):
        labels = noisy(a, 40, 2, rng, labels=np.tile([True, False], 40))
        logits = noisy(b, 40, 2, rng)
        batches = [noisy(b + 0.3 * rng.standard_normal(width), 24, 1, rng) for _ in range(8)]
        made = {"labels": labels, "logits": logits}
        whole: Tensor = torch.stack([x.direction() for x in batches]).sum(0)
        directions = {"labels": labels.direction(), "logits": logits.direction(), "gradient": whole}
        each = agreement(directions, made, batches, seed=trial)
        for other, estimates in found.items():
            estimates += each["labels", other]
    planted = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    for estimates in found.values():
        covered = planted if width == 4 else float(np.mean([e.value for e in estimates]))
        assert (
            np.mean([e.low <= covered <= e.high for e in estimates]) > 0.87
        )  # 95 % less four standard errors
        assert all(e.low < e.value < e.high for e in estimates)
    assert (found["logits"][0].n, found["gradient"][0].n) == (40, 8)


def test_prompts_of_one_group_are_drawn_together() -> None:
    """Every prompt written twice says no more than once: the interval is as wide, unless the copies
    are given groups of their own.
    """
    rng = np.random.default_rng(1)
    once = {
        "labels": noisy(np.array([1.0, 0.0, 0.0]), 30, 1, rng),
        "logits": noisy(np.array([1.0, 1.0, 0.0]), 30, 1, rng),
    }

    def width(copies: int, *, own: bool) -> float:
        made = {
            name: Averaged(
                each=m.each.repeat(1, copies, 1),
                labels=None,
                groups=tuple(f"{g} {i if own else 0}" for i in range(copies) for g in m.groups),
            )
            for name, m in once.items()
        }
        directions = {name: m.direction() for name, m in made.items()}
        (estimate,) = agreement(directions, made, seed=0)["labels", "logits"]
        return estimate.high - estimate.low

    assert width(4, own=False) == pytest.approx(width(1, own=False), rel=0.2)
    assert width(4, own=True) < 0.7 * width(1, own=False)


def test_a_route_that_cannot_be_drawn_again_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    labels = noisy(np.ones(3), 20, 1, rng)
    directions = {"search": torch.ones(1, 3, dtype=torch.float64), "labels": labels.direction()}
    (estimate,) = agreement(directions, {"labels": labels}, seed=0)["search", "labels"]
    assert (estimate.low, estimate.high) == (-math.inf, math.inf)
    assert estimate.value == pytest.approx(float(cosines(*directions.values())))
    assert (
        agreement(
            {"labels": labels.direction()},
            {"labels": labels},
            seed=0,
        )
        == {}
    )


@pytest.fixture(scope="module")
def precise(speaking: Problem) -> Problem:
    """The statement model in float64: what differs between small steps is not rounding there."""
    return replace(speaking, model=copy.deepcopy(speaking.model).double())


@pytest.mark.parametrize("estimand", ["E1", "E3"])
def test_gradient_batches_add_up_to_the_gradient_step(
    precise: Problem, estimand: Estimand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To first order in the step. Steps both ways leave a share O(size²) of the shift, 0.01 at size
    1e-3 and so 1e-6 at 1e-5; 1 − cos is half the square of that share.
    """
    monkeypatch.setattr(module, "SMALL", 1e-5)
    some = examples(precise)
    step, read = (
        prompt_set(some[:32], precise.tokenizer, device="cpu"),
        prompt_set(some[32:], precise.tokenizer, device="cpu"),
    )
    space = ParameterSpace(precise.model)
    before = space.read()
    toward = step_direction(precise.model, space, step, loss=loss_of(estimand))
    there, back = (
        step_averaged(
            precise.model,
            space,
            toward,
            read,
            estimand=estimand,
            eta=eta,
            layers=[0, 1],
            path=None,
        ).direction()
        for eta in (module.SMALL, -module.SMALL)
    )
    batches = gradient_batches(
        precise.model,
        space,
        step,
        read,
        estimand=estimand,
        layers=[0, 1],
        path=None,
        progress=quiet,
    )
    assert len(batches) == 8
    total = torch.stack([b.direction() for b in batches]).sum(0)
    assert cosines(total, there - back).min() > 1 - 1e-9
    assert torch.equal(space.read(), before)


def test_groups_are_in_one_gradient_batch_each(precise: Problem) -> None:
    """Two groups make two batches: their parts are the steps of each group alone, both ways."""
    asked = prompt_set(examples(precise)[:20], precise.tokenizer, device="cpu")
    home = np.arange(20) % 3 == 0
    two = replace(asked, groups=tuple("ab"[i] for i in home.astype(int)))
    space = ParameterSpace(precise.model)
    found = gradient_batches(
        precise.model, space, two, asked, estimand="E1", layers=[0], path=None, progress=quiet
    )
    assert len(found) == 2
    for batch, rows in zip(found, (home, ~home), strict=True):
        alone = step_direction(precise.model, space, asked.rows(rows), loss="fixed")
        expected = centred_shift(
            precise.model, space, alone, asked.batch, size=module.SMALL, layers=[0]
        )
        assert cosines(batch.direction(), expected.mean(1)).min() > 1 - 1e-12
