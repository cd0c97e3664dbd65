import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jvp
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.adding import added
from loclin.activations.blocks import blocks
from loclin.activations.capture import activations, captured, last_places
from loclin.errors import LoclinError
from loclin.models import twice_differentiable
from loclin.models.lora import Lora, attach
from loclin.tasks.batch import Batch, prompts_batch
from tests.activations.odd import Odd, hooks, left_padded
from tests.conftest import FAMILIES

PROMPTS = ["the cat sat", "do cats purr? yes, they do. (A) or", "the dog ran after it and the cat"]


@pytest.fixture(params=FAMILIES)
def named(
    request: pytest.FixtureRequest,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> Iterator[tuple[PreTrainedModel, Batch]]:
    """A model of every family, with ragged prompts; afterwards it is what it was, bit for bit."""
    model = families[request.param]
    before, count = {n: p.clone() for n, p in model.state_dict().items()}, hooks(model)
    yield model, prompts_batch(PROMPTS, tokenizers[request.param])
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert hooks(model) == count


def drawn(seed: int, length: float = 6.0) -> Tensor:
    v = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return length * v / v.norm()


@torch.no_grad()
def read(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Both blocks' outputs and the logits, positions from the mask."""
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    with captured(blocks(model), [0, 1]) as outputs:
        result = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions
        )
    return outputs[0], outputs[1], result.logits


@torch.no_grad()
def spoken(
    model: PreTrainedModel, batch: Batch, *, cache: bool, **settings: object
) -> list[list[int]]:
    """Eight greedy tokens after every prompt."""
    tokens = model.generate(
        batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        use_cache=cache,
        **settings,
    )
    return list(tokens[:, batch.input_ids.shape[1] :].tolist())


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("start", [0, 3])
def test_what_is_captured_is_the_output_and_the_vector(
    named: tuple[PreTrainedModel, Batch], start: int, left: bool
) -> None:
    """h + v at real tokens from `start` on, h elsewhere; the same in whichever order the two
    contexts are entered.
    """
    model, right = named
    batch, v = left_padded(right) if left else right, drawn(1)
    first, second, logits = read(model, batch)
    plain = {0: first, 1: second}
    places = batch.attention_mask.cumsum(1) - 1
    where = ((batch.attention_mask > 0) & (places >= start))[..., None]
    for layer, named_as in ((0, 0), (1, -1)):
        with added(model, {named_as: v}, start=start):
            outputs = read(model, batch)
        assert torch.equal(outputs[layer], torch.where(where, plain[layer] + v, plain[layer]))
        assert not torch.allclose(outputs[2], logits)
    assert torch.equal(
        outputs[0], first
    )  # what is added to the second block leaves the first alone
    with captured(blocks(model), [1]) as outer, added(model, {1: v}, start=start):
        read(model, batch)
        assert torch.equal(outer[1], torch.where(where, second + v, second))
    assert all(
        torch.equal(a, b) for a, b in zip(read(model, batch), (first, second, logits), strict=True)
    )


def test_adding_everywhere_is_a_bias_of_the_block(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    """A dense twin without hooks: what GPT-2's block adds last has a bias. Gradients and
    generations agree too.
    """
    model, batch, v = (
        families["gpt2"],
        prompts_batch(PROMPTS, tokenizers["gpt2"]),
        drawn(2).requires_grad_(),
    )
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.transformer.h[0].mlp.c_proj.bias += v
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    real = batch.attention_mask > 0
    with added(model, {0: v}):
        logits = model(**inputs).logits[real]
    expected = twin(**inputs).logits[real]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(logits.square().mean(), [v])
    (twins,) = torch.autograd.grad(
        expected.square().mean(), [twin.transformer.h[0].mlp.c_proj.bias]
    )
    torch.testing.assert_close(slope, twins, rtol=1e-3, atol=1e-4)
    left = left_padded(batch)
    with added(model, {0: v.detach()}):
        assert spoken(model, left, cache=True) == spoken(twin, left, cache=True)


@pytest.mark.parametrize("start", [0, 5, 12])
@pytest.mark.parametrize("left", [False, True])
def test_generation_is_the_same_with_and_without_cache(
    named: tuple[PreTrainedModel, Batch], left: bool, start: int
) -> None:
    """From an absolute position that is in the prompt of some rows and in the answer of others."""
    model, right = named
    batch, vectors = left_padded(right) if left else right, {0: drawn(3, 9.0), 1: drawn(4, 9.0)}
    fullest = right.attention_mask.sum(1).argmax()  # this row has no padding
    plain = spoken(model, batch, cache=True)
    with added(model, vectors, start=start):
        cached, whole = spoken(model, batch, cache=True), spoken(model, batch, cache=False)
        alone = spoken(model, right.rows(fullest[None]), cache=True)
    assert cached == whole != plain
    assert cached[int(fullest)] == alone[0]


def test_rows_padded_on_the_left_go_on_as_they_do_alone(
    named: tuple[PreTrainedModel, Batch],
) -> None:
    model, batch = named
    with added(model, {0: drawn(5, 9.0)}, start=6):
        together = spoken(model, left_padded(batch), cache=True)
        alone = [
            spoken(model, batch.rows(torch.tensor([i])), cache=True)[0] for i in range(len(batch))
        ]
    assert together == alone != spoken(model, left_padded(batch), cache=True)


def test_a_compiled_kind_of_cache_gives_the_same(named: tuple[PreTrainedModel, Batch]) -> None:
    """There the transformer is handed a mask made ready for attention."""
    model, batch = named
    with added(model, {0: drawn(6, 9.0)}, start=6):
        dynamic = spoken(model, left_padded(batch), cache=True)
        static = spoken(
            model,
            left_padded(batch),
            cache=True,
            cache_implementation="static",
            disable_compile=True,
        )
    assert static == dynamic != spoken(model, left_padded(batch), cache=True)


@pytest.mark.parametrize("mask", ["none", "whole", "new"])
def test_positions_go_on_after_what_is_cached(
    named: tuple[PreTrainedModel, Batch], mask: str
) -> None:
    """A row read in two parts, with no mask, or that of all its tokens, or of the new alone."""
    model, batch = named
    row = batch.rows(batch.attention_mask.sum(1).argmax()[None])
    ids, real = (
        row.input_ids,
        {"none": None, "whole": row.attention_mask, "new": row.attention_mask[:, 3:]}[mask],
    )

    def in_two() -> tuple[Tensor, Tensor]:
        cache = model(input_ids=ids[:, :3], use_cache=True).past_key_values
        with captured(blocks(model), [0]) as outputs:
            logits = model(input_ids=ids[:, 3:], attention_mask=real, past_key_values=cache).logits
        return outputs[0], logits

    with torch.no_grad():
        plain = in_two()[0]
        with added(model, {0: drawn(7)}, start=5):
            moved, logits = in_two()
            whole = model(input_ids=ids).logits[:, 3:]
    assert (moved - plain).norm(dim=-1)[0].gt(1).tolist() == [False, False] + [True] * (
        ids.shape[1] - 5
    )
    if mask != "new":  # attention itself wants the mask of all tokens
        torch.testing.assert_close(logits, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("left", [False, True])
def test_at_the_last_token_alone(named: tuple[PreTrainedModel, Batch], left: bool) -> None:
    model, right = named
    batch, v = left_padded(right) if left else right, drawn(8)
    plain = read(model, batch)[0]
    rows, last = torch.arange(len(batch)), last_places(batch.attention_mask)
    expected = plain.clone()
    expected[rows, last] += v
    with added(model, {0: v}, only="last"):
        assert torch.equal(read(model, batch)[0], expected)
        torch.testing.assert_close(
            activations(model, batch, layers=[0])[0], expected[rows, last], rtol=1e-4, atol=1e-4
        )
    with added(model, {0: v}, only="last", start=last.numel() + 100):
        assert torch.equal(read(model, batch)[0], plain)


def test_nested_vectors_add_up(named: tuple[PreTrainedModel, Batch]) -> None:
    model, batch = named
    a, b = drawn(9), drawn(10)
    with added(model, {0: a + b, 1: b}):
        together = read(model, batch)
    with added(model, {0: a}), added(model, {0: b, -1: b}):
        nested = read(model, batch)
    for one, other in zip(together, nested, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    stack = ExitStack()
    with added(model, {0: b}, start=4):
        stack.enter_context(added(model, {0: a}))  # left after the other
    later = read(model, batch)
    stack.close()
    with added(model, {0: a}):
        assert all(torch.equal(x, y) for x, y in zip(later, read(model, batch), strict=True))


def test_outputs_are_never_changed_in_place(named: tuple[PreTrainedModel, Batch]) -> None:
    model, batch = named
    kept: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def watched() -> Iterator[None]:
        """Keep what the block itself returned, and a copy of it."""
        block = blocks(model)[0]
        own = block.forward

        def forward(*args: object, **kwargs: object) -> object:
            result = own(*args, **kwargs)
            h = result[0] if isinstance(result, tuple) else result
            kept.append((h, h.clone()))
            return result

        block.forward = forward
        try:
            yield
        finally:
            del block.forward

    v = drawn(11)
    copied = v.clone()
    with watched(), added(model, {0: v}):
        moved = read(model, batch)[0]
    (raw, before), real = kept[0], batch.attention_mask > 0
    assert torch.equal(raw, before)
    assert torch.equal(moved[real], (raw + v)[real])
    assert torch.equal(v, copied)


def test_the_model_is_left_as_it_was_after_an_exception(
    named: tuple[PreTrainedModel, Batch],
) -> None:
    model, batch = named
    before, count = read(model, batch), hooks(model)
    with (
        pytest.raises(RuntimeError, match="shape"),
        added(model, {0: drawn(12)}),
        added(model, {1: drawn(13)}),
    ):
        model.lm_head(read(model, batch)[0][..., :5])
    assert hooks(model) == count
    assert all(torch.equal(a, b) for a, b in zip(read(model, batch), before, strict=True))


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script`:DeprecationWarning"
)  # torch's own forward mode still uses it
def test_inside_functional_calls_and_forward_mode(named: tuple[PreTrainedModel, Batch]) -> None:
    """d h₀ / dv along w is w at every real token; weights replaced by a call are those that are
    steered.
    """
    model, batch = named
    v, w = drawn(14), drawn(15)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
    }
    theta = {n: p.detach() for n, p in model.named_parameters()}
    larger = {n: 1.01 * p for n, p in theta.items()}
    twin = copy.deepcopy(model)
    twin.load_state_dict(larger, strict=False)
    twin.tie_weights()

    def steered(vector: Tensor) -> Tensor:
        with added(model, {0: vector}), captured(blocks(model), [0]) as outputs:
            functional_call(model, theta, kwargs=inputs)
        return outputs[0]

    with twice_differentiable(model), torch.no_grad():
        _, slope = jvp(steered, (v,), (w,))
    assert torch.equal(slope, torch.where(batch.attention_mask[..., None] > 0, w, 0.0))
    with torch.no_grad():
        with added(model, {1: v}):
            called = functional_call(model, larger, kwargs=inputs).logits
        with added(twin, {1: v}):
            assert torch.equal(called, twin(**inputs).logits)


def test_the_outputs_dtype_is_kept(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    batch, v = prompts_batch(PROMPTS, tokenizers["llama"]), drawn(16)
    for dtype in (torch.bfloat16, torch.float64):
        model = copy.deepcopy(families["llama"]).to(dtype)
        plain = read(model, batch)[0]
        with added(model, {0: v}):
            steered = read(model, batch)[0]
        real = batch.attention_mask > 0
        assert steered.dtype == dtype
        assert torch.equal(steered[real], (plain + v.to(dtype))[real])


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_through_an_adapter(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    family: str,
) -> None:
    """A new adapter does nothing yet: the steered model speaks as it does without."""
    core, batch, v = (
        families[family],
        left_padded(prompts_batch(PROMPTS, tokenizers[family])),
        drawn(17, 9.0),
    )
    model = attach(copy.deepcopy(core), Lora(rank=2), seed=0)
    with added(core, {0: v}, start=6), added(model, {0: v}, start=6):
        assert (
            spoken(core, batch, cache=True)
            == spoken(model, batch, cache=True)
            == spoken(model, batch, cache=False)
        )
        assert torch.equal(read(model, batch)[0], read(core, batch)[0])


def test_tuples_keep_their_other_parts() -> None:
    model, ids = Odd(count=3), torch.tensor([[1, 2, 3, 4]])
    v = torch.arange(6.0)
    first, note = model.cells[0](model.embed(ids))
    h = first + torch.where(torch.arange(4)[:, None] >= 2, v, 0.0)
    for cell in model.cells[1:]:
        h, note = cell(h)
    with added(model, {0: v}, start=2, path="cells"):
        assert model.cells[0](model.embed(ids))[1] == note
        torch.testing.assert_close(model(ids).logits, model.head(h))
        torch.testing.assert_close(
            model(ids, torch.ones_like(ids)).logits, model.head(h)
        )  # the mask by place


def test_what_cannot_be_added_is_refused(families: dict[str, PreTrainedModel]) -> None:
    model = families["gpt2"]
    count = hooks(model)
    for vectors, message in (
        ({0: torch.ones(8)}, r"width 32, found shape \(8,\) at layer 0"),
        ({-1: torch.ones(1)}, r"width 32, found shape \(1,\) at layer 1"),
        ({2: torch.ones(32)}, "layers from -2 to 1, found 2"),
        ({1: torch.ones(32), -1: torch.ones(32)}, "every layer once"),
    ):
        with pytest.raises(LoclinError, match=message), added(model, vectors):
            pass
    with (
        pytest.raises(LoclinError, match="0 or more, found -1"),
        added(model, {0: torch.ones(32)}, start=-1),
    ):
        pass
    with (
        pytest.raises(LoclinError, match="list of blocks at 'h'"),
        added(model, {0: torch.ones(32)}, path="h"),
    ):
        pass
    with added(model, {}):
        assert hooks(model) == count
    assert hooks(model) == count


def test_a_state_that_counts_no_tokens_is_steered_from_the_start_alone() -> None:
    """Mamba's cache does not say how many tokens it holds: a later start would be counted anew at
    every new token.
    """
    config = MambaConfig(
        vocab_size=11, hidden_size=8, state_size=4, num_hidden_layers=2, use_mambapy=False
    )
    model, ids = MambaForCausalLM(config).eval(), torch.tensor([[1, 2, 3]])
    count = hooks(model)
    with (
        pytest.raises(
            LoclinError,
            match=r"key-value cache to start at position 2, found MambaModel, .*: start at 0",
        ),
        added(model, {0: torch.ones(8)}, start=2, path="backbone.layers"),
    ):
        pass
    assert hooks(model) == count
    plain = model(ids).logits
    with added(model, {0: torch.ones(8)}, path="backbone.layers"):
        assert not torch.equal(model(ids).logits, plain)
