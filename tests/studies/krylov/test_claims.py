"""Calibration of the rule. Every planted world goes through the code that measures real runs."""

import numpy as np
import pytest
import torch

from loclin.geometry.krylov import lanczos
from loclin.run.rows import Row
from loclin.studies.captures import family_rows
from loclin.studies.krylov import claims
from loclin.studies.krylov.names import EIGENVECTORS, KRYLOV
from loclin.studies.krylov.settings import KrylovSettings
from loclin.studies.names import MINIBATCH, PREFIX
from tests.planted import quadratic_descent
from tests.properties import share_supported

SETTINGS = KrylovSettings(k=6, ks=(6,), steps=40, times=(1,), seeds=6)
NULL_DRAWS, DRAWS = 200, 60


def rows_of(run: int, u: np.ndarray, bases: dict[str, np.ndarray]) -> list[Row]:
    here, gram = {"run": run, "optimiser": "sgd", "space": "weights"}, u @ u.T
    prefix = {**here, "basis": PREFIX, "k": 6, "of": "displacement"}
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

    return share_supported(world, lambda rows: claims.krylov(SETTINGS, rows, "sgd"), draws)


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
    kinds = {KRYLOV: krylov, EIGENVECTORS: eigenvectors, MINIBATCH: gradients}
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
                KRYLOV: space,
                EIGENVECTORS: np.eye(80)[-6:],
                MINIBATCH: g + noise[40:],
            },
        )

    assert share_supported(world, lambda rows: claims.krylov(SETTINGS, rows, "sgd"), DRAWS) >= 0.95
