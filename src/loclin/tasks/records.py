"""One record of a data file, and prompts made from its fields by a template."""

from __future__ import annotations

import reprlib
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from loclin.errors import LoclinError


@dataclass(frozen=True, kw_only=True)
class Record:
    """Named fields, and where they were read.

    Attributes:
        where: for messages: "boolq.jsonl line 7".
        fields: the values, as JSON knows them.
    """

    where: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A field that holds text; "" where it is null or left out.

        Raises:
            LoclinError: it holds something else.

        >>> Record(where="line 1", fields={"answer": "purr"}).text("answer")
        'purr'
        """
        value = self.fields.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(f"text in {name!r}", shown(value), "write it in quotes")
        return self.writable(name, value)

    def name(self, name: str) -> str:
        """A field that names something: text or a whole number; "" where it is null or left out."""
        value = self.fields.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return str(value) if whole else self.text(name)

    def printed(self, name: str) -> str:
        """A field as a template shows it: text or a number; "" where it is null or left out."""
        value = self.fields.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        return self.text(name)

    def writable(self, name: str, value: str) -> str:
        """The text, if it can be written at all: JSON can spell half a character."""
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(
                f"whole characters in {name!r}", f"the half of one, {shown(value)},", "remove it"
            ) from None
        return value

    def with_fields(self, **fields: Any) -> Record:
        """The same with some fields more, or others."""
        return replace(self, fields={**self.fields, **fields})

    def error(self, expected: str, found: str, remedy: str) -> LoclinError:
        """One line that says where the record is."""
        return LoclinError(f"expected {expected}, found {found} in {self.where}: {remedy}")


def renamed(record: Record, columns: Mapping[str, str]) -> Record:
    """The record with columns of it under the names that the schemas have for them.

    Raises:
        LoclinError: the record has no such column.

    >>> renamed(Record(where="", fields={"q": "1 + 1 ="}), {"prompt": "q"}).text("prompt")
    '1 + 1 ='
    """
    for name, column in columns.items():
        if column not in record.fields:
            have = f"the fields {listed(record.fields)}"
            raise record.error(f"a field {column!r} for {name!r}", have, "change --fields")
    return record.with_fields(**{name: record.fields[c] for name, c in columns.items()})


def shown(value: object) -> str:
    """A value in an error message: shortened, on one line."""
    return reprlib.repr(value)


def listed(names: Iterable[str]) -> str:
    """Names in an error message, at most twelve of them.

    >>> listed(["prompt", "answer"])
    "'prompt', 'answer'"
    """
    names = list(names)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(map(repr, names[:12])) + more


@dataclass(frozen=True, kw_only=True)
class Template:
    """Pieces of literal text, each with the name of the field that follows it, or None."""

    pieces: tuple[tuple[str, str | None], ...]

    def fill(self, record: Record) -> str:
        """The template with the record's own fields in it; "" where all of them are empty.

        Raises:
            LoclinError: the record has no such field, or it holds neither text nor a number.
        """
        names = [name for _, name in self.pieces if name is not None]
        for name in names:
            if name not in record.fields:
                have = f"the fields {listed(record.fields)}"
                raise record.error(
                    f"the template's field {name!r}", have, "use one of these in --template"
                )
        values = {name: record.printed(name) for name in names}
        if not any(value.strip() for value in values.values()):
            return ""
        return "".join(literal + values.get(name or "", "") for literal, name in self.pieces)


def parse_template(text: str) -> Template:
    r"""Read a template: `{name}` is a field, `{{` and `}}` are braces, `\n` is a line break.

    A name is looked up as it stands, without attributes, indices or formats: a template can reach
    nothing but the record.

    Raises:
        LoclinError: unbalanced braces, a format, or no field at all.

    >>> filled = parse_template(r"{passage}\nQ: {question}?").fill
    >>> filled(Record(where="", fields={"passage": "Cats purr.", "question": "do cats purr"}))
    'Cats purr.\nQ: do cats purr?'
    """
    try:
        parsed = list(string.Formatter().parse(text.replace("\\n", "\n")))
    except ValueError as error:
        raise LoclinError(
            f"expected a template with fields like {{question}}, found {shown(text)} ({error}): "
            f"write {{{{ for a brace"
        ) from None
    for _, name, form, conversion in parsed:
        if name == "" or form or conversion:
            raise LoclinError(
                f"expected simple field names like {{question}} in the template, found "
                f"{shown(text)}: leave out formats and empty braces"
            )
    if all(name is None for _, name, _, _ in parsed):
        raise LoclinError(
            f"expected at least one field like {{question}} in the template, found {shown(text)}: "
            "name one"
        )
    return Template(pieces=tuple((literal, name) for literal, name, _, _ in parsed))
