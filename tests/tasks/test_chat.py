"""Conversations, and the templates that tokenizers bring."""

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks.batch import collate
from loclin.tasks.chat import chat_prompt, in_chat, plain, turns_of
from loclin.tasks.data import TaskData
from loclin.tasks.records import Record
from loclin.tasks.schemas import task_data

#: As Llama 2 writes it: the begin token first, a space before the answer.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}<<{{ m.content }}>>{% else %} {{ m.content }} </s>{% endif %}"
    "{% endfor %}"
)
#: As ChatML writes it, with an empty thought before an answer that is there.
THINKING = (
    "{% for m in messages %}<{{ m.role }}>\n{% if m.role == 'assistant' %}<think></think>\n\n"
    "{% endif %}{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ messages[0].content }}"
)
USER = {"role": "user", "content": "do cats purr?"}
FIRE = {"messages": [USER, {"role": "assistant", "content": "yes"}]}


def read(*rows: dict[str, Any], **more: Any) -> TaskData:
    records = (Record(where=f"pool line {i}", fields=row) for i, row in enumerate(rows, start=1))
    return task_data(records, source="pool", task="pool", **more)


def chatty(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_the_last_turn_of_the_assistant_is_the_answer() -> None:
    later = [{"role": "user", "content": "and dogs?"}, {"role": "assistant", "content": "no"}]
    shared = {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]}
    first, second = read(FIRE, {"messages": [*FIRE["messages"], *later, USER]}).examples["pool"]
    assert (first.prompt, first.answer) == ("user: do cats purr?\nassistant:", " yes")
    assert second.prompt == "user: do cats purr?\nassistant: yes\nuser: and dogs?\nassistant:"
    assert second.answer == " no"
    data = read(shared, columns={"messages": "conversations"})
    assert data.examples["pool"][0].prompt == "user: a?\nassistant:"
    chosen = read(
        *({**FIRE, "options": o} for o in (["yes", "no"],)),
        {
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "no"}],
            "options": ["yes", "no"],
        },
    )
    assert [e.options for e in chosen.examples["pool"]] == [(" yes", " no")] * 2
    assert plain([]) == ""


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ("hello", "a list of turns in 'messages', found 'hello' in pool line 1"),
        (["hello"], "a list of turns"),
        ([USER], "a turn of the assistant, found those of user in pool line 1"),
        ([], "a turn of the assistant, found those of none"),
        ([{"role": "user", "content": [{"type": "text"}]}], "text in 'content', found"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, line: str) -> None:
    with pytest.raises(LoclinError, match=line):
        read({"messages": messages})


def test_the_template_writes_prompt_and_answer(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    """The row is that of the template's own text, its begin token once."""
    tokenizer = chatty(tokenizers["llama"], LLAMA)
    data = in_chat(read(FIRE), tokenizer)
    (e,) = data.examples["pool"]
    assert (e.prompt, e.answer) == ("<s>[INST] do cats purr? [/INST] ", "yes")
    assert e.group == "user: do cats purr?\nassistant:"
    row = collate([e], tokenizer).input_ids[0].tolist()
    whole = tokenizer.apply_chat_template([*FIRE["messages"]], tokenize=False)
    ours = tokenizer(whole.removesuffix(" </s>"), add_special_tokens=False)["input_ids"]
    assert row == ours
    assert row.count(tokenizer.bos_token_id) == 1
    assert data.notes == (
        "prompts are in the tokenizer's chat template, up to the answer: "
        "...'<s>[INST] do cats purr? [/INST] '",
    )


def test_prompts_of_any_schema_can_be_said_by_the_user_after_the_system(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    rows = [{"prompt": p, "options": ["yes", "no"], "label": i} for i, p in enumerate("ab")]
    tokenizer = chatty(tokenizers["qwen2"], THINKING)
    made = in_chat(read(*rows), tokenizer, system="Be brief.").examples["pool"]
    assert made[0].prompt == (
        "<system>\nBe brief.<end>\n<user>\na<end>\n<assistant>\n<think></think>\n\n"
    )
    assert [(e.answer, e.options) for e in made] == [
        ("yes", ("yes", "no")),
        ("no", ("yes", "no")),
    ]
    own = [{"role": "system", "content": "Purr."}, USER]
    assert "Be brief" not in chat_prompt(tokenizer, own, system="Be brief.")


def test_what_the_template_cannot_write_is_refused_in_one_line(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    with pytest.raises(LoclinError, match="a chat template for --chat, found none: leave --chat"):
        in_chat(read(FIRE), chatty(tokenizers["qwen2"], None))
    strict = chatty(tokenizers["qwen2"], STRICT)
    assert chat_prompt(strict, [USER]) == "do cats purr?"
    with pytest.raises(LoclinError, match=r"found system, user and .*System role not supported"):
        chat_prompt(strict, [USER], system="Be brief.")
    with pytest.raises(LoclinError, match="TemplateSyntaxError"):
        chat_prompt(chatty(tokenizers["qwen2"], "{% if %}"), [USER])


def test_turns_of_a_record_are_told_apart_from_its_answer() -> None:
    turns, answer = turns_of(Record(where="line 1", fields=FIRE))
    assert (list(turns), answer) == ([USER], "yes")
