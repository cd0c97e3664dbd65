import numpy as np
import pytest
import torch

from loclin import schedules
from loclin.errors import LoclinError


def losses(model: torch.nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    out = model(inputs)
    return [out[:, 0].square().mean(), (out[:, 1] - 1).square().mean(), out.sum().square()]


def test_the_gradient_is_the_weighted_sum_of_the_losses_gradients() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    inputs = torch.randn(5, 3)
    parameters = list(model.parameters())
    rows = torch.stack(
        [
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(loss, parameters, retain_graph=True)]
            )
            for loss in losses(model, inputs)
        ]
    ).double()
    w = schedules.backward(losses(model, inputs), "pcgrad", parameters, seed=3)
    assert w == pytest.approx(schedules.pcgrad((rows @ rows.T).numpy(), seed=3), rel=1e-4)
    found = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]).double()
    assert torch.allclose(found, torch.from_numpy(w) @ rows, atol=1e-5)


def test_a_raw_sum_is_plain_backward_and_adds_to_what_is_there() -> None:
    model = torch.nn.Linear(3, 2)
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        w = schedules.backward(losses(model, inputs), "raw sum", [*model.parameters(), frozen])
    assert np.array_equal(w, np.ones(3))
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    (2 * sum(losses(model, inputs))).backward()
    for one, p in zip(found, model.parameters(), strict=True):
        assert torch.allclose(one, p.grad, rtol=1e-4)
    assert frozen.grad is None


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [("best", 1, "expected a schedule among raw sum"), ("pcgrad", 0, "expected losses and")],
)
def test_what_cannot_be_done_is_one_line(name: str, given: int, message: str) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(LoclinError, match=message):
        schedules.backward([p.sum()] * given, name, [p])


def test_one_loss_may_be_there_twice() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    loss = p.square().sum()
    assert schedules.backward([loss, loss], "raw sum", [p]).tolist() == [1, 1]
    assert p.grad is not None
    assert p.grad.tolist() == [4, 4]
