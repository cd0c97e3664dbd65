"""The schemas of task data, told apart by their fields, and what each becomes as an `Example`.

- options: prompt, options, label (an index from 0, or the option's text)
- letters: prompt or question, A, B and further ones, answer, a letter (as the tables of MMLU,
  Hendrycks et al. 2021, arXiv 2009.03300)
- answers: prompt, answer (one, or a list of right ones)
- classes: prompt, label; the options are the labels of all records
- chat: messages; the last turn of the assistant is the answer
- BoolQ: question, passage, answer (Clark et al. 2019, arXiv 1905.10044)
- questions: question, answer; of GSM8K (Cobbe et al. 2021, arXiv 2110.14168) the number after ####
- statements: statement, label, true or false (Bürger et al. 2024, arXiv 2407.12831)
- contrast: question, answer_matching_behavior, answer_not_matching_behavior (Perez et al. 2022,
  arXiv 2212.09251; the A/B files of Rimsky et al. 2023, arXiv 2312.06681); the matching answer is
  right

Every record may name its `task` and its `group`. With a template, `prompt` may be left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from string import ascii_uppercase

from loclin.errors import LoclinError
from loclin.tasks.chat import plain, turns_of
from loclin.tasks.data import TaskData, Turns, cleaned
from loclin.tasks.example import Example
from loclin.tasks.records import Record, Template, listed, parse_template, renamed, shown

YES, NO = "yes", "no"
TRUTHS = {"true": YES, "yes": YES, "false": NO, "no": NO}
LONGEST_GROUP = 64  # characters; longer group names are hashed
MOST_CLASSES = 100  # more different labels are no classes
WORKED = "####"  # before the number in answers of GSM8K


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One way to write a record down.

    Attributes:
        fields: those it must have.
        prompt: where no template is given; "" if what it is made of is empty.
        answers: the right answer ("" if it is empty), where there are several the one that is
            trained on first; and the options (none for free answers).
        group: what no two splits share, where the record names no group.
        classes: whether the right answers of all records are the options of each.
    """

    name: str
    fields: tuple[str, ...]
    prompt: Callable[[Record], str]
    answers: Callable[[Record], tuple[Sequence[str], tuple[str, ...]]]
    group: Callable[[Record], str] = lambda record: ""
    classes: bool = False


def task_data(
    records: Iterable[Record],
    *,
    source: str,
    task: str,
    template: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> TaskData:
    """Read records of one schema as examples, and drop what `cleaned` drops.

    An answer gets a space in front where neither it nor the prompt's end has white space (" yes"
    and "yes" are different tokens).

    Args:
        records, source: all of one schema; their name in messages.
        task: of records that name none.
        template: the prompt (`parse_template`); the schema's own by default.
        columns: for fields of a schema, the name that the records have for each (`renamed`).

    Raises:
        LoclinError: no record, an unknown schema, two schemas, a field of the wrong kind, an
            unknown field in the template or the columns, or what `cleaned` refuses.
    """
    form = None if template is None else parse_template(template)
    first: tuple[Schema, Record] | None = None
    made: dict[str, list[Example]] = {}
    turns: dict[str, Turns] = {}
    read = worked = 0
    for record in (renamed(r, columns or {}) for r in records):
        schema = recognised(record, templated=form is not None, named=columns or ())
        first = first or (schema, record)
        if schema is not first[0]:
            expected = f"fields of the {first[0].name} schema as in {first[1].where}"
            other = f"those of the {schema.name} schema"
            raise record.error(expected, other, "keep the schemas in files of their own")
        example = _example(record, schema, form)
        made.setdefault(record.name("task") or task, []).append(example)
        if schema is CHAT and form is None:
            turns[example.prompt] = turns_of(record)[0]
        read += 1
        worked += _worked(record.fields.get("answer"))
    if first is None:
        raise LoclinError(
            f"expected at least one record, found none in {source}: fill it or choose other data"
        )
    if first[0].classes:
        made = {name: _with_classes(es, name, source) for name, es in made.items()}
    examples = {name: tuple(es) for name, es in made.items()}
    note = f"{worked} answers are the number after {WORKED}, right after the prompt: no working"
    notes = (note,) if worked else ()
    return cleaned(TaskData(source=source, examples=examples, read=read, notes=notes, turns=turns))


def _with_classes(examples: Sequence[Example], task: str, source: str) -> list[Example]:
    """The same with the labels of all of them as the options of each."""
    labels = sorted({e.answer.strip() for e in examples} - {""})
    if not 2 <= len(labels) <= MOST_CLASSES:
        raise LoclinError(
            f"expected 2 to {MOST_CLASSES} different labels in task {task!r} of {source}, found "
            f"{len(labels)}: name their column `answer` to have it matched exactly"
        )
    return [replace(e, options=tuple(_following(e.prompt, o) for o in labels)) for e in examples]


def recognised(record: Record, *, templated: bool = False, named: Iterable[str] = ()) -> Schema:
    """The first schema all of whose fields the record has; a template takes the place of `prompt`.
    Schemas with all fields that were named come first.

    Raises:
        LoclinError: there is none.
    """
    wanted = {*named} - {"task", "group"}
    schemas = sorted(SCHEMAS, key=lambda schema: not wanted <= {*schema.fields})
    for schema in schemas:
        if all(name in record.fields for name in schema.fields):
            return schema
    for schema in schemas if templated else ():
        if all(name in record.fields for name in schema.fields if name != "prompt"):
            return schema
    known = "; ".join(", ".join(schema.fields) for schema in SCHEMAS)
    remedy = "rename the fields, or name them by --fields"
    raise record.error(f"the fields of a known schema ({known})", listed(record.fields), remedy)


def _example(record: Record, schema: Schema, form: Template | None) -> Example:
    prompt = schema.prompt(record) if form is None else form.fill(record)
    answers, options = schema.answers(record)
    group = record.name("group") or schema.group(record)
    if len(group) > LONGEST_GROUP:
        group = hashlib.blake2b(group.encode(), digest_size=16).hexdigest()
    first, *more = (_following(prompt, answer) for answer in answers or ("",))
    return Example(
        prompt=prompt,
        answer=first,
        options=tuple(_following(prompt, option) for option in options),
        group=group,
        also=tuple(dict.fromkeys(a for a in more if a.strip() and a != first)),
    )


def _following(prompt: str, text: str) -> str:
    apart = not text or text[0].isspace() or prompt[-1:].isspace()
    return text if apart else f" {text}"


def _written_prompt(record: Record) -> str:
    return record.text("prompt")


def _free_answers(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    if any(record.fields.get(name) is not None for name in ("options", "choices")):
        columns = "--fields prompt=question options=choices label=answer"
        remedy = f"name the right option in 'label', or the columns, as in {columns}"
        raise record.error("a label beside the options", "none", remedy)
    value = record.fields["answer"]
    if isinstance(value, list):
        if not all(isinstance(a, str) for a in value):
            raise record.error("texts in 'answer'", shown(value), "write every answer in quotes")
        return [record.writable("answer", a) for a in value], ()
    if not _worked(value):
        return [record.text("answer")], ()
    number = re.search(rf"^{WORKED}\s*\$?(-?[\d,]*\.?\d+)$", value.strip(), re.MULTILINE)
    if number is None:
        found = shown(value.strip().rpartition("\n")[2])
        raise record.error(f"a number after {WORKED} in 'answer'", found, "mend the answer")
    return [number[1].replace(",", "")], ()


def _worked(answer: object) -> bool:
    """Whether an answer is worked out, its last line the number after ####, as in GSM8K."""
    return isinstance(answer, str) and answer.strip().rpartition("\n")[2].startswith(WORKED)


def _question_answers(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    truth = isinstance(record.fields["answer"], bool)
    return _boolq_answer(record) if truth else _free_answers(record)


def _class(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    label = record.fields["label"]
    return [str(label).lower() if isinstance(label, bool) else record.name("label")], ()


def _chat_answer(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    _, answer = turns_of(record)
    if record.fields.get("options") is None:
        return [answer], ()
    return _labelled_options(record.with_fields(label=answer))


def _labelled_options(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    record = _from_cell(record)
    options, label = record.fields["options"], record.fields["label"]
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise record.error(
            "a list of texts in 'options'", shown(options), 'write ["a", "b"], in a table or a|b'
        )
    if len(options) < 2:
        raise record.error(
            "at least two options", f"{len(options)}", "add one, or use prompt and answer"
        )
    options = _different(record, tuple(record.writable("options", o) for o in options))
    if label is None:
        return [""], options
    if isinstance(label, str):
        for option in options:
            if option.strip() == label.strip():
                return [option], options
        raise record.error(
            f"a label among the options {listed(options)}", shown(label), "change the label"
        )
    if not isinstance(label, int) or isinstance(label, bool):
        raise record.error(
            "an index or an option's text in 'label'", shown(label), "change the label"
        )
    if not 0 <= label < len(options):
        raise record.error(
            f"a label from 0 to {len(options) - 1}", f"{label}", "count the options from 0"
        )
    return [options[label]], options


def _from_cell(record: Record) -> Record:
    """The same with options that stand in one cell as a list, and the label beside them, a place
    among them or the text of one; where it could be either and they differ, it is refused.
    """
    cell, label = record.fields["options"], record.fields["label"]
    if not isinstance(cell, str) or not ("|" in cell or cell.lstrip().startswith("[")):
        return record
    options = [text.strip() for text in cell.split("|")]
    if cell.lstrip().startswith("["):
        try:
            options = json.loads(cell)
        except (ValueError, RecursionError):
            return record  # refused as what it is
    texts, key = [str(option).strip() for option in options], str(label).strip()
    if key.isdecimal() and len(key) < 4:
        label = key if key in texts else int(key)
        if label == key and int(key) < len(texts) and texts[int(key)] != key:
            found = f"{key!r}, a place and the text of another option,"
            raise record.error("a label of one meaning", found, "write the record in JSON")
    return record.with_fields(options=options, label=None if label == "" else label)


def _different(record: Record, options: tuple[str, ...]) -> tuple[str, ...]:
    if len({o.strip() for o in options}) < len(options):
        raise record.error("options that differ", listed(options), "change one or take it out")
    return options


def _lettered(record: Record) -> dict[str, str]:
    """The options in columns A, B and so on, those of empty cells left out."""
    letters = takewhile(record.fields.__contains__, ascii_uppercase)
    return {x: text for x in letters if (text := record.printed(x).strip())}


def _lettered_prompt(record: Record) -> str:
    question = (record.text("prompt") or record.text("question")).strip()
    lines = [question, *(f"{x}. {text}" for x, text in _lettered(record).items()), "Answer:"]
    return "\n".join(lines) * bool(question)


def _letter_answer(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    options, value = _lettered(record), record.fields["answer"]
    _different(record, tuple(options.values()))
    letters, answer = tuple(options), "" if value is None else str(value).strip().upper()
    if len(letters) < 2 or (answer and answer not in letters):
        expected = f"a letter among at least two options ({', '.join(letters)}) in 'answer'"
        raise record.error(expected, shown(value), "name its column by --fields answer=COLUMN")
    return [answer], letters


def _boolq_prompt(record: Record) -> str:
    passage, question = record.text("passage").strip(), record.text("question").strip()
    if not question:
        return ""
    question += "" if question[-1] in "?.!:" else "?"
    return (f"{passage}\n" if passage else "") + f"Question: {question}\nAnswer:"


def _boolq_answer(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    value = record.fields["answer"]
    if value is None or value == "":
        return [""], (YES, NO)
    text = str(value).strip().lower()
    if isinstance(value, bool | str) and text in TRUTHS:
        return [TRUTHS[text]], (YES, NO)
    raise record.error("true, false, yes or no in 'answer'", shown(value), "change the answer")


def _statement_prompt(record: Record) -> str:
    statement = record.text("statement").strip()
    return f"Statement: {statement}\nQuestion: Is the statement true?\nAnswer:" * bool(statement)


def _statement_answer(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    """A label of 1 or 0, as a number or a text, or what BoolQ allows."""
    label = record.fields["label"]
    text = {"1": "true", "0": "false", "1.0": "true", "0.0": "false"}.get(str(label), label)
    return _boolq_answer(record.with_fields(answer=text))


def _contrast_prompt(record: Record) -> str:
    question = record.text("question").rstrip()
    return question if not question or question.endswith(":") else f"{question}\n\nAnswer:"


def _contrast_answer(record: Record) -> tuple[Sequence[str], tuple[str, ...]]:
    """Options in alphabetical order: their place must not tell which is gold."""
    gold, other = (
        record.text(f"answer_{which}_behavior") for which in ("matching", "not_matching")
    )
    return [gold], tuple(sorted(_different(record, (gold, other))))


CHAT = Schema(
    name="chat",
    fields=("messages",),
    prompt=lambda record: plain(turns_of(record)[0]),
    answers=_chat_answer,
)
#: The first that fits is taken: a prompt that is written out goes before one that would be made
#: from other fields.
SCHEMAS = (
    Schema(
        name="options",
        fields=("prompt", "options", "label"),
        prompt=_written_prompt,
        answers=_labelled_options,
    ),
    *(
        Schema(
            name="letters",
            fields=(name, "A", "B", "answer"),
            prompt=_lettered_prompt,
            answers=_letter_answer,
        )
        for name in ("prompt", "question")
    ),
    Schema(
        name="answers", fields=("prompt", "answer"), prompt=_written_prompt, answers=_free_answers
    ),
    Schema(
        name="classes",
        fields=("prompt", "label"),
        prompt=_written_prompt,
        answers=_class,
        classes=True,
    ),
    CHAT,
    Schema(
        name="BoolQ",
        fields=("question", "passage", "answer"),
        prompt=_boolq_prompt,
        answers=_boolq_answer,
        group=lambda record: record.text("passage").strip(),
    ),
    Schema(
        name="contrast",
        fields=("question", "answer_matching_behavior", "answer_not_matching_behavior"),
        prompt=_contrast_prompt,
        answers=_contrast_answer,
    ),
    Schema(
        name="questions",
        fields=("question", "answer"),
        prompt=_boolq_prompt,
        answers=_question_answers,
    ),
    Schema(
        name="statements",
        fields=("statement", "label"),
        prompt=_statement_prompt,
        answers=_statement_answer,
    ),
)
