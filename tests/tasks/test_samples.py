import numpy as np
import pytest
import torch
from scipy import stats
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.seeds import derived
from loclin.tasks.batch import collate, exact_match
from loclin.tasks.example import Example
from loclin.tasks.samples import (
    ENDED,
    HOPELESS,
    UNREADABLE,
    _example,
    _gumbel,
    _sampled,
    self_examples,
)
from tests.conftest import FAMILIES, random_model

Models = dict[str, PreTrainedModel]
Tokenizers = dict[str, PreTrainedTokenizerBase]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_untouched_model_knows_its_own_samples(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    model, tokenizer = families[family], tokenizers[family]
    data = self_examples(model, tokenizer, 10, seed=0, prompt_tokens=6, answer_tokens=3)
    examples = data.examples["self"]
    assert len({e.prompt for e in examples}) == data.kept == 10
    assert data.read == 10 + sum(data.dropped.values())
    assert exact_match(model, collate(examples, tokenizer)).all()
    for e in examples:
        special = tokenizer.num_special_tokens_to_add()
        assert len(tokenizer(e.prompt)["input_ids"]) == 6 + special
        assert 1 <= len(tokenizer(e.answer, add_special_tokens=False)["input_ids"]) <= 3
    # No draw depends on the global generator, nor on how many rows go together.
    assert (
        self_examples(model, tokenizer, 10, seed=0, prompt_tokens=6, answer_tokens=3, batch_size=3)
        == data
    )
    other = self_examples(model, tokenizer, 10, seed=1, prompt_tokens=6, answer_tokens=3)
    assert other.examples != data.examples


def test_word_level_answers_keep_their_space(words: PreTrainedTokenizerBase) -> None:
    model = random_model("gpt2", len(words))
    data = self_examples(model, words, 20, seed=0)
    assert all(e.answer.startswith(" ") and e.prompt[0] != " " for e in data.examples["self"])
    assert exact_match(model, collate(data.examples["self"], words)).all()


def test_a_trained_model_keeps_its_language(trained: Problem) -> None:
    data = self_examples(
        trained.model, trained.tokenizer, 30, seed=0, prompt_tokens=5, answer_tokens=2
    )
    assert exact_match(trained.model, collate(data.examples["self"], trained.tokenizer)).all()
    line = (
        "within the model's context of 10 tokens, found 8 prompt tokens, 4 answer tokens and 0 "
        "special: ask for fewer"
    )
    with pytest.raises(LoclinError, match=line):
        self_examples(trained.model, trained.tokenizer, 30, seed=0)


def test_gumbel_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    draws = [int((logits + _gumbel(5, seed=derived(0, "test", i))).argmax()) for i in range(4000)]
    counts = np.bincount(draws, minlength=5)
    assert stats.chisquare(counts, 4000 * logits.softmax(-1).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_draws_equal_their_dense_twin(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    """One row, one pass over everything for each token, no cache; with a beginning (llama) and
    without (qwen2).
    """
    model, tokenizer = families[family], tokenizers[family]
    size = model.config.vocab_size
    drawable = torch.arange(size) > 10
    together = _sampled(model, tokenizer, drawable, range(3, 6), length=5, seed=2)
    for row, drawn in zip(range(3, 6), together, strict=True):
        ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        for step in range(5):
            with torch.no_grad():
                logits = (
                    model(input_ids=torch.tensor([ids])).logits[0, -1] if ids else torch.zeros(size)
                )
            noisy = logits + _gumbel(size, seed=derived(2, "self", row, step))
            ids.append(int(noisy.masked_fill(~drawable, -torch.inf).argmax()))
        assert ids[-5:] == drawn.tolist()
    assert drawable[together].all()


def test_repetitions_go_and_a_shortage_is_noted(words: PreTrainedTokenizerBase) -> None:
    """Prompts of one token: there are no more of them than words."""
    model = random_model("qwen2", len(words))
    data = self_examples(model, words, 100, seed=0, prompt_tokens=1, batch_size=400)
    assert data.kept <= len(words)
    assert data.read == 3200
    assert data.dropped["repeating an earlier one"] > 1000
    assert data.notes == (f"100 samples were asked for, {data.kept} are usable",)


def test_a_model_that_says_nothing_gives_no_samples(words: PreTrainedTokenizerBase) -> None:
    """Its output layer prefers padding, whatever came before."""
    model = random_model("qwen2", len(words))
    model.get_output_embeddings().weight.data.zero_()
    line = (
        f"found none in {HOPELESS} draws: dropped {HOPELESS} after which the model ends at once: "
        "use a file"
    )
    with pytest.raises(LoclinError, match=line):
        self_examples(model, words, 20, seed=0)


def test_an_answer_ends_where_the_model_ends_and_must_read_back(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["llama"]
    prompt, sat, split_up = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("the cat", " sat on", " t")
    )
    end, half = tokenizer.eos_token_id, tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    example = _example(tokenizer, "the cat", prompt, [*sat, end, *sat])
    assert example == Example(prompt="the cat", answer=" sat on")
    assert _example(tokenizer, "the cat", prompt, [end, *sat]) == ENDED
    assert _example(tokenizer, "the cat", prompt, half) == UNREADABLE
    he = tokenizer("he", add_special_tokens=False)["input_ids"]
    assert (
        _example(tokenizer, "the cat", prompt, split_up + he) == UNREADABLE
    )  # " the" is one token when read


def test_what_cannot_be_drawn_is_refused(words: PreTrainedTokenizerBase) -> None:
    model = random_model("gpt2", len(words))
    for bad in ({"count": 0}, {"prompt_tokens": 0}, {"answer_tokens": 0}, {"batch_size": 0}):
        with pytest.raises(
            LoclinError, match=r"expected to draw at least 1 of the .*, found 0: ask for more"
        ):
            self_examples(model, words, **({"count": 5, "seed": 0} | bad))
    model.transformer.wte.weight.data.fill_(torch.nan)
    with pytest.raises(LoclinError, match="logits that are numbers, found NaN"):
        self_examples(model, words, 5, seed=0)
