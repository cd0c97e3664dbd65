import pytest
import torch
from transformers import PreTrainedTokenizerFast

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.tasks.batch import (
    IGNORED,
    answer_log_probabilities,
    answer_loss,
    collate,
    concatenate,
    exact_match,
    language_and_answer_loss,
    prompts_batch,
)
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


def test_prompts_alone_are_the_beginnings_of_the_examples(trained: Problem) -> None:
    batch, whole = (
        prompts_batch([e.prompt for e in RAGGED], trained.tokenizer),
        collate(RAGGED, trained.tokenizer),
    )
    assert batch.attention_mask.sum(1).tolist() == [4, 6, 6]
    for row, full, length in zip(batch.input_ids, whole.input_ids, [4, 6, 6], strict=True):
        assert torch.equal(row[:length], full[:length])
    assert (batch.labels == IGNORED).all()
    assert batch.input_ids[0, 4:].tolist() == [trained.tokenizer.pad_token_id] * 2


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
        space.add(space.noise(seed=1), scale=0.04)
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


def test_batches_of_any_width_are_stacked(trained: Problem) -> None:
    wide, narrow = collate(RAGGED, trained.tokenizer), collate(RAGGED[:1], trained.tokenizer)
    stacked = concatenate([narrow, wide])
    assert stacked.input_ids.shape == (4, 10)
    with torch.no_grad():
        whole, count = answer_loss(trained.model, stacked)
        parts = [answer_loss(trained.model, b) for b in (narrow, wide)]
    assert count == sum(n for _, n in parts)
    assert torch.isclose(whole, parts[0][0] + parts[1][0], rtol=1e-5)


def test_losses_in_one_pass_are_those_of_the_whole_logits(trained: Problem) -> None:
    """A dense twin: all logits, shifted by one, token by token."""
    batch = collate(RAGGED, trained.tokenizer)
    with torch.no_grad():
        logits = trained.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).logits.log_softmax(-1)
        nats = -logits[:, :-1].gather(2, batch.input_ids[:, 1:, None]).squeeze(2)
        answers, real = batch.labels[:, 1:] != IGNORED, batch.attention_mask[:, 1:] > 0
        expected = nats[answers].mean() + 0.3 * nats[real].mean()
        assert torch.isclose(
            language_and_answer_loss(trained.model, batch, language=0.3), expected, rtol=1e-5
        )
        joint = -torch.stack([row[kept].sum() for row, kept in zip(nats, answers, strict=True)])
        assert torch.allclose(answer_log_probabilities(trained.model, batch), joint, rtol=1e-4)


def test_what_cannot_be_collated_is_refused(trained: Problem) -> None:
    with pytest.raises(LoclinError, match="at least one example"):
        collate([], trained.tokenizer)
    with pytest.raises(LoclinError, match="answer of at least one token, found ''"):
        collate([Example(prompt="copy a =", answer="")], trained.tokenizer)
    with pytest.raises(LoclinError, match="at least one example"):
        prompts_batch([], trained.tokenizer)
    with pytest.raises(LoclinError, match="prompt of at least one token, found ''"):
        prompts_batch(["copy a =", ""], trained.tokenizer)


def test_padding_is_a_token_of_every_embedding(trained: Problem) -> None:
    """A padding token that was added to the tokenizer alone is no row of the embedding."""
    longer = PreTrainedTokenizerFast(
        tokenizer_object=trained.tokenizer.backend_tokenizer, unk_token="<pad>"
    )
    longer.add_special_tokens({"pad_token": "[PAD]"})
    assert longer.pad_token_id == len(trained.tokenizer)
    batch, plain = collate(RAGGED, longer), collate(RAGGED, trained.tokenizer)
    assert torch.equal(batch.input_ids, plain.input_ids)
    assert exact_match(trained.model, batch).tolist() == exact_match(trained.model, plain).tolist()
    bare = PreTrainedTokenizerFast(tokenizer_object=trained.tokenizer.backend_tokenizer)
    assert torch.equal(collate(RAGGED, bare).input_ids, plain.input_ids)


def test_a_dictionary_of_a_data_collator_is_a_batch(trained: Problem) -> None:
    batch = trained.batch("test", trained.tasks[0]).rows(slice(0, 4))
    held = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    total, count = answer_loss(trained.model, batch)
    assert answer_loss(trained.model, {**held, "labels": batch.labels}) == (total, count)
    # without labels every real token but the first is predicted
    assert answer_loss(trained.model, held)[1] == int(batch.attention_mask[:, 1:].sum())
    with pytest.raises(LoclinError, match="expected input_ids"):
        answer_loss(trained.model, {"tokens": batch.input_ids})
