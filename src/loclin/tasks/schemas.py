"""The four schemas of task data, told apart by their fields, and what each becomes as an `Example`.

- options: prompt, options, label (an index from 0, or the option's text)
- answers: prompt, answer
- BoolQ: question, passage, answer (Clark et al. 2019, arXiv 1905.10044)
- contrast: question, answer_matching_behavior, answer_not_matching_behavior (Perez et al. 2022,
  arXiv 2212.09251; the A/B files of Rimsky et al. 2023, arXiv 2312.06681); the matching answer is
  right

Every record may name its `task` and its `group`. With a template, `prompt` may be left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loclin.errors import LoclinError
from loclin.tasks.data import TaskData, cleaned
from loclin.tasks.example import Example
from loclin.tasks.records import Record, Template, listed, parse_template, shown

YES, NO = "yes", "no"
TRUTHS = {"true": YES, "yes": YES, "false": NO, "no": NO}
LONGEST_GROUP = 64  # characters; longer group names are hashed


@dataclass(frozen=True, kw_only=True)
class Schema:
    """One way to write a record down.

    Attributes:
        fields: those it must have.
        prompt: where no template is given; "" if what it is made of is empty.
        answers: the right answer ("" if it is empty) and the options (none for free answers).
        group: what no two splits share, where the record names no group.
    """

    name: str
    fields: tuple[str, ...]
    prompt: Callable[[Record], str]
    answers: Callable[[Record], tuple[str, tuple[str, ...]]]
    group: Callable[[Record], str] = lambda record: ""


def task_data(
    records: Iterable[Record], *, source: str, task: str, template: str | None = None
) -> TaskData:
    """Read records of one schema as examples, and drop what `cleaned` drops.

    An answer gets a space in front where neither it nor the prompt's end has white space (" yes"
    and "yes" are different tokens).

    Args:
        records: all of one schema.
        source: their name in messages.
        task: of records that name none.
        template: the prompt (`parse_template`); the schema's own by default.

    Raises:
        LoclinError: no record, an unknown schema, two schemas, a field of the wrong kind, an
            unknown field in the template, or what `cleaned` refuses.
    """
    form = None if template is None else parse_template(template)
    first: tuple[Schema, Record] | None = None
    made: dict[str, list[Example]] = {}
    read = 0
    for record in records:
        schema = recognised(record, templated=form is not None)
        first = first or (schema, record)
        if schema is not first[0]:
            expected = f"fields of the {first[0].name} schema as in {first[1].where}"
            raise record.error(
                expected,
                f"those of the {schema.name} schema",
                "keep the schemas in files of their own",
            )
        made.setdefault(record.name("task") or task, []).append(_example(record, schema, form))
        read += 1
    if not made:
        raise LoclinError(
            f"expected at least one record, found none in {source}: fill it or choose other data"
        )
    examples = {name: tuple(es) for name, es in made.items()}
    return cleaned(TaskData(source=source, examples=examples, read=read))


def recognised(record: Record, *, templated: bool = False) -> Schema:
    """The first schema all of whose fields the record has; a template takes the place of `prompt`.

    Raises:
        LoclinError: there is none.
    """
    for schema in SCHEMAS:
        if all(name in record.fields for name in schema.fields):
            return schema
    for schema in SCHEMAS if templated else ():
        if all(name in record.fields for name in schema.fields if name != "prompt"):
            return schema
    known = "; ".join(", ".join(schema.fields) for schema in SCHEMAS)
    raise record.error(
        f"the fields of a known schema ({known})", listed(record.fields), "rename the fields"
    )


def _example(record: Record, schema: Schema, form: Template | None) -> Example:
    prompt = schema.prompt(record) if form is None else form.fill(record)
    answer, options = schema.answers(record)
    group = record.name("group") or schema.group(record)
    if len(group) > LONGEST_GROUP:
        group = hashlib.blake2b(group.encode(), digest_size=16).hexdigest()
    return Example(
        prompt=prompt,
        answer=_following(prompt, answer),
        options=tuple(_following(prompt, option) for option in options),
        group=group,
    )


def _following(prompt: str, text: str) -> str:
    apart = not text or text[0].isspace() or prompt[-1:].isspace()
    return text if apart else f" {text}"


def _written_prompt(record: Record) -> str:
    return record.text("prompt")


def _free_answer(record: Record) -> tuple[str, tuple[str, ...]]:
    if record.fields.get("options") is not None:
        raise record.error("a label beside the options", "none", "name the right option in 'label'")
    return record.text("answer"), ()


def _labelled_options(record: Record) -> tuple[str, tuple[str, ...]]:
    options, label = record.fields["options"], record.fields["label"]
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise record.error(
            "a list of texts in 'options'", shown(options), "write every option in quotes"
        )
    if len(options) < 2:
        raise record.error(
            "at least two options", f"{len(options)}", "add one, or use prompt and answer"
        )
    options = _different(record, tuple(record.writable("options", o) for o in options))
    if label is None:
        return "", options
    if isinstance(label, str):
        for option in options:
            if option.strip() == label.strip():
                return option, options
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
    return options[label], options


def _different(record: Record, options: tuple[str, ...]) -> tuple[str, ...]:
    if len({o.strip() for o in options}) < len(options):
        raise record.error("options that differ", listed(options), "change one or take it out")
    return options


def _boolq_prompt(record: Record) -> str:
    passage, question = record.text("passage").strip(), record.text("question").strip()
    if not question:
        return ""
    question += "" if question.endswith("?") else "?"
    return (f"{passage}\n" if passage else "") + f"Question: {question}\nAnswer:"


def _boolq_answer(record: Record) -> tuple[str, tuple[str, ...]]:
    value = record.fields["answer"]
    if value is None or value == "":
        return "", (YES, NO)
    if isinstance(value, bool):
        return (YES if value else NO), (YES, NO)
    if isinstance(value, str) and value.strip().lower() in TRUTHS:
        return TRUTHS[value.strip().lower()], (YES, NO)
    raise record.error("true, false, yes or no in 'answer'", shown(value), "change the answer")


def _contrast_prompt(record: Record) -> str:
    question = record.text("question").rstrip()
    return question if not question or question.endswith(":") else f"{question}\n\nAnswer:"


def _contrast_answer(record: Record) -> tuple[str, tuple[str, ...]]:
    """Options in alphabetical order: their place must not tell which is gold."""
    gold, other = (
        record.text(f"answer_{which}_behavior") for which in ("matching", "not_matching")
    )
    return gold, tuple(sorted(_different(record, (gold, other))))


#: The first that fits is taken: a prompt that is written out goes before one that would be made
#: from other fields.
SCHEMAS = (
    Schema(
        name="options",
        fields=("prompt", "options", "label"),
        prompt=_written_prompt,
        answers=_labelled_options,
    ),
    Schema(
        name="answers", fields=("prompt", "answer"), prompt=_written_prompt, answers=_free_answer
    ),
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
)
