"""From the names of a model and of data to a problem: real files, small models."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.cli import main
from loclin.errors import LoclinError
from loclin.models import load
from loclin.options import LoadOptions

Models = dict[str, PreTrainedModel]
Tokenizers = dict[str, PreTrainedTokenizerBase]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path, families: Models, tokenizers: Tokenizers) -> Path:
    families["llama"].save_pretrained(tmp_path / "llama")
    tokenizers["llama"].save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [f"{town} is {i},{i % 2},{town}" for town in "abcdefghij" for i in range(4)]
    (tmp_path / "towns.csv").write_text("\n".join(["statement,label,town", *rows]))
    return tmp_path / "towns.csv"


def options(folder: Path, data: Path, **more: object) -> LoadOptions:
    return LoadOptions(model=str(folder), data=(str(data),), device="cpu", **more)  # type: ignore[arg-type]


def test_a_column_keeps_its_groups_in_one_split(folder: Path, table: Path) -> None:
    problem = load(options(folder, table, group="town"))
    towns = {n: {e.group for e in part["towns"]} for n, part in problem.examples.items()}
    assert sum(map(len, towns.values())) == len(set().union(*towns.values())) == 10
    assert problem.notes[0] == "towns.csv: 40 read, 40 kept in 1 task (towns 40)"


def test_conversations_go_through_the_model_s_own_template(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": a}]}
        for i, a in enumerate(["yes", "no"] * 20)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = tmp_path / "chat.jsonl"
    assert any("--chat takes the model's own" in note for note in load(options(folder, data)).notes)
    with pytest.raises(LoclinError, match="a chat template for --chat, found none"):
        load(options(folder, data, chat=True))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    problem = load(options(folder, data, chat=True, system="Be brief."))
    for e in problem.examples["test"]["chat"]:
        assert e.prompt.startswith("<s>system: Be brief.\nuser: ")
        assert e.prompt.endswith("?\nassistant: ")
        row = problem.collate([e]).input_ids[0].tolist()
        assert row.count(problem.tokenizer.bos_token_id) == 1
        assert problem.tokenizer.decode(row, skip_special_tokens=True).endswith(
            f"assistant: {e.answer}"
        )


def test_tokens_that_the_embedding_does_not_have_are_dropped(folder: Path, table: Path) -> None:
    """A padding token was added to the tokenizer, and a word; the embedding was not made longer."""
    problem = load(options(folder, table))
    longer = problem.tokenizer
    longer.add_special_tokens({"pad_token": "[PAD]"})
    longer.add_tokens(["is 3"])
    longer.save_pretrained(folder)
    found = load(options(folder, table))
    assert "10 with tokens that the model's embedding does not have" in found.notes[0]
    assert 0.0 <= found.score("test", "towns") <= 1.0


@pytest.mark.parametrize("command", ["steer", "search", "radius", "recovery", "reproduce"])
def test_every_command_that_reads_data_has_the_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("fields", "group", "chat", "system", "template"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "--group city",
            "a field 'city' for 'group', found the fields 'statement', 'label'",
        ),
        ("--fields prompt", "expected FIELD=COLUMN"),
        ("--system hello", "expected --chat with --system"),
        ("--chat", "a chat template for --chat, found none"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, table: Path, words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "run"
    asked = ["radius", "--model", str(folder), "--data", str(table), "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--direction", "gradient", *words.split()])
    assert ended.value.code == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("loclin: ")
    assert line in printed
