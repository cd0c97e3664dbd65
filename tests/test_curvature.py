import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from transformers import PreTrainedModel

from loclin.curvature import (
    CurvatureOperator,
    NoSecondDerivative,
    finite_difference_product,
    probes,
    top_eigenpairs,
    trace,
)
from loclin.errors import LoclinError
from loclin.geometry.krylov import lanczos
from loclin.models import Problem, twice_differentiable
from loclin.models.lora import Lora, attach
from loclin.parameters import ParameterSpace
from loclin.stats import over_runs
from loclin.tasks.batch import IGNORED, Batch, answer_loss
from tests.conftest import random_model
from tests.properties import assert_within_error, rotation
from tests.reference import dense_hessian, slope_product
from tests.test_parameters import Tied, squares


class Quadratic(nn.Module):
    """½θᵀHθ in three tensors, with a given spectrum."""

    def __init__(self, spectrum: Tensor) -> None:
        super().__init__()
        turn, _ = torch.linalg.qr(rotation(len(spectrum), seed=0).to(spectrum))
        self.hessian = turn @ torch.diag(spectrum) @ turn.T
        start = torch.randn(len(spectrum), generator=torch.Generator().manual_seed(1)).to(spectrum)
        self.first, self.rest, self.last = (
            nn.Parameter(p.clone()) for p in start.split([4, len(spectrum) - 7, 3])
        )

    def loss(self, items: int) -> tuple[Tensor, int]:
        """Summed over items that all have this loss."""
        point = torch.cat([self.first, self.rest, self.last])
        return items * 0.5 * point @ self.hessian.to(point) @ point, items


SPECTRUM = torch.cat([torch.tensor([7.0, 5.0, -6.0]), torch.linspace(-1, 3, 21)]).double()


@pytest.fixture
def planted() -> tuple[ParameterSpace, Quadratic]:
    module = Quadratic(SPECTRUM)
    return ParameterSpace(module), module


@pytest.mark.parametrize("method", ["double backward", "finite differences"])
@pytest.mark.parametrize("batches", [[3], [1, 3]])
def test_any_product_is_that_of_the_hessian(
    planted: tuple[ParameterSpace, Quadratic], method: str, batches: list[int]
) -> None:
    space, module = planted
    product = CurvatureOperator(space, module.loss, batches, method=method)  # type: ignore[arg-type]
    for seed in range(2):
        v = space.noise(seed=seed)
        near = 1e-12 if method == "double backward" else 1e-6
        assert torch.allclose(product @ v, module.hessian @ v, atol=near)
        assert torch.equal(product(v), product @ v)


@pytest.mark.parametrize("method", ["double backward", "finite differences"])
def test_scipy_takes_the_operator(planted: tuple[ParameterSpace, Quadratic], method: str) -> None:
    space, module = planted
    operator = CurvatureOperator(space, module.loss, [1], method=method)  # type: ignore[arg-type]
    assert (operator.shape, operator.dtype) == ((24, 24), torch.float64)
    matrix = operator.to_scipy()
    assert (matrix.shape, matrix.dtype) == ((24, 24), np.float64)
    dense = matrix @ np.eye(24)
    assert np.allclose(dense, module.hessian.numpy(), atol=1e-6)
    assert np.allclose(matrix.T @ np.ones(24), dense.sum(0))
    assert np.allclose(eigsh(matrix, k=2, which="LA")[0], [5, 7], atol=1e-6)
    half = CurvatureOperator(
        ParameterSpace(nn.Linear(2, 2).bfloat16()), module.loss, [1], method="finite differences"
    )
    assert half.to_scipy().dtype == np.float32


def test_the_operator_draws_what_a_plain_function_is_given(
    planted: tuple[ParameterSpace, Quadratic],
) -> None:
    space, module = planted
    operator, plain = CurvatureOperator(space, module.loss, [1]), lambda v: module.hessian @ v
    values, vectors = top_eigenpairs(operator, 2, seed=3)
    again, same = top_eigenpairs(plain, 2, start=space.noise(seed=3))
    assert torch.allclose(values, again, rtol=1e-12)
    assert torch.allclose(vectors, same, atol=1e-10)
    estimate = trace(operator, 5, seed=4)
    assert estimate == over_runs(probes(operator, 5, seed=4).forms)
    from_plain = trace(plain, 5, seed=4, noise=space.noise)
    assert estimate.value == pytest.approx(from_plain.value, rel=1e-12)
    assert lanczos(operator, module.hessian[0], 4).k == 4
    for missing, call in (
        ("start", lambda: top_eigenpairs(plain, 2)),
        ("noise", lambda: trace(plain, 2, seed=0)),
    ):
        message = f"expected a CurvatureOperator, found a plain function: give `{missing}`"
        with pytest.raises(LoclinError, match=message):
            call()


def test_tied_weights_are_one_tensor_of_the_hessian() -> None:
    module = Tied().double()
    space = ParameterSpace(module)
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = dense_hessian(module, squares(module)(x)[0] / 10)
    v = space.noise(seed=0)
    for batches in ([x], [x[:3], x[3:]]):
        operator = CurvatureOperator(space, squares(module), batches)
        assert torch.allclose(operator @ v, dense @ v, atol=1e-10)


def test_a_kept_graph_gives_the_same_bits_and_says_when_the_point_has_moved(
    trained: Problem,
) -> None:
    space, data = ParameterSpace(trained.model), trained.batch("test", "halves").rows(slice(0, 9))

    def loss(batch: Batch) -> tuple[Tensor, int]:
        return answer_loss(trained.model, batch)

    with twice_differentiable(trained.model):
        product = CurvatureOperator(space, loss, [data])
        for seed in range(2):
            v = space.noise(seed=seed)
            assert torch.equal(product @ v, slope_product(space, loss, [data], v))
            chunks = list(data.chunks(4))
            several = CurvatureOperator(space, loss, chunks)
            assert torch.equal(several @ v, slope_product(space, loss, chunks, v))
        with space.restored():
            space.add(space.noise(seed=0))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product(space.noise(seed=0))


@pytest.mark.parametrize("batches", [1, 2])
def test_fused_attention_is_named_with_its_remedy(trained: Problem, batches: int) -> None:
    space, data = ParameterSpace(trained.model), trained.batch("test", "halves").rows(slice(0, 4))
    product = CurvatureOperator(space, lambda b: answer_loss(trained.model, b), [data] * batches)
    with pytest.raises(
        NoSecondDerivative,
        match=r"can be differentiated twice, found a kernel that cannot \(aten::_scaled_dot.*\): "
        r"switch attention to eager, or",
    ):
        product(space.read())


def test_attention_that_cannot_be_made_eager_is_said_so(
    trained: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(
        self: object, attention: str
    ) -> None:  # as transformers does for models of their own: it only warns
        pass

    def refusing(self: object, attention: str) -> None:
        raise ValueError("no such attention")

    for setter in (deaf, refusing):
        monkeypatch.setattr(type(trained.model), "set_attn_implementation", setter)
        with (
            pytest.raises(
                NoSecondDerivative,
                match="made eager for second derivatives, found 'sdpa' alone: choose finite",
            ),
            twice_differentiable(trained.model),
        ):
            raise AssertionError


def test_tensors_without_curvature_have_none() -> None:
    module = nn.ModuleDict(
        {"bent": nn.Linear(2, 1, bias=False), "line": nn.Linear(2, 1), "idle": nn.Linear(1, 1)}
    )
    space, x = ParameterSpace(module), torch.tensor([[1.0, 2.0]])

    def loss(items: int) -> tuple[Tensor, int]:
        return items * (module["bent"](x).square() + module["line"](x)).sum(), items

    expected = torch.zeros(space.dimension)
    expected[:2] = 2 * (1 + 2) * x[0]
    assert torch.allclose(CurvatureOperator(space, loss, [4]) @ torch.ones(len(expected)), expected)
    straight = CurvatureOperator(ParameterSpace(module, "line*"), loss, [4])
    assert not straight(torch.ones(3)).any()
    with pytest.raises(LoclinError, match="batch with items to average over, found none"):
        CurvatureOperator(space, loss, [0])
    with pytest.raises(LoclinError, match="batch with items to average over, found none"):
        CurvatureOperator(space, loss, []) @ torch.ones(space.dimension)
    with pytest.raises(LoclinError, match="a finite loss, found"):
        CurvatureOperator(space, lambda b: (loss(1)[0] * math.inf, 1), [1])


def test_the_largest_eigenpairs_come_in_order_and_negative_ones_not_at_all(
    planted: tuple[ParameterSpace, Quadratic],
) -> None:
    space, module = planted
    values, vectors = top_eigenpairs(CurvatureOperator(space, module.loss, [1]), 3)
    assert np.allclose(values, [7, 5, 3], atol=0.01)
    assert torch.allclose(vectors @ vectors.T, torch.eye(3).double(), atol=1e-8)
    assert float((module.hessian @ vectors[0] - 7 * vectors[0]).norm()) < 0.07


def test_eigenvectors_that_do_not_converge_are_missing_rather_than_made_up() -> None:
    ones = torch.ones(4000).double()
    close = torch.linspace(-1, 0, 4000).double()  # a relative residual of 1 % of nearly zero
    with pytest.raises(
        LoclinError, match=r"expected 2 Hessian eigenvectors to converge, found \d: lower --k"
    ):
        top_eigenpairs(lambda v: close * v, 2, start=ones)
    with pytest.raises(LoclinError, match=r"found \d: wait for better weather"):
        top_eigenpairs(
            lambda v: close * v,
            2,
            start=ones,
            remedy="wait for better weather",
        )
    with pytest.raises(LoclinError, match="k from 1 to D − 1 = 3, found 4"):
        top_eigenpairs(lambda v: v, 4, start=torch.ones(4))


def test_probes_estimate_trace_and_frobenius_norm_without_bias_and_with_the_stated_variance(
    planted: tuple[ParameterSpace, Quadratic],
) -> None:
    space, module = planted
    drawn = probes(lambda v: module.hessian @ v, 3000, seed=5, noise=space.noise)
    squares = SPECTRUM.square()
    assert_within_error(drawn.forms, float(SPECTRUM.sum()))
    assert_within_error(drawn.squares, float(squares.sum()))
    assert math.isclose(drawn.forms.var(), 2 * float(squares.sum()), rel_tol=0.12)
    assert math.isclose(drawn.squares.var(), 2 * float(squares.square().sum()), rel_tol=0.25)
    few = probes(lambda v: module.hessian @ v, 2, seed=5, noise=space.noise)
    assert few.forms.tolist() == drawn.forms[:2].tolist()
    with pytest.raises(LoclinError, match="at least 1 probe, found 0: raise --probes"):
        probes(lambda v: v, 0, seed=0, noise=space.noise)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-2), (torch.float64, 1e-6)])
def test_differences_of_gradients_are_near_the_exact_product_and_leave_the_point_alone(
    trained: Problem, dtype: torch.dtype, limit: float
) -> None:
    model = copy.deepcopy(trained.model).to(dtype)
    space, batches = (
        ParameterSpace(model),
        list(trained.batch("recovery", "swap").rows(slice(0, 24)).chunks(9)),
    )
    space.add(space.noise(seed=0), scale=0.01)  # off the minimum

    def loss(batch: Batch) -> tuple[Tensor, int]:
        return answer_loss(model, batch)

    start, g = space.read(), space.gradient(loss, batches)
    for v in (g, 3 * space.noise(seed=1)):
        with twice_differentiable(model):
            exact = CurvatureOperator(space, loss, batches) @ v
        near = finite_difference_product(space, loss, batches, v)  # fused attention will do
        assert float((near - exact).norm() / exact.norm()) < limit
        assert torch.equal(space.read(), start)
    assert not finite_difference_product(space, loss, batches, torch.zeros_like(g)).any()

    def failing(batch: Batch) -> tuple[Tensor, int]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        finite_difference_product(space, failing, batches, g)
    assert torch.equal(space.read(), start)


def test_differences_in_half_precision_are_refused() -> None:
    space = ParameterSpace(nn.Linear(2, 2).bfloat16())
    with pytest.raises(
        LoclinError, match=r"float32 weights for finite differences, found torch.bfloat16"
    ):
        finite_difference_product(space, lambda b: (torch.ones(()), 1), [1], space.read())


def adapted(model: PreTrainedModel) -> nn.Module:
    """A LoRA model in float64 whose factors are all at work: B is zero in a new adapter."""
    made = attach(model, Lora(rank=2), seed=0).double()
    space = ParameterSpace(made)
    space.add(space.noise(seed=1), scale=0.2)
    return made


def ragged(vocabulary: int) -> list[Batch]:
    """Batches of other sizes, lengths and numbers of answer tokens."""
    generator, batches = torch.Generator().manual_seed(0), []
    for rows, length in ((1, 7), (4, 5)):
        ids = torch.randint(3, vocabulary, (rows, length), generator=generator)
        kept = torch.arange(length) < torch.randint(4, length + 1, (rows, 1), generator=generator)
        starts = torch.randint(1, 4, (rows, 1), generator=generator)
        labels = torch.where(kept & (torch.arange(length) >= starts), ids, -100)
        batches.append(Batch(input_ids=ids, attention_mask=kept.long(), labels=labels))
    return batches


@pytest.fixture(params=["sequences", "LoRA GPT-2"])
def network(
    request: pytest.FixtureRequest, trained: Problem
) -> Iterator[tuple[nn.Module, list[Batch]]]:
    """A model in float64 with eager attention, and ragged batches for it."""
    if request.param == "sequences":
        model, data = copy.deepcopy(trained.model).double(), trained.batch("test", "halves")
        batches = [data.rows(slice(0, 3)), data.rows(slice(3, 11))]
        batches[1].labels[::2, -1] = IGNORED
    else:
        model, batches = adapted(random_model("gpt2", 320)), ragged(320)  # type: ignore[assignment]
    with twice_differentiable(model):  # type: ignore[arg-type]
        yield model, batches


class Logits(nn.Module):
    """The network as curvlinops takes it: from tokens and mask to the logits before each token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        logits = self.model(**x, use_cache=False).logits
        return logits[:, :-1].flatten(0, 1)


def written_out(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return scaled * norm.weight + norm.bias


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script`:DeprecationWarning"
)  # torch's own forward mode still uses it
def test_the_product_is_that_of_curvlinops(
    network: tuple[nn.Module, list[Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against an independent implementation: forward over reverse, weighted by tokens.

    It differentiates LayerNorm written out: through torch 2.13's own, forward mode over `jacrev`
    gives wrong derivatives of the gradient of LayerNorm's weight (all other coordinates agree
    either way).
    """
    import curvlinops  # here, so that its warnings at import are filtered too

    model, batches = network
    space = ParameterSpace(model)
    data = [
        ({"input_ids": b.input_ids, "attention_mask": b.attention_mask}, b.labels[:, 1:].flatten())
        for b in batches
    ]
    sizes = {"batch_size_fn": lambda x: len(x["input_ids"]), "check_deterministic": False}
    loss = nn.CrossEntropyLoss(reduction="sum")
    reference = curvlinops.HessianLinearOperator(
        Logits(model), loss, space.parameters, data, **sizes
    )
    counts = [answer_loss(model, b)[1] for b in batches]
    for v in (space.noise(seed=0), space.gradient(lambda b: answer_loss(model, b), batches)):
        with monkeypatch.context() as patch:
            patch.setattr(nn.LayerNorm, "forward", written_out)
            expected = reference @ v / sum(counts)
        product = CurvatureOperator(space, lambda b: answer_loss(model, b), batches) @ v
        assert float((product - expected).norm() / expected.norm()) < 1e-6
    assert counts[0] / len(batches[0]) != counts[1] / len(batches[1])  # tokens weigh, not rows


def test_the_product_is_that_of_the_dense_hessian() -> None:
    """Column by column over a few tensors of an adapter."""
    model, batches = adapted(random_model("gpt2", 320)), ragged(320)
    space = ParameterSpace(model, "*h.1.attn*lora_B*")
    chosen = nn.ParameterList(space.parameters)
    with twice_differentiable(model):  # type: ignore[arg-type]
        losses = [answer_loss(model, b) for b in batches]
        whole = sum((value for value, _ in losses), torch.zeros(())) / sum(n for _, n in losses)
        dense = dense_hessian(chosen, whole)
        product = CurvatureOperator(space, lambda b: answer_loss(model, b), batches)
        v = space.noise(seed=0)
        assert torch.allclose(product(v), dense @ v, rtol=1e-8, atol=1e-12)


def test_a_scalar_loss_is_the_mean_of_its_batch() -> None:
    layer = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    space = ParameterSpace(layer)
    rows = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = torch.tensor([1.0, -2.0], dtype=torch.float64)
    mean = CurvatureOperator(space, lambda x: layer(x).square().mean(), [rows[:3], rows[3:]])
    summed = CurvatureOperator(space, lambda x: (layer(x).square().sum(), len(x)), [rows])
    assert torch.allclose(mean @ v, summed @ v)
    assert repr(mean) == "CurvatureOperator(D = 2, 2 batches, torch.float64, double backward)"
    with pytest.raises(LoclinError, match="expected a loss that returns a scalar"):
        space.gradient(lambda x: layer(x)[:, 0], [rows])  # type: ignore[arg-type, return-value]
