"""Remedies against exact expectations: the Fisher of a model whose tokens can be listed, the
penalty it makes, shares of a replay.
"""

import numpy as np
import pytest
import torch

from loclin.parameters import ParameterSpace
from loclin.schedules.remedies import consolidated, fisher_diagonal, replayed
from loclin.tasks.batch import IGNORED, Batch
from tests.planted import LinearModel

WORDS, WIDTH = 5, 3


@pytest.fixture
def model() -> LinearModel:
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return LinearModel(draw(WORDS, WIDTH), 0.3 * draw(1, WIDTH, WIDTH), draw(WORDS, WIDTH))


@pytest.fixture
def data() -> Batch:
    """Three examples with one, two and one answer tokens, the first two padded."""
    ids = torch.tensor([[1, 2, 0], [3, 4, 1], [2, 2, 0]])
    labels = torch.tensor([[IGNORED, 2, IGNORED], [IGNORED, 4, 1], [IGNORED, 2, IGNORED]])
    return Batch(input_ids=ids, attention_mask=(ids > 0).long(), labels=labels)


def exact_fisher(model: LinearModel, data: Batch) -> np.ndarray:
    """Σ over answer tokens of E_{y ~ p}[(∇ log p(y))²], over their number: every token of the
    vocabulary in turn.
    """
    parameters, total, count = list(model.parameters()), 0.0, 0
    for row, labels in zip(data.input_ids, data.labels, strict=True):
        for place in (labels != IGNORED).nonzero()[:, 0]:
            log_p = model(row[None]).logits[0, place - 1].log_softmax(-1)
            for y in range(WORDS):
                g = torch.autograd.grad(log_p[y], parameters, retain_graph=True)
                total += (
                    float(log_p[y].exp().detach()) * torch.cat([x.reshape(-1) for x in g]).square()
                )
            count += 1
    return (total / count).numpy()  # type: ignore[union-attr]


def test_the_fisher_is_that_of_the_models_own_tokens(model: LinearModel, data: Batch) -> None:
    space = ParameterSpace(model)
    draws = np.array(
        [fisher_diagonal(model, space, data, seed=seed).numpy() for seed in range(400)]
    )
    exact = exact_fisher(model, data)
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (
        np.abs(draws.mean(0) - exact) < 5 * error + 1e-9
    ).all()  # 5: one coordinate in forty may lie beyond 2
    assert draws.mean(0).sum() == pytest.approx(exact.sum(), rel=0.1)
    assert np.array_equal(draws[3], fisher_diagonal(model, space, data, seed=3).numpy())


def test_the_penalty_pulls_back_to_where_the_old_task_was_known(model: LinearModel) -> None:
    space = ParameterSpace(model)
    anchor, fisher = space.read(), space.noise(seed=1).square()
    pull = consolidated(space, anchor, fisher, 3.0)
    assert torch.equal(pull(), torch.zeros_like(anchor))
    moved = space.noise(seed=2)
    space.add(moved)
    point = (anchor + moved).requires_grad_()
    penalty = 1.5 * (fisher * (point - anchor) ** 2).sum()
    (expected,) = torch.autograd.grad(penalty, point)
    assert torch.allclose(pull(), expected)


@pytest.mark.parametrize(
    ("batch", "share", "sizes"),
    [(24, 0.25, (18, 6)), (2, 0.01, (1, 1)), (4, 0.99, (1, 3)), (16, 0.5, (8, 8))],
)
def test_a_replayed_batch_holds_something_of_both(
    batch: int, share: float, sizes: tuple[int, int]
) -> None:
    assert replayed(batch, share) == sizes
