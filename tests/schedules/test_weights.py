"""Weights of gradients against closed forms of two tasks, against torchjd, and under the symmetries
that theory gives them.
"""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from torchjd import aggregation

from loclin.errors import LoclinError
from loclin.schedules.weights import equal_decrease, loss_balanced, norm_balanced, pcgrad, raw_sum

OWN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "raw sum": raw_sum,
    "norm-balanced": norm_balanced,
    "PCGrad": pcgrad,
    "equal decrease": equal_decrease,
}
COSINES = (-0.99, -0.5, 0.0, 0.3, 0.9)


def products(first: float, second: float, cosine: float) -> np.ndarray:
    """Gramian of two gradients by their lengths and cosine."""
    across = first * second * cosine
    return np.array([[first**2, across], [across, second**2]])


def gradients(tasks: int, *, seed: int) -> np.ndarray:
    return (
        np.random.default_rng(seed).standard_normal((tasks, 6)) * np.arange(1, tasks + 1)[:, None]
    )


@pytest.mark.parametrize("cosine", COSINES)
def test_norm_balanced_gradients_pull_alike(cosine: float) -> None:
    w = norm_balanced(products(0.2, 5.0, cosine))
    assert w * [0.2, 5.0] == pytest.approx(w[0] * 0.2)
    assert w.sum() == pytest.approx(2)


@pytest.mark.parametrize("cosine", COSINES)
@pytest.mark.parametrize("lengths", [(1.0, 1.0), (0.3, 4.0)])
def test_pcgrad_is_the_projection_of_each_on_the_others_plane(
    lengths: tuple[float, float], cosine: float
) -> None:
    a, b = lengths
    g = np.array([[a, 0.0], [b * cosine, b * np.sqrt(1 - cosine**2)]])
    g1, g2 = g
    if g1 @ g2 < 0:
        g1, g2 = g1 - (g1 @ g2) / (g2 @ g2) * g2, g2 - (g1 @ g2) / (g1 @ g1) * g1
    w = pcgrad(g @ g.T)
    assert w @ g == pytest.approx(g1 + g2)
    assert (g @ (w @ g) >= -1e-12).all()  # no loss rises to first order
    assert w == pytest.approx(aggregation.PCGradWeighting()(torch.from_numpy(g @ g.T)).numpy())


def test_pcgrad_of_three_draws_one_of_the_orders_by_its_seed() -> None:
    g = np.array([[1.0, 0.0, 0.2], [-0.7, 1.0, 0.0], [-0.6, -0.8, 1.0]])
    every = set()
    for first in permutations((1, 2)):
        for second in permutations((0, 2)):
            for third in permutations((0, 1)):
                total = np.zeros(3)
                for i, order in enumerate((first, second, third)):
                    own = g[i].copy()
                    for j in order:
                        own -= min(own @ g[j], 0.0) / (g[j] @ g[j]) * g[j]
                    total += own
                every.add(tuple(total.round(9)))
    found = {tuple((pcgrad(g @ g.T, seed=seed) @ g).round(9)) for seed in range(40)}
    assert found <= every
    assert len(found) > 1
    assert pcgrad(g @ g.T, seed=3) == pytest.approx(pcgrad(g @ g.T, seed=3))


@pytest.mark.parametrize("cosine", COSINES)
@pytest.mark.parametrize("lengths", [(1.0, 1.0), (1.0, 1.5), (0.3, 4.0)])
def test_equal_decrease_of_two_is_the_closed_form_or_the_shorter_one(
    lengths: tuple[float, float], cosine: float
) -> None:
    g = products(*lengths, cosine)
    w = equal_decrease(g)
    closed = np.array([g[1, 1] - g[0, 1], g[0, 0] - g[0, 1]])  # adj(G) 1
    if (closed >= 0).all():
        assert w == pytest.approx(2 * closed / closed.sum())
        assert np.ptp(g @ w) == pytest.approx(0, abs=1e-9 * g.max())
    else:
        assert w[int(np.argmin(lengths))] == pytest.approx(
            2
        )  # whatever weight the longer has, its loss falls more
    mgda = aggregation.MGDAWeighting(max_iters=20000, epsilon=1e-9)(torch.from_numpy(g)).numpy()
    assert w == pytest.approx(2 * mgda, abs=1e-6)


def test_equal_decrease_of_many_solves_g_w_proportional_to_one() -> None:
    for seed in range(20):
        g = gradients(4, seed=seed)
        gram = g @ g.T
        w = equal_decrease(gram)
        assert (w >= 0).all()
        assert w.sum() == pytest.approx(4)
        exact = np.linalg.solve(gram, np.ones(4))
        if (exact > 0).all():
            assert w == pytest.approx(4 * exact / exact.sum())


def test_where_decreases_cannot_be_equal_the_others_fall_faster() -> None:
    for seed in range(20):
        g = gradients(5, seed=seed) + 2  # mostly agreeing, of unequal lengths
        w = equal_decrease(g @ g.T)
        falls = g @ g.T @ w
        taking = w > 1e-9
        assert falls[taking] == pytest.approx(falls[taking][0])
        assert (falls >= falls[taking][0] - 1e-9).all()


def test_without_common_descent_equal_decrease_stands_still() -> None:
    opposed = products(1.0, 2.0, -1.0)
    w = equal_decrease(opposed)
    assert w == pytest.approx([4 / 3, 2 / 3])
    assert w @ opposed @ w == pytest.approx(0, abs=1e-12)


def test_loss_balanced_weighs_by_what_is_left() -> None:
    w = loss_balanced(np.array([4.0, 0.5, 1.0]), np.array([4.0, 2.0, 1.0]))
    assert w == pytest.approx(3 * np.array([1.0, 0.5, 1.0]) / 2.5)
    assert loss_balanced(np.zeros(2), np.ones(2)) == pytest.approx(np.ones(2))


@pytest.mark.parametrize("name", OWN)
def test_the_order_of_tasks_does_not_matter(name: str) -> None:
    tasks = 2 if name == "PCGrad" else 4  # with more, PCGrad draws an order
    g = gradients(tasks, seed=1)
    turn = np.random.default_rng(0).permutation(tasks)
    assert OWN[name](g[turn] @ g[turn].T) == pytest.approx(OWN[name](g @ g.T)[turn])


@pytest.mark.parametrize("name", OWN)
def test_the_unit_of_the_losses_does_not_matter(name: str) -> None:
    g = gradients(3, seed=2)
    assert OWN[name](1e-6 * g @ g.T) == pytest.approx(OWN[name](g @ g.T))


@pytest.mark.parametrize("name", ["norm-balanced", "equal decrease"])
def test_the_direction_does_not_depend_on_one_tasks_unit_where_the_method_removes_it(
    name: str,
) -> None:
    g = gradients(2, seed=3)
    scaled = g * [[1.0], [7.0]]
    if name == "norm-balanced":
        one, other = (OWN[name](x @ x.T) @ x for x in (g, scaled))
        assert one / np.linalg.norm(one) == pytest.approx(other / np.linalg.norm(other))
    else:
        w = OWN[name](scaled @ scaled.T)
        decreases = scaled @ (w @ scaled)
        assert decreases[0] == pytest.approx(decreases[1]) or w.min() == 0


@pytest.mark.parametrize("name", OWN)
def test_equal_orthogonal_gradients_are_added(name: str) -> None:
    assert OWN[name](np.eye(3) * 5) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("name", ["norm-balanced", "PCGrad", "equal decrease"])
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_gradients_that_are_zero_or_not_finite_are_refused(name: str, bad: float) -> None:
    with pytest.raises(
        LoclinError, match="expected finite gradients that are not zero, found squared lengths"
    ):
        OWN[name](np.diag([1.0, bad]))


def test_a_first_loss_of_zero_is_refused() -> None:
    with pytest.raises(
        LoclinError, match=r"expected losses above zero at the first step, found \[1.0, 0.0\]"
    ):
        loss_balanced(np.ones(2), np.array([1.0, 0.0]))
