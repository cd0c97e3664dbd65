import pytest
from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks.data import TaskData
from loclin.tasks.example import Example
from loclin.tasks.fit import fit

SHORT = Example(prompt="the cat", answer=" sat")  # three words
LONG = Example(prompt="the cat sat on the mat", answer=" and the dog ran")  # ten
LONG_OPTION = Example(
    prompt="the cat", answer=" sat", options=(" sat", " ran after the dog")
)  # six at the longest


def made(*examples: Example) -> TaskData:
    return TaskData(source="pool", examples={"cats": examples}, read=len(examples))


def test_what_is_longer_than_the_context_is_dropped_and_counted(
    words: PreTrainedTokenizerBase,
) -> None:
    data = made(SHORT, LONG, LONG_OPTION)
    for context, kept in ((10, 3), (9, 2), (6, 2), (5, 1), (3, 1)):
        fitted = fit(data, words, context=context)
        assert fitted.kept == kept
        assert fitted.dropped == (
            {f"longer than the context of {context} tokens": 3 - kept} if kept < 3 else {}
        )
    assert fit(data, words, context=None).kept == 3
    with pytest.raises(
        LoclinError,
        match="keep in pool, found none: 3 read, dropped 3 longer than the context of 2 tokens",
    ):
        fit(data, words, context=2)


def test_special_tokens_count(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """GPT-2's beginning is not put before a prompt, Llama's is."""
    data = made(Example(prompt="the cat", answer=" sat"))
    length = len(tokenizers["gpt2"]("the cat sat")["input_ids"])
    assert fit(data, tokenizers["gpt2"], context=length).kept == 1
    assert fit(data, tokenizers["llama"], context=length + 1).kept == 1
    with pytest.raises(LoclinError, match="found none"):
        fit(data, tokenizers["llama"], context=length)


def test_what_is_longer_may_be_refused_instead(words: PreTrainedTokenizerBase) -> None:
    line = (
        "of at most 5 tokens, the model's context, found 2 longer in pool, the longest of 10: "
        "shorten them"
    )
    with pytest.raises(LoclinError, match=line):
        fit(made(SHORT, LONG, LONG_OPTION), words, context=5, long="fail")
    assert fit(made(SHORT, LONG), words, context=10, long="fail").kept == 2


def test_answers_that_the_tokenizer_cannot_write_are_dropped(
    words: PreTrainedTokenizerBase,
) -> None:
    data = made(
        SHORT, Example(prompt="the dog", answer=" barked"), Example(prompt="the mat", answer="  ")
    )
    fitted = fit(data, words, context=None)
    assert fitted.examples == {"cats": (SHORT,)}
    assert fitted.dropped == {
        "with an answer that the tokenizer has no words for": 1,
        "with an answer of no tokens": 1,
    }


def test_remarks_join_the_summary(
    words: PreTrainedTokenizerBase, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    strange = made(SHORT, Example(prompt="a bird", answer=" sat"))
    assert fit(strange, words, context=None).notes == (
        "1 of 2 prompts hold words that the tokenizer does not know",
    )
    letters = made(Example(prompt="(A) or (B)?", answer=" (A)", options=(" (A)", " (B)")))
    fitted = fit(letters, tokenizers["gpt2"], context=64)
    assert "note: 1 of 1 examples have options with a common first token" in fitted.summary()
    assert letters.notes == ()  # the input is not changed


def test_an_option_that_begins_another_is_refused(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    data = made(Example(prompt="do they?", answer=" no", options=(" no", " no one")))
    with pytest.raises(LoclinError, match="options of which none begins another"):
        fit(data, tokenizers["qwen2"], context=64)
