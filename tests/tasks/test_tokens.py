"""Rows of tokens, over the kinds of tokenizers in use: greedy generation is what they are held
against."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import models as pieces
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loclin.errors import LoclinError
from loclin.models.pretrained import read_pretrained
from loclin.options import LoadOptions
from loclin.tasks.batch import IGNORED, collate, exact_match
from loclin.tasks.choices import check_options, collate_choices
from loclin.tasks.data import TaskData
from loclin.tasks.example import Example
from loclin.tasks.fit import fit
from loclin.tasks.tokens import continuations, text_tokens
from tests.conftest import TEXT, random_model

WORDS = [
    *TEXT,
    "user: do cats purr?\nassistant: yes",
    "yes no yes no yes\nno",
    "on the mat they sat",
]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
BEGIN = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
BOTH = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
MARK = "▁"


def finished(core: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    )


def bytes_in_pairs(around: processors.TemplateProcessing | None) -> PreTrainedTokenizerBase:
    core = Tokenizer(pieces.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if around is not None:
        core.post_processor = around
    return finished(core)


def like_llama(*, prefix: bool = True) -> PreTrainedTokenizerBase:
    """Sentencepiece as Llama 2 has it: a space before every text, line breaks as bytes; or without
    that space, as Gemma has it.
    """
    pairs = [("e", "s"), ("y", "es"), ("n", "o"), (MARK, "yes"), (MARK, "no"), ("t", "h")]
    letters = sorted({MARK, *"".join(WORDS)} - {" ", "\n"})
    every = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, pairs)]
    vocabulary = {piece: i for i, piece in enumerate(every)}
    core = Tokenizer(pieces.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [*[normalizers.Prepend(MARK)] * prefix, normalizers.Replace(" ", MARK)]
    )
    begun = [decoders.Strip(" ", 1, 0)] * prefix
    core.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *begun]
    )
    core.post_processor = BEGIN
    return finished(core)


def marked_words(scheme: str) -> PreTrainedTokenizerBase:
    """Unigram, with or without the space that sentencepiece puts before a text."""
    core = Tokenizer(pieces.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    core.train_from_iterator(
        WORDS,
        trainers.UnigramTrainer(
            vocab_size=90,
            special_tokens=SPECIAL,
            unk_token="<unk>",
            initial_alphabet=["\n", *"abcdefghijklmnopqrstuvwxyz"],
            show_progress=False,
        ),
    )
    core.post_processor = BEGIN
    return finished(core)


def whole_words() -> PreTrainedTokenizerBase:
    known = [*SPECIAL, *sorted({word for text in WORDS for word in text.split()}), "Answer:"]
    core = Tokenizer(pieces.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return finished(core)


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte pairs": lambda: bytes_in_pairs(None),
    "byte pairs, begin token": lambda: bytes_in_pairs(BEGIN),
    "byte pairs, begin and end tokens": lambda: bytes_in_pairs(BOTH),
    "sentencepiece": like_llama,
    "sentencepiece, no space": lambda: like_llama(prefix=False),
    "Unigram, space before every text": lambda: marked_words("always"),
    "Unigram, space before the first text": lambda: marked_words("first"),
    "Unigram, no space": lambda: marked_words("never"),
    "words": whole_words,
}
PROMPTS = (
    "do cats purr?",
    "the cat sat on the mat\n",
    "user: do cats purr?\nassistant:",
    "on the ",
)


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that says other things after other prompts, and never a special token."""
    tokenizer = KINDS[request.param]()
    model = random_model("llama", len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[:4] = 0  # their logits are 0, below the largest of the others
    return model, tokenizer


def spoken(model: PreTrainedModel, row: list[int], count: int) -> list[int]:
    """Greedy generation, one token at a time, of the row alone."""
    for _ in range(count):
        with torch.no_grad():
            row = [*row, int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax())]
    return row[-count:]


def test_teacher_forcing_is_greedy_generation(
    pair: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = pair
    examples = [Example(prompt=p, answer=a) for p in PROMPTS for a in (" yes", " they sat", " (A)")]
    for prompt in PROMPTS:  # what the model says itself, where it can be written as text
        start = text_tokens([prompt], tokenizer)[0]
        for count in (1, 2, 3):
            said = spoken(model, start, count)
            text = tokenizer.decode([*start, *said], skip_special_tokens=True)
            whole = tokenizer.decode(start, skip_special_tokens=True)
            answer = text.removeprefix(whole)
            if answer.strip() and text.startswith(whole):
                examples.append(Example(prompt=prompt, answer=answer))
    right = exact_match(model, collate(examples, tokenizer)).tolist()
    generated = []
    for e, (prompt, after) in zip(examples, continuations(examples, tokenizer), strict=True):
        generated.append(spoken(model, prompt, len(after[e.answer])) == after[e.answer])
        assert prompt + after[e.answer] == text_tokens([e.prompt + e.answer], tokenizer)[0]
    assert right == generated
    assert True in right
    assert False in right


def test_the_row_is_that_of_the_whole_text() -> None:
    """An answer after a line break gets no space token, which running text does not have."""
    tokenizer = like_llama()
    ((prompt, after),) = continuations(
        [Example(prompt="do cats purr?\n", answer="yes", options=("yes", "no"))], tokenizer
    )
    assert tokenizer.convert_ids_to_tokens(prompt)[-1] == "<0x0A>"
    assert [tokenizer.convert_ids_to_tokens(after[o]) for o in ("yes", "no")] == [["yes"], ["no"]]
    alone = tokenizer("yes", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(alone)[0].startswith(MARK)


def test_options_are_compared_after_the_same_tokens() -> None:
    """One of them grows together with the prompt's end: what they share goes before both."""
    core = Tokenizer(pieces.BPE({"a": 0, "b": 1, "c": 2, "bc": 3}, [("b", "c")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    e = Example(prompt="ab", answer="c", options=("c", "a"))
    assert continuations([e], tokenizer) == [([0], {"c": [3], "a": [1, 0]})]
    batch = collate_choices([e], tokenizer).batch
    assert batch.labels.tolist() == [[IGNORED, 3, IGNORED], [IGNORED, 1, 0]]
    assert check_options([e], tokenizer) == ()
    with pytest.raises(LoclinError, match="prompt of at least one token, found 'b'"):
        collate([Example(prompt="b", answer="c")], tokenizer)


def test_special_tokens_stand_once_before_a_text_and_never_after_it() -> None:
    tokenizer = bytes_in_pairs(BOTH)
    assert tokenizer("no")["input_ids"][-1] == 3
    plain, written = text_tokens(["do cats purr?", "<s>do cats purr?"], tokenizer)
    assert plain == written
    assert (plain[0], plain.count(2), plain.count(3)) == (2, 1, 0)
    e = Example(prompt="<s>do cats purr?", answer=" yes")
    row = collate([e], tokenizer).input_ids[0].tolist()
    assert row == text_tokens(["do cats purr? yes"], tokenizer)[0]
    data = TaskData(source="pool", examples={"cats": (e,)}, read=1)
    assert fit(data, tokenizer, context=64).notes == (
        "1 of 1 prompts begin with '<s>' themselves: no second one",
        "the tokenizer puts '</s>' after every text: it is left out",
    )
    assert text_tokens([], tokenizer) == []


def test_a_broken_tokenizer_is_refused_or_right(tmp_path: Path) -> None:
    """Eighty damaged tokenizer files: one line, or rows within the vocabulary that it wrote."""
    e = Example(prompt="do cats purr?", answer=" yes", options=(" yes", " no"))
    data = TaskData(source="pool", examples={"cats": (e,)}, read=1)
    random_model("llama", 330).save_pretrained(tmp_path)
    bytes_in_pairs(BOTH).save_pretrained(tmp_path)
    whole = {n: (tmp_path / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json")}
    rng, refused = random.Random(0), 0
    for i in range(80):
        name = list(whole)[i % 2]
        (tmp_path / name).write_bytes(damaged(whole[name], rng))
        try:
            _, tokenizer, _ = read_pretrained(
                str(tmp_path), LoadOptions(model="other", device="cpu")
            )
            fitted = fit(data, tokenizer, context=64, vocabulary=330)
            batch = collate_choices(fitted.examples["cats"], tokenizer).batch
            assert int(batch.input_ids.max()) < 330
        except LoclinError as error:
            refused += "\n" not in str(error)
        (tmp_path / name).write_bytes(whole[name])
    assert 10 < refused < 80


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, repeated, or with a few of its bytes changed; a number, a text or a mark among them."""
    at, length = rng.randrange(len(content)), rng.randrange(1, 40)
    new = rng.choice(
        [b"", b"\x00", b"\xff", b'"', b"{", b"]", b"\n", b",", b"9999", b"null", b"true", b"[1]"]
    )
    match rng.randrange(4):
        case 0:
            return content[:at]
        case 1:
            return content[: at + length] + content[at:]
        case 2:
            return content[:at] + new + content[at + length :]
        case _:
            return content[:at] + new + content[at:]
