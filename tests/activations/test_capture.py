import copy

import pytest
import torch
from torch.func import functional_call, jvp
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.blocks import blocks
from loclin.activations.capture import activations, captured, last_places
from loclin.errors import LoclinError
from loclin.models import twice_differentiable
from loclin.tasks.batch import IGNORED, Batch, collate, prompts_batch
from loclin.tasks.example import Example
from tests.activations.odd import Odd, hooks, left_padded
from tests.conftest import FAMILIES

PAIRS = [
    ("the cat", " sat on the mat"),
    ("do cats purr? yes, they do. (A) or (B),", " no"),
    ("the dog ran", " after it"),
]
EXAMPLES = [Example(prompt=p, answer=a) for p, a in PAIRS]


@pytest.fixture(params=FAMILIES)
def named(
    request: pytest.FixtureRequest,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> tuple[PreTrainedModel, Batch]:
    """A model of every family, with ragged rows."""
    batch = collate(EXAMPLES, tokenizers[request.param])
    assert len(set(batch.attention_mask.sum(1).tolist())) == 3
    return families[request.param], batch


def same(read: torch.Tensor, expected: torch.Tensor) -> None:
    """But for round-off: sums over other shapes are taken in another order."""
    torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-4)


def one_by_one(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    """The slow twin: each row alone, without padding, every block's output by a plain list of
    hooks' results.
    """
    rows = []
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        with torch.no_grad(), captured(blocks(model), range(len(blocks(model)))) as outputs:
            model(input_ids=ids[mask > 0][None])
        rows.append(torch.stack([h[0] for h in outputs.values()]))
    return rows


def test_outputs_are_hidden_states_and_the_last_is_before_the_final_norm(
    named: tuple[PreTrainedModel, Batch],
) -> None:
    model, batch = named
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    count = len(blocks(model))
    with torch.no_grad(), captured(blocks(model), range(count)) as outputs:
        result = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
        )
        assert list(outputs) == list(range(count))
        for layer in range(count - 1):
            assert torch.equal(outputs[layer], result.hidden_states[layer + 1])
        assert torch.equal(norm(outputs[count - 1]), result.hidden_states[count])
        assert not torch.allclose(outputs[count - 1], result.hidden_states[count])


@pytest.mark.parametrize("rows", [1, 2, None])
def test_ragged_rows_read_as_they_do_alone(
    named: tuple[PreTrainedModel, Batch], rows: int | None
) -> None:
    model, batch = named
    alone = one_by_one(model, batch)
    last = torch.stack([h[:, -1] for h in alone], dim=1)
    every = torch.cat(alone, dim=1)
    answers = [
        h[:, labels[mask > 0] != IGNORED].mean(1)
        for h, labels, mask in zip(alone, batch.labels, batch.attention_mask, strict=True)
    ]
    for padded in (batch, left_padded(batch)):
        same(activations(model, padded, rows_at_once=rows), last)
        same(activations(model, padded, position="every", rows_at_once=rows), every)
        same(
            activations(model, padded, position="answer", rows_at_once=rows),
            torch.stack(answers, dim=1),
        )
    assert torch.equal(
        activations(model, batch, layers=[-1, 0], rows_at_once=rows),
        activations(model, batch, rows_at_once=rows)[[1, 0]],
    )


def test_left_padding_by_hand_with_positions_from_the_mask(
    named: tuple[PreTrainedModel, Batch],
) -> None:
    model, batch = named
    left = left_padded(batch)
    positions = (left.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), captured(blocks(model), [0, 1]) as outputs:
        model(input_ids=left.input_ids, attention_mask=left.attention_mask, position_ids=positions)
    by_hand = torch.stack([outputs[layer][:, -1] for layer in (0, 1)])
    same(activations(model, left), by_hand)


def test_a_hole_in_a_row_is_closed(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    batch = prompts_batch(["the cat sat", "the dog ran after it"], tokenizers["llama"])
    width = batch.input_ids.shape[1]
    apart = torch.cat([torch.arange(2), torch.tensor([width, width + 1]), torch.arange(2, width)])
    ids = torch.nn.functional.pad(batch.input_ids, (0, 2), value=7)[:, apart]
    mask = torch.nn.functional.pad(batch.attention_mask, (0, 2))[:, apart]
    holed = Batch(input_ids=ids, attention_mask=mask, labels=torch.full_like(ids, IGNORED))
    for position in ("last", "every"):
        expected = activations(families["llama"], batch, position=position)
        same(activations(families["llama"], holed, position=position), expected)


def test_half_precision_is_read_in_float32(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, batch = (
        copy.deepcopy(families["qwen2"]).bfloat16(),
        collate(EXAMPLES, tokenizers["qwen2"]),
    )
    for position in ("last", "answer", "every"):
        read = activations(model, batch, position=position)
        assert read.dtype == torch.float32
        near = activations(families["qwen2"], batch, position=position)
        assert torch.nn.functional.cosine_similarity(read, near, dim=-1).min() > 0.99


def test_double_precision_is_kept(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, batch = copy.deepcopy(families["gpt2"]).double(), collate(EXAMPLES, tokenizers["gpt2"])
    alone = one_by_one(model, batch)
    for position, expected in (
        ("last", torch.stack([h[:, -1] for h in alone], dim=1)),
        ("every", torch.cat(alone, dim=1)),
    ):
        torch.testing.assert_close(
            activations(model, batch, position=position), expected, rtol=1e-12, atol=1e-12
        )
    assert activations(model, batch, position="answer").dtype == torch.float64


def test_tuples_and_blocks_elsewhere() -> None:
    model, ids = Odd(count=3), torch.tensor([[1, 2, 3], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = Batch(input_ids=ids, attention_mask=mask, labels=torch.full_like(ids, IGNORED))
    h = model.embed(ids)
    expected = []
    for cell in model.cells:
        h, _ = cell(h)
        expected.append(torch.stack([h[0, 2], h[1, 1]]))
    torch.testing.assert_close(activations(model, batch), torch.stack(expected).detach())
    assert activations(model, batch, path="cells").shape == (3, 2, 6)


def test_graph_and_choice_of_what_is_kept(named: tuple[PreTrainedModel, Batch]) -> None:
    model, batch = named
    last = last_places(batch.attention_mask)
    with captured(blocks(model), [1], keep=lambda h: h[torch.arange(len(h)), last]) as outputs:
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    assert outputs[1].shape == (3, 32)
    same(outputs[1].detach(), activations(model, batch, layers=[1])[0])
    first = next(model.parameters())
    (slope,) = torch.autograd.grad(outputs[1].sum(), [first])
    assert slope.abs().sum() > 0


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script`:DeprecationWarning"
)  # torch's own forward mode still uses it
def test_the_derivative_along_a_weight_step(named: tuple[PreTrainedModel, Batch]) -> None:
    """Dual numbers stay attached: torch.func.jvp against a central difference. Some families round
    to float32 inside.
    """
    model, batch = copy.deepcopy(named[0]).double(), named[1]
    before = hooks(model)
    theta = {n: p.detach() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    step = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1 for n, p in theta.items()
    }

    def outputs(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        with captured(blocks(model), [0, 1]) as kept:
            functional_call(
                model, weights, kwargs={"input_ids": batch.input_ids, "use_cache": False}
            )
        return torch.stack([kept[0], kept[1]])

    with twice_differentiable(model), torch.no_grad():
        h, slope = jvp(outputs, (theta,), (step,))
        ahead, behind = (outputs({n: theta[n] + e * step[n] for n in theta}) for e in (1e-3, -1e-3))
        torch.testing.assert_close(h, outputs(theta))
        assert (slope - (ahead - behind) / 2e-3).norm() < 1e-3 * slope.norm()
    assert hooks(model) == before


def test_hooks_come_off_whatever_happens(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, batch = families["gpt2"], prompts_batch(["the cat"], tokenizers["gpt2"])
    before = hooks(model)

    def broken(h: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError(f"of {h.shape}")

    with pytest.raises(ArithmeticError), captured(blocks(model), [0, 1], keep=broken):
        model(input_ids=batch.input_ids)
    with pytest.raises(IndexError), captured(blocks(model), [0, 5]):
        pass
    activations(model, batch)
    assert hooks(model) == before


def test_the_last_real_token_on_either_side() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]])
    assert last_places(mask).tolist() == [1, 3, 1, 3]
    with pytest.raises(LoclinError, match="real token in every row"):
        last_places(torch.tensor([[1, 0], [0, 0]]))


def test_what_cannot_be_read_is_refused(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, batch = families["llama"], prompts_batch(["the cat", "the dog ran"], tokenizers["llama"])
    with pytest.raises(LoclinError, match="row without labels"):
        activations(model, batch, position="answer")
    with pytest.raises(LoclinError, match="layers from -2 to 1, found 2"):
        activations(model, batch, layers=[2])
    empty = Batch(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask * 0, labels=batch.labels
    )
    with pytest.raises(LoclinError, match="row of padding"):
        activations(model, empty)
    shorter = copy.deepcopy(model)
    shorter.config.num_hidden_layers = 1
    with pytest.raises(LoclinError, match=r"found \[1\] left out"):
        activations(shorter, batch)
    odd = Odd(count=2)
    odd.cells = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    with pytest.raises(LoclinError, match="return a tensor"), captured(odd.cells, [0]):
        odd.cells[0]({"h": 1})
