import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks import choices as subject
from loclin.tasks.choices import check_options, choose, collate_choices, option_log_probabilities
from loclin.tasks.example import Example
from tests.conftest import FAMILIES

Models = dict[str, PreTrainedModel]
Tokenizers = dict[str, PreTrainedTokenizerBase]

LETTERS = (" (A)", " (B)")
RAGGED = [
    Example(prompt="do cats purr?", answer=" yes", options=(" yes", " no")),
    Example(prompt="(A) or (B), no one knows it:", answer=" (B)", options=LETTERS),
    Example(
        prompt="the cat sat on the",
        answer=" mat",
        options=(" dog", " mat", " cat and dog", " yes, they do"),
    ),
    Example(prompt="x", answer=" they ran", options=(" they sat", " they ran")),
]


def dense(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, example: Example, option: str
) -> float:
    """The obvious twin: one text, one token at a time."""
    prompt = tokenizer(example.prompt)["input_ids"]
    total = 0.0
    with torch.no_grad():
        for token in tokenizer(option, add_special_tokens=False)["input_ids"]:
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            total += float(logits.double().log_softmax(-1)[token])
            prompt = [*prompt, token]
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_joint_log_probabilities_equal_their_dense_twin(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    model, tokenizer = families[family], tokenizers[family]
    choices = collate_choices(RAGGED, tokenizer)
    assert (len(choices), len(choices.batch)) == (4, 10)
    assert choices.gold.tolist() == [0, 1, 1, 1]
    with torch.no_grad():
        scores = option_log_probabilities(model, choices)
    assert scores.shape == (4, 4)
    best = []
    for row, example in zip(scores, RAGGED, strict=True):
        expected = [dense(model, tokenizer, example, option) for option in example.options]
        assert torch.allclose(
            row[: len(expected)].double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-4
        )
        assert torch.isneginf(row[len(expected) :]).all()
        best.append(expected.index(max(expected)) == example.options.index(example.answer))
    assert choose(model, choices).tolist() == best


def test_chunking_changes_nothing(
    families: Models, tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, choices = families["llama"], collate_choices(RAGGED, tokenizers["llama"])
    with torch.no_grad():
        whole = option_log_probabilities(model, choices)
        for tokens in (1, 40, 100):
            torch.testing.assert_close(
                option_log_probabilities(model, choices, tokens_at_once=tokens), whole
            )
        monkeypatch.setattr(subject, "LOGITS_AT_ONCE", 3 * 305)
        torch.testing.assert_close(option_log_probabilities(model, choices), whole)


def test_no_pass_exceeds_its_limits(
    families: Models, tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watched at the model: tokens that go in, logits that come out."""
    model, choices = families["qwen2"], collate_choices(RAGGED * 5, tokenizers["qwen2"])
    sizes: list[tuple[int, int]] = []

    def watch(module: object, args: object, kwargs: dict[str, Tensor], output: object) -> None:
        sizes.append((kwargs["input_ids"].numel(), output.logits.numel()))  # type: ignore[attr-defined]

    handle = model.register_forward_hook(watch, with_kwargs=True)
    try:
        monkeypatch.setattr(subject, "LOGITS_AT_ONCE", 20 * 303)
        choose(model, choices, tokens_at_once=150)
    finally:
        handle.remove()
    assert len(sizes) > 5
    assert max(tokens for tokens, _ in sizes) <= 150
    assert max(logits for _, logits in sizes) <= 20 * 303


def test_the_order_of_the_options_changes_nothing(families: Models, tokenizers: Tokenizers) -> None:
    turned = [replace(e, options=e.options[::-1]) for e in RAGGED]
    right = [
        choose(families["gemma"], collate_choices(es, tokenizers["gemma"])).tolist()
        for es in (RAGGED, turned)
    ]
    assert right[0] == right[1]


def test_a_tie_counts_as_wrong(families: Models, tokenizers: Tokenizers) -> None:
    """All tokens are equally likely where the output layer is zero: options of one length tie."""
    model = copy.deepcopy(families["qwen2"])
    model.get_output_embeddings().weight.data.zero_()
    tokenizer = tokenizers["qwen2"]
    tied = Example(prompt="a", answer=" (A)", options=LETTERS)
    shorter = Example(prompt="a", answer=" the", options=(" they do", " the"))
    assert choose(model, collate_choices([tied, shorter], tokenizer)).tolist() == [False, True]


def test_gradients_flow_unless_one_chooses(families: Models, tokenizers: Tokenizers) -> None:
    choices = collate_choices(RAGGED[:1], tokenizers["llama"])
    assert option_log_probabilities(families["llama"], choices, tokens_at_once=1).requires_grad
    moved = choices.to("meta")
    assert (
        moved.batch.input_ids.device.type
        == moved.counts.device.type
        == moved.gold.device.type
        == "meta"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_option_that_another_begins_can_never_win(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    """Which is why it is refused."""
    model, tokenizer = families[family], tokenizers[family]
    pair = Example(prompt="do they?", answer=" no one", options=(" no", " no one"))
    with torch.no_grad():
        short, long = option_log_probabilities(model, collate_choices([pair], tokenizer))[
            0
        ].tolist()
    assert long < short
    line = (
        r"found ' no' and ' no one' with the tokens \[\d+\] and \[\d+, \d+\]: reword them, the "
        "longer could never win"
    )
    with pytest.raises(LoclinError, match=line):
        check_options([pair], tokenizer)


def test_options_of_the_same_tokens_are_refused(words: PreTrainedTokenizerBase) -> None:
    unknown = Example(prompt="the cat", answer=" purred", options=(" purred", " barked"))
    with pytest.raises(
        LoclinError,
        match=r"none begins another, found ' purred' and ' barked' with the tokens \[1\] and \[1\]",
    ):
        check_options([unknown], words)


def test_options_that_share_their_first_token_are_noted(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["gpt2"]
    first, second = tokenizer(list(LETTERS), add_special_tokens=False)["input_ids"]
    assert first[0] == second[0]
    (note,) = check_options(RAGGED, tokenizer)
    assert note.startswith("2 of 4 examples have options with a common first token")
    assert check_options(RAGGED[:1], tokenizer) == ()
    assert check_options([Example(prompt="a", answer=" b")], tokenizer) == ()


def test_what_offers_no_choice_is_refused(tokenizers: Tokenizers) -> None:
    with pytest.raises(LoclinError, match="examples with options, found none for the answer ' b'"):
        collate_choices([Example(prompt="a", answer=" b")], tokenizers["gpt2"])
    with pytest.raises(
        LoclinError, match=r"among the options \(' yes', ' no'\), found ' b': add it there"
    ):
        collate_choices(
            [Example(prompt="a", answer=" b", options=(" yes", " no"))], tokenizers["gpt2"]
        )
    with pytest.raises(LoclinError, match="at least one example"):
        collate_choices([], tokenizers["gpt2"])
