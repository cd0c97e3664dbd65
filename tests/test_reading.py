"""Records of every kind through a command: its loss and score are those of the texts that
docs/data.md spells out, written here by hand.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from loclin.cli import main
from loclin.seeds import seeded
from loclin.tasks.batch import collate, exact_match, mean_answer_loss
from loclin.tasks.choices import choose, collate_choices
from loclin.tasks.example import Example
from tests.tasks.test_tokens import BEGIN, bytes_in_pairs

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINGS = [
    f"{a} {b}"
    for a in ("red", "cold", "old", "wet", "big", "new")
    for b in ("cat", "dog", "sun", "mat")
]
TRUE = [len(thing) % 2 == 0 for thing in THINGS]
YES_NO, LETTERS = (" yes", " no"), (" A", " B")
QUICK = (
    *("--direction", "gradient", "--examples", "64", "--folds", "2", "--per-decade", "1"),
    *("--precision", "0.9", "--smallest", "1e-1", "--curvature", "finite differences"),
)


def each(make: Callable[[str, bool], Any]) -> list[Any]:
    return [make(thing, true) for thing, true in zip(THINGS, TRUE, strict=True)]


def chosen(prompt: str, options: tuple[str, str] = YES_NO) -> list[Example]:
    """What is read: options, and the first of them where it is true."""
    return each(
        lambda x, t: Example(prompt=prompt.format(x), answer=options[not t], options=options)
    )


def free(prompt: str, answer: str, *also: str) -> list[Example]:
    return each(
        lambda x, t: Example(
            prompt=prompt.format(x),
            answer=answer.format(x),
            also=tuple(a.format(x) for a in also),
        )
    )


def table(rows: Sequence[Mapping[str, Any]], mark: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Files as people have them, further words of the command, and what is read of them."""

    files: Mapping[str, str]
    read: list[Example]
    words: Sequence[str] = ()
    says: str = ""


STATED = chosen("Statement: The {} is big.\nQuestion: Is the statement true?\nAnswer:")
STATEMENTS = each(lambda x, t: {"statement": f"The {x} is big.", "label": int(t), "city": x[:-2]})
OTHERS = each(lambda x, t: {"text": f"The {x} is big.", "truth": str(t), "city": x[:-2]})
ASKED = each(
    lambda x, t: {"prompt": f"Is the {x} big?", "options": ["yes", "no"], "label": int(not t)}
)
TALKS = each(
    lambda x, t: {
        "messages": [
            {"role": "user", "content": f"Is the {x} big?"},
            {"role": "assistant", "content": "yes" if t else "no"},
        ],
        "options": ["yes", "no"],
    }
)
KINDS = {
    "csv": Kind(files={"m.csv": table(STATEMENTS)}, read=STATED),
    "tsv": Kind(files={"m.tsv": table(STATEMENTS, "\t")}, read=STATED),
    "semicolons": Kind(files={"m.csv": table(STATEMENTS, ";")}, read=STATED),
    "group": Kind(files={"m.csv": table(STATEMENTS)}, read=STATED, words=("--group", "city")),
    "fields": Kind(
        files={"m.csv": table(OTHERS)},
        read=STATED,
        words=("--fields", "statement=text", "label=truth"),
    ),
    "template": Kind(
        files={"m.csv": table(STATEMENTS)},
        read=chosen("The {} is big. True?"),
        words=("--template", "{statement} True?"),
    ),
    "options": Kind(files={"m.jsonl": lines(ASKED)}, read=chosen("Is the {} big?")),
    "cells": Kind(
        files={"m.csv": table([row | {"options": "yes|no"} for row in ASKED])},
        read=chosen("Is the {} big?"),
    ),
    "arrays": Kind(
        files={"all/m.json": json.dumps(ASKED), "all/n.json": json.dumps(ASKED)},
        read=chosen("Is the {} big?") * 2,
        says="2 tasks (m 24, n 24)",
    ),
    "classes": Kind(
        files={"m.jsonl": lines(each(lambda x, t: {"prompt": x, "label": "yes" if t else "no"}))},
        read=chosen("{}"),
    ),
    "letters": Kind(
        files={
            "m.csv": table(
                each(lambda x, t: {"question": x, "A": "big", "B": "not", "answer": "BA"[t]})
            )
        },
        read=chosen("{}\nA. big\nB. not\nAnswer:", LETTERS),
    ),
    "boolq": Kind(
        files={
            "m.jsonl": lines(
                each(lambda x, t: {"question": "is it big", "passage": f"The {x}.", "answer": t})
            )
        },
        read=chosen("The {}.\nQuestion: is it big?\nAnswer:"),
    ),
    "gsm8k": Kind(
        files={
            "m.jsonl": lines(
                each(
                    lambda x, t: {
                        "question": f"{x} plus 1?",
                        "answer": f"1+{len(x)}\n#### 1,00{len(x)}",
                    }
                )
            )
        },
        read=each(
            lambda x, t: Example(prompt=f"Question: {x} plus 1?\nAnswer:", answer=f" 100{len(x)}")
        ),
        says="24 answers are the number after ####",
    ),
    "lists": Kind(
        files={
            "m.jsonl": lines(each(lambda x, t: {"prompt": x, "answer": [f"a {x}", f"the {x}"]}))
        },
        read=free("{}", " a {}", " the {}"),
    ),
    "messages": Kind(
        files={"m.jsonl": lines(TALKS)},
        read=chosen("user: Is the {} big?\nassistant:"),
        says="--chat takes the model's own template",
    ),
    "chat": Kind(
        files={"m.jsonl": lines(TALKS)},
        read=chosen("<s>[user]Is the {} big?[assistant]", ("yes", "no")),
        words=("--chat",),
        says="prompts begin with '<s>' themselves: no second one",
    ),
    "system": Kind(
        files={"m.jsonl": lines(ASKED)},
        read=chosen("<s>[system]Purr.[user]Is the {} big?[assistant]", ("yes", "no")),
        words=("--chat", "--system", "Purr."),
    ),
}


@pytest.fixture(scope="module")
def parts(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny model with a chat template, and its folder."""
    tokenizer, where = bytes_in_pairs(BEGIN), tmp_path_factory.mktemp("model")
    tokenizer.chat_template = TEMPLATE
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    with seeded(0):
        config = LlamaConfig(
            **sizes, num_attention_heads=2, vocab_size=len(tokenizer), initializer_range=0.5
        )
        model = LlamaForCausalLM(config).eval()
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where, model, tokenizer


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_record_is_measured_as_it_is_spelled_out(
    name: str,
    parts: tuple[Path, PreTrainedModel, PreTrainedTokenizerBase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, model, tokenizer = parts
    kind = KINDS[name]
    for file, text in kind.files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loclin.report.figures.drawn_svg", lambda figure: "")
    data = next(iter(kind.files)).split("/")[0]
    main(["radius", "--model", str(folder), "--data", data, *QUICK, *kind.words, "--out", "run"])
    (rows,) = (json.loads(path.read_text()) for path in Path("run").glob("*/results.json"))
    found = {row["quantity"]: row["value"] for row in rows}
    with torch.no_grad():
        loss = float(mean_answer_loss(model, collate(kind.read, tokenizer)))
        if kind.read[0].options:
            right = choose(model, collate_choices(kind.read, tokenizer))
        else:
            right = exact_match(model, collate(kind.read, tokenizer))
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["score_here"] == pytest.approx(float(right.float().mean()))
    assert kind.says in " ".join(
        next(iter(json.loads(Path("run/run.json").read_text())["notes"].values()))
    )


def test_any_right_answer_of_a_list_counts(
    parts: tuple[Path, PreTrainedModel, PreTrainedTokenizerBase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first is never what the model says; where the second is, the answer is right."""
    folder, model, tokenizer = parts
    rows, said = [], 0
    for thing in THINGS:
        with torch.no_grad():
            likeliest = model(**tokenizer(thing, return_tensors="pt")).logits[0, -1].argmax()
        text = tokenizer.decode([int(likeliest)])
        written = text.strip() and text.isascii() and text[0].isspace()
        said += bool(written)
        rows.append({"prompt": thing, "answer": ["never!", text if written else "nor this"]})
    (tmp_path / "m.jsonl").write_text(lines(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loclin.report.figures.drawn_svg", lambda figure: "")
    main(["radius", "--model", str(folder), "--data", "m.jsonl", *QUICK, "--out", "run"])
    (path,) = Path("run").glob("*/results.json")
    found = {row["quantity"]: row["value"] for row in json.loads(path.read_text())}
    assert said > 0
    assert found["score_here"] == pytest.approx(said / len(THINGS))
