import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.adding import added
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.steering.effect import adding
from loclin.steering.neutral import (
    Damage,
    Neutral,
    at_equal_damage,
    damages,
    neutral_text,
    strength_at_kl,
)
from loclin.tasks import batch as batching
from loclin.tasks.batch import Batch
from tests.planted import truth_world
from tests.steering.test_effect import direction

LINES = [
    "the cat sat on the mat",
    "do cats purr?",
    "the dog ran after it",
    "",
    "no one knows",
    "yes, they do. or not",
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "plain.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def spoken(
    text: Path, families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> tuple[PreTrainedModel, Neutral]:
    model, tokenizer = families["llama"], tokenizers["llama"]
    return model, neutral_text(model, tokenizer, file=text, count=5, tokens=9, seed=0)


def damage(
    model: nn.Module, neutral: Neutral, change: Callable[[], AbstractContextManager[object]]
) -> Damage:
    """`damages` under one change, of which there is one strength."""
    return damages(model, neutral, [(lambda _strength: change(), 1.0)])[0]


def by_hand(model: PreTrainedModel, neutral: Neutral) -> list[torch.Tensor]:
    """log p of the next token at every place of every row, in float64, one row at a time."""
    rows = []
    for ids, mask in zip(neutral.batch.input_ids, neutral.batch.attention_mask, strict=True):
        with torch.no_grad():
            rows.append(model(ids[mask > 0][None]).logits[0, :-1].double().log_softmax(-1))
    return rows


def said(neutral: Neutral) -> list[torch.Tensor]:
    return [
        ids[mask > 0][1:]
        for ids, mask in zip(neutral.batch.input_ids, neutral.batch.attention_mask, strict=True)
    ]


def test_kl_and_perplexity_are_those_of_a_loop_over_tokens(
    spoken: tuple[PreTrainedModel, Neutral],
) -> None:
    model, neutral = spoken
    v = direction(model)
    before = by_hand(model, neutral)
    with added(model, {0: v}):
        after = by_hand(model, neutral)
    found = damage(model, neutral, lambda: added(model, {0: v}))
    kl = [float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(before, after, strict=True)]
    assert np.allclose(found.kl, kl, rtol=1e-4)
    for log_p, perplexity in ((before, found.perplexity_before), (after, found.perplexity)):
        each = torch.cat(
            [p.gather(1, t[:, None])[:, 0] for p, t in zip(log_p, said(neutral), strict=True)]
        )
        assert math.isclose(perplexity, math.exp(-float(each.mean())), rel_tol=1e-4)


def test_no_change_does_no_damage_and_small_ones_grow_as_their_square(
    spoken: tuple[PreTrainedModel, Neutral],
) -> None:
    model, neutral = spoken
    none = damage(model, neutral, nullcontext)
    assert not none.kl.any()
    assert none.perplexity == none.perplexity_before
    model, v = copy.deepcopy(model).double(), direction(model)
    small, twice = (
        damage(model, neutral, lambda a=a: added(model, {0: a * v})).kl for a in (1e-4, 2e-4)
    )
    assert (small > 0).all()
    assert np.allclose(twice / small, 4, rtol=0.01)
    tiny = damage(
        spoken[0], neutral, lambda: added(spoken[0], {0: 1e-7 * v})
    ).kl  # below float32's round-off
    assert (tiny >= 0).all()
    assert tiny.max() < 1e-6


def test_memory_is_kept_within_the_limit_and_chunks_change_nothing(
    spoken: tuple[PreTrainedModel, Neutral], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, neutral = spoken
    v = direction(model)
    whole = damage(model, neutral, lambda: added(model, {1: v}))
    strength = strength_at_kl(model, neutral, adding(model, {1: v}), 0.1)
    limit = (
        4 * 8 * model.config.vocab_size
    )  # 4 rows of 8 predicting places: 2 before the change and 2 after it
    monkeypatch.setattr(batching, "LOGITS_AT_ONCE", limit)
    sizes: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _m, _i, out: sizes.append(out.numel()))
    chunked = damage(model, neutral, lambda: added(model, {1: v}))
    hook.remove()
    assert len(sizes) == 6
    assert 2 * max(sizes) <= limit
    assert np.allclose(chunked.kl, whole.kl, rtol=1e-4)
    assert math.isclose(chunked.perplexity, whole.perplexity, rel_tol=1e-5)
    assert strength_at_kl(model, neutral, adding(model, {1: v}), 0.1) == pytest.approx(
        strength, rel=1e-3
    )


def test_what_the_model_rules_out_adds_nothing(spoken: tuple[PreTrainedModel, Neutral]) -> None:
    model, neutral = spoken

    def without(_module: object, _inputs: object, out: torch.Tensor) -> torch.Tensor:
        return out.index_fill(-1, torch.tensor([3]), -torch.inf)

    hook = model.lm_head.register_forward_hook(without)
    found = damage(model, neutral, lambda: added(model, {0: direction(model)}))
    hook.remove()
    assert np.isfinite(found.kl).all()


@pytest.mark.parametrize("layer", [0, 1])
def test_a_strength_reaches_its_kl(layer: int, spoken: tuple[PreTrainedModel, Neutral]) -> None:
    model, neutral = spoken
    v = direction(model, seed=layer)
    strength = strength_at_kl(model, neutral, adding(model, {layer: v}), 0.1)
    assert strength is not None
    reached = damage(model, neutral, lambda: added(model, {layer: strength * v})).kl.mean()
    assert reached == pytest.approx(0.1, rel=0.03)
    # a vector twice as long needs half of it; where the search began does not matter, from either
    # side
    assert strength_at_kl(model, neutral, adding(model, {layer: 2 * v}), 0.1) == pytest.approx(
        strength / 2, rel=0.01
    )
    for smallest in (1e-4, 2 * strength):
        assert strength_at_kl(
            model, neutral, adding(model, {layer: v}), 0.1, smallest=smallest
        ) == pytest.approx(strength, rel=0.01)


def test_an_amount_of_a_weight_step_reaches_its_kl_and_leaves_no_trace(
    spoken: tuple[PreTrainedModel, Neutral],
) -> None:
    model, neutral = spoken
    space = ParameterSpace(model, "*mlp*")
    point, step = space.read(), space.noise(seed=0)

    @contextmanager
    def stepped(amount: float) -> Iterator[None]:
        with space.restored():
            space.add(step, amount)
            yield

    amount = strength_at_kl(model, neutral, stepped, 0.05)
    assert amount is not None
    assert damage(model, neutral, lambda: stepped(amount)).kl.mean() == pytest.approx(
        0.05, rel=0.03
    )
    assert torch.equal(space.read(), point)


def test_a_kl_that_is_never_reached_gives_none(spoken: tuple[PreTrainedModel, Neutral]) -> None:
    model, neutral = spoken
    assert strength_at_kl(model, neutral, adding(model, {0: torch.zeros(32)}), 0.1) is None
    # the final norm: in the limit every vector says the same, which is only so far from what was
    # said
    assert strength_at_kl(model, neutral, adding(model, {1: direction(model)}), 1e4) is None
    for target, smallest in ((0.0, 1.0), (math.nan, 1.0), (0.1, 0.0), (0.1, math.inf)):
        with pytest.raises(LoclinError, match="positive, finite"):
            strength_at_kl(
                model, neutral, adding(model, {0: direction(model)}), target, smallest=smallest
            )


def test_a_kl_that_is_no_number_gives_none(spoken: tuple[PreTrainedModel, Neutral]) -> None:
    model, neutral = spoken

    @contextmanager
    def broken(amount: float) -> Iterator[None]:
        with added(model, {0: torch.full((32,), torch.nan if amount > 1 else 0.0)}):
            yield

    assert strength_at_kl(model, neutral, broken, 0.1) is None


def test_passages_come_from_the_file_in_its_order(
    text: Path, families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer = families["llama"], tokenizers["llama"]

    def read(count: int, tokens: int, seed: int) -> list[str]:
        rows = neutral_text(
            model, tokenizer, file=text, count=count, tokens=tokens, seed=seed
        ).batch
        assert torch.equal(
            rows.labels, rows.input_ids.masked_fill(rows.attention_mask == 0, batching.IGNORED)
        )
        return [
            tokenizer.decode(i[m > 0], skip_special_tokens=True)
            for i, m in zip(rows.input_ids, rows.attention_mask, strict=True)
        ]

    lines = [line for line in LINES if line]
    assert read(5, 40, 0) == lines
    assert all(
        line.startswith(cut) and cut != line for line, cut in zip(lines, read(5, 3, 0), strict=True)
    )
    drawn = {seed: read(2, 40, seed) for seed in range(8)}
    assert all(d == read(2, 40, s) and sorted(d, key=lines.index) == d for s, d in drawn.items())
    assert len({tuple(d) for d in drawn.values()}) > 2
    text.write_text("the cat sat on the mat " * 30)
    assert (
        len(tokenizer.tokenize(read(1, 500, 0)[0])) == model.config.max_position_embeddings - 1
    )  # and one of beginning


def test_files_that_hold_no_text_are_refused(
    tmp_path: Path,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = families["gpt2"], tokenizers["gpt2"]

    def refused(file: Path | None, match: str, count: int = 2, tokens: int = 8) -> None:
        with pytest.raises(LoclinError, match=match) as error:
            neutral_text(model, tokenizer, file=file, count=count, tokens=tokens, seed=0)
        assert "\n" not in str(error.value)

    made = tmp_path / "made.txt"
    refused(made, "found none at")
    refused(tmp_path, "found none at")
    made.write_bytes(b"\xff\xfe\x00 no text")
    refused(made, "UTF-8")
    made.write_text("")
    refused(made, "at least 2 passages .* found 0")
    made.write_text("the cat sat\n\n   \n,\n")  # a line of one token predicts nothing
    refused(made, "at least 2 passages .* found 1")
    refused(made, "at least 2 tokens", tokens=1)
    refused(made, "at least 1 passage", count=0)
    refused(None, "at least 1 passage", count=0)


def test_the_model_speaks_for_itself_where_there_is_no_file(speaking: Problem) -> None:
    model, tokenizer = speaking.model, speaking.tokenizer
    one, again, other = (
        neutral_text(model, tokenizer, file=None, count=6, tokens=500, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.batch.input_ids, again.batch.input_ids)
    assert not torch.equal(one.batch.input_ids, other.batch.input_ids)
    assert one.batch.input_ids.shape == (6, model.config.n_positions - 1)
    assert one.source == "the model's own samples"
    found = damage(model, one, nullcontext)
    assert 1 < found.perplexity < len(tokenizer)


def test_where_an_answer_is_due_nothing_counts_as_damage(speaking: Problem) -> None:
    """Against a loop over positions; raising an answer where the model gives it anyway is the
    effect, not damage.
    """
    model, tokenizer = speaking.model, speaking.tokenizer
    yes, no = (tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in (" yes", " no"))
    told = {"file": None, "count": 12, "tokens": 15, "seed": 0}
    every = neutral_text(model, tokenizer, **told)  # type: ignore[arg-type]
    without = neutral_text(model, tokenizer, **told, answers=(yes, no))  # type: ignore[arg-type]
    vectors = {1: 5 * torch.randn(48, generator=torch.Generator().manual_seed(0))}
    found = damage(model, without, lambda: added(model, vectors)).kl
    expected = []
    for i in range(len(without.batch)):
        row = without.batch.rows(torch.tensor([i]))
        with torch.no_grad():
            before = model(input_ids=row.input_ids).logits[0, :-1].log_softmax(-1)
            with added(model, vectors):
                after = model(input_ids=row.input_ids).logits[0, :-1].log_softmax(-1)
        each = (before.exp() * (before - after)).sum(-1)
        due = before.exp()[:, [yes, no]].sum(-1) > 0.5
        expected.append(float(each[~due].mean()) if (~due).any() else 0.0)
    assert found == pytest.approx(expected, abs=1e-5)
    assert not np.allclose(found, damage(model, every, lambda: added(model, vectors)).kl)


def test_at_equal_damage() -> None:
    model, prompts, a = truth_world(layers=2, width=8, facts=6, seed=0)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 15, (5, 6)))
    neutral = Neutral(
        batch=Batch(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids),
        answers=(),
        source="planted",
    )
    there = at_equal_damage(model, prompts, neutral, adding(model, {0: a}), 0.05)
    assert there is not None
    strength, changes = there
    assert damage(
        model, neutral, lambda: added(model, {0: strength * a})
    ).kl.mean() == pytest.approx(0.05, rel=0.05)
    assert np.allclose(changes, 2 * strength * float(1 + a @ model.layers[1].weight.detach() @ a))
    nowhere = torch.zeros_like(a)
    assert at_equal_damage(model, prompts, neutral, adding(model, {0: nowhere}), 0.05) is None
