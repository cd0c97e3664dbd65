"""Weights by torchjd: the condition that defines each method, their common scale, and a package
that is missing.
"""

import sys

import numpy as np
import pytest
import torch
from torchjd import aggregation

from loclin.errors import LoclinError
from loclin.schedules.library import CAGRAD_RADIUS, library_weights
from loclin.schedules.names import LIBRARY
from loclin.schedules.weights import pcgrad


def gram(seed: int, tasks: int = 3) -> np.ndarray:
    g = np.random.default_rng(seed).standard_normal((tasks, 8))
    return g @ g.T


@pytest.mark.parametrize("name", LIBRARY)
def test_equal_orthogonal_gradients_are_added(name: str) -> None:
    w = library_weights(name, 2)(4 * np.eye(2))
    assert w == pytest.approx((1 + CAGRAD_RADIUS if name == "CAGrad" else 1) * np.ones(2), rel=1e-3)


@pytest.mark.parametrize("name", ["MGDA", "UPGrad", "IMTL-G", "Aligned-MTL", "CAGrad"])
def test_weights_are_the_librarys_times_the_number_of_tasks(name: str) -> None:
    own = {
        "MGDA": aggregation.MGDAWeighting(),
        "UPGrad": aggregation.UPGradWeighting(),
        "IMTL-G": aggregation.IMTLGWeighting(),
        "Aligned-MTL": aggregation.AlignedMTLWeighting(),
        "CAGrad": aggregation.CAGradWeighting(c=CAGRAD_RADIUS),
    }
    g = gram(0)
    assert library_weights(name, 3)(g) == pytest.approx(
        3 * own[name](torch.from_numpy(g)).numpy(), rel=1e-3, abs=1e-3
    )


@pytest.mark.parametrize("name", ["IMTL-G", "Nash-MTL", "UPGrad"])
@pytest.mark.parametrize("seed", range(3))
def test_each_method_meets_its_own_condition(name: str, seed: int) -> None:
    g = gram(seed)
    w = library_weights(name, 3)(g)
    pulls = g @ w
    if name == "IMTL-G":  # equal projections on all gradients
        assert pulls / np.sqrt(np.diag(g)) == pytest.approx((pulls / np.sqrt(np.diag(g)))[0])
    elif name == "Nash-MTL":  # G w proportional to 1/w
        assert pulls * w == pytest.approx((pulls * w)[0], rel=0.02)
        assert w.sum() == pytest.approx(3)
    else:  # no loss rises
        assert (pulls > -1e-6).all()


@pytest.mark.parametrize("ratio", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("cosine", [-0.9, -0.5, 0.3])
def test_upgrad_of_two_is_pcgrad_however_unequal_their_lengths(ratio: float, cosine: float) -> None:
    g = np.array([[1.0, ratio * cosine], [ratio * cosine, ratio**2]])
    w = library_weights("UPGrad", 2)(g)
    assert w == pytest.approx(pcgrad(g), rel=1e-3)
    assert (g @ w >= -1e-3 * np.sqrt(np.diag(g) * (w @ g @ w))).all()  # no loss rises


def test_the_unit_of_the_losses_does_not_matter() -> None:
    for name in LIBRARY:
        weights = [library_weights(name, 3)(scale * gram(4)) for scale in (1.0, 1e-8)]
        assert weights[0] == pytest.approx(weights[1], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("package", "name"), [("torchjd", "MGDA"), ("cvxpy", "CAGrad"), ("quadprog", "UPGrad")]
)
def test_a_package_that_is_missing_is_named_in_one_line(
    package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] in ("torchjd", package)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    with pytest.raises(
        LoclinError, match=r"packages behind the schedule .*pip install 'loclin\[schedules\]'"
    ) as refused:
        library_weights(name, 2)(np.eye(2))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", LIBRARY)
def test_weights_are_finite_where_gradients_vanish(name: str) -> None:
    g = np.zeros((3, 3))
    g[:2, :2] = gram(0, 2)
    w = library_weights(name, 3)(g)
    assert np.isfinite(w).all()
    if name == "UPGrad":  # a gradient of zero asks for nothing
        assert w[:2] == pytest.approx(library_weights(name, 2)(g[:2, :2]), rel=1e-3)
    nothing = np.zeros((2, 2))
    if name == "Nash-MTL":
        with pytest.raises(LoclinError, match="gradients to bargain over, found zero alone"):
            library_weights(name, 2)(nothing)
    else:
        assert np.isfinite(library_weights(name, 2)(nothing)).all()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(
        LoclinError, match="unknown schedule 'GradDrop' of torchjd: expected one of MGDA"
    ):
        library_weights("GradDrop", 2)
