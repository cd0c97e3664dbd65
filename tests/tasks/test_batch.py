import pytest
import torch
from transformers import PreTrainedTokenizerFast

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.tasks.batch import IGNORED, answer_loss, collate, concatenate, exact_match
from loclin.tasks.example import Example

RAGGED = [
    Example(prompt="copy a b =", answer=" a b"),
    Example(prompt="reverse a b c d =", answer=" d c b a"),
    Example(prompt="halves a b c d =", answer=" c"),
]


def test_prompt_is_masked_and_rows_are_padded_on_the_right(trained: Problem) -> None:
    batch = collate(RAGGED, trained.tokenizer)
    assert batch.input_ids.shape == (3, 10)
    assert batch.attention_mask.sum(1).tolist() == [6, 10, 7]
    assert (batch.labels != IGNORED).sum(1).tolist() == [2, 4, 1]
    row = batch.labels[0]
    assert trained.tokenizer.decode(row[row != IGNORED]).split() == ["a", "b"]
    assert batch.rows(slice(0, 1)).input_ids.shape == (1, 6)


def test_padding_and_batch_size_change_no_score(trained: Problem) -> None:
    batch = collate(RAGGED, trained.tokenizer)
    with torch.no_grad():
        whole, count = answer_loss(trained.model, batch)
        single = [answer_loss(trained.model, one) for one in batch.chunks(1)]
    assert count == sum(n for _, n in single) == 7
    assert torch.isclose(whole, torch.stack([loss for loss, _ in single]).sum(), rtol=1e-5)
    together = exact_match(trained.model, batch)
    assert together.tolist() == [bool(exact_match(trained.model, one)) for one in batch.chunks(1)]


def test_exact_match_by_teacher_forcing_equals_greedy_decoding(trained: Problem) -> None:
    """On a model that is right on some and wrong on others: its weights are shaken first."""
    space = ParameterSpace(trained.model)
    data = trained.batch("test", "reverse")
    length = int((data.labels[0] != IGNORED).sum())
    prompt = data.input_ids.shape[1] - length
    with space.restored():
        space.add(space.noise(seed=1), scale=0.06)
        forced = exact_match(trained.model, data, batch_size=17)
        decoded = trained.model.generate(
            data.input_ids[:, :prompt],
            attention_mask=data.attention_mask[:, :prompt],
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
        )
    right = (decoded[:, prompt:] == data.input_ids[:, prompt:]).all(1)
    assert 0.1 < right.double().mean() < 0.9
    assert torch.equal(forced, right)


def test_batches_of_one_width_are_stacked(trained: Problem) -> None:
    batch = collate(RAGGED, trained.tokenizer)
    assert len(concatenate([batch, batch])) == 6
    with pytest.raises(LoclinError, match=r"one width, found widths \[6, 10\]"):
        concatenate([batch, batch.rows(slice(0, 1))])


def test_what_cannot_be_collated_is_refused(trained: Problem) -> None:
    with pytest.raises(LoclinError, match="at least one example"):
        collate([], trained.tokenizer)
    with pytest.raises(LoclinError, match="answer of at least one token, found ''"):
        collate([Example(prompt="copy a =", answer="")], trained.tokenizer)
    bare = PreTrainedTokenizerFast(tokenizer_object=trained.tokenizer.backend_tokenizer)
    with pytest.raises(LoclinError, match="padding token"):
        collate(RAGGED, bare)
