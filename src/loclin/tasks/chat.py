"""Conversations: read from records, and written by the tokenizer's own chat template."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.tasks.data import TaskData, Turns
from loclin.tasks.example import Example
from loclin.tasks.records import Record, shown

#: Other names of the same roles (ShareGPT's).
ROLES = {"human": "user", "gpt": "assistant"}
ANSWER = "yes"  # stands for an answer where the template is tried
DAY = "26 Jul 2024"  # of templates that write the date: their own default, not today


def turns_of(record: Record) -> tuple[Turns, str]:
    """The turns of a record before the assistant's last one, and what that one says.

    Raises:
        LoclinError: no list of turns with a role and a text, or none of the assistant's.
    """
    turns = record.fields["messages"]
    if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
        raise record.error(
            "a list of turns in 'messages'", shown(turns), "give each a role and content"
        )
    read = []
    for turn in (replace(record, fields=fields) for fields in turns):
        role = turn.text("role") or turn.text("from")
        content = turn.text("content") or turn.text("value")
        read.append({"role": ROLES.get(role, role), "content": content})
    last = max((i for i, turn in enumerate(read) if turn["role"] == "assistant"), default=None)
    if last is None:
        roles = ", ".join(dict.fromkeys(turn["role"] for turn in read)) or "none"
        raise record.error("a turn of the assistant", f"those of {roles[:80]}", "add the answer")
    return read[:last], read[last]["content"]


def plain(turns: Turns) -> str:
    """A conversation without a template: a line for each turn, up to the assistant's answer; "" of
    no turns.

    >>> plain([{"role": "user", "content": "Do cats purr?"}])
    'user: Do cats purr?\\nassistant:'
    """
    lines = [f"{turn['role']}: {turn['content']}" for turn in turns if turn["content"].strip()]
    return "\n".join([*lines, "assistant:"]) if lines else ""


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase, turns: Turns, *, system: str | None = None
) -> str:
    """A conversation up to where the assistant's answer begins, as the chat template writes it.

    `system` says the first turn, where the conversation has none of the system's.

    Raises:
        LoclinError: no template, or one that refuses the conversation.
    """
    if system is not None and not any(turn["role"] == "system" for turn in turns):
        turns = [{"role": "system", "content": system}, *turns]
    prompt = _rendered(tokenizer, turns, ends=True)
    whole = _rendered(tokenizer, [*turns, {"role": "assistant", "content": ANSWER}], ends=False)
    before, answer, _ = whole.removeprefix(prompt).partition(ANSWER)
    # what the template puts between its prompt and an answer: a space, an empty thought
    return prompt + before if whole.startswith(prompt) and answer else prompt


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Turns, *, ends: bool) -> str:
    if not tokenizer.chat_template:
        raise LoclinError(
            "expected a tokenizer with a chat template for --chat, found none: leave --chat out, "
            "or take a model that was trained to chat"
        )
    try:
        how = {"tokenize": False, "add_generation_prompt": ends, "date_string": DAY}
        return str(tokenizer.apply_chat_template(list(turns), **how))
    except Exception as error:  # a template is a program of its own, and raises what it likes
        first = " ".join(str(error).split())[:120]
        roles = ", ".join(turn["role"] for turn in turns)
        raise LoclinError(
            f"expected turns that the tokenizer's chat template can write, found {roles} and "
            f"{type(error).__name__} ({first}): leave --system out, or mend the turns"
        ) from error


def in_chat(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None
) -> TaskData:
    """The same examples in the chat template: a prompt that was no conversation is the user's turn.

    The answer follows as the template has it, without a space of our own.

    Raises:
        LoclinError: as `chat_prompt`.
    """

    def written(e: Example) -> Example:
        turns = data.turns.get(e.prompt) or [{"role": "user", "content": e.prompt}]
        answer, *also = (text.lstrip() for text in (e.answer, *e.also))
        return replace(
            e,
            prompt=chat_prompt(tokenizer, turns, system=system),
            answer=answer,
            options=tuple(option.lstrip() for option in e.options),
            group=e.group or e.prompt,
            also=tuple(also),
        )

    examples = {task: tuple(map(written, es)) for task, es in data.examples.items()}
    end = next(iter(examples.values()))[0].prompt[-40:]
    note = f"prompts are in the tokenizer's chat template, up to the answer: ...{end!r}"
    return replace(data, examples=examples, notes=(*data.notes, note), turns={})
