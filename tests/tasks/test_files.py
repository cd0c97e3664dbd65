import csv
import io
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.tasks.data import TaskData
from loclin.tasks.files import read_file, read_folder, read_hub
from tests.tasks.test_tokens import damaged

ROWS = [
    {"question": "do cats purr", "passage": "Cats purr.", "answer": True},
    {"question": "do cats bark", "passage": "Cats purr.", "answer": False},
]
LINES = "\n".join(map(json.dumps, ROWS))


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES + "\n\n",
        LINES.replace("\n", "\r\n"),
        "\ufeff" + LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
    ],
    ids=["lines", "blank lines", "Windows", "byte order mark", "array", "indented array"],
)
def test_lines_and_arrays_give_the_same_examples(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cats.jsonl"
    path.write_bytes(text.encode())
    data = read_file(path)
    assert data.summary() == "cats.jsonl: 2 read, 2 kept in 1 task (cats 2)"
    assert [e.answer for e in data.examples["cats"]] == [" yes", " no"]
    assert read_file(str(path)) == data


def test_a_line_ends_only_where_json_says_so(tmp_path: Path) -> None:
    """U+2028 and its like end a line for Python's splitlines, and may stand in a JSON text."""
    path = tmp_path / "odd.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85c", "answer": "d"}', encoding="utf-8")
    assert read_file(path).examples["odd"][0].prompt == "a\u2028b\x85c"


def test_a_template_reaches_the_records(tmp_path: Path) -> None:
    (tmp_path / "cats.jsonl").write_text(LINES)
    data = read_file(tmp_path / "cats.jsonl", template="{question} ?")
    assert data.examples["cats"][0].prompt == "do cats purr ?"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "at least one record, found none in .*bad.jsonl: fill it"),
        (b" \n\n", "at least one record, found none"),
        (b"[]", "at least one record, found none in bad.jsonl"),
        (
            b'{"prompt": "a", "answer": "b"}\n\n{"prompt": ',
            r"found broken JSON \(Expecting value\) in .*bad.jsonl line 3: mend",
        ),
        (
            b'[{"prompt": "a",\n "answer" "b"}]',
            r"found broken JSON \(Expecting ':' delimiter\) in .*bad.jsonl line 2",
        ),
        (b"hello", r"broken JSON \(Expecting value\) in .* line 1"),
        (b"statement,label\nCats purr.,1\n", r"found what looks like a table .*: name it bad.csv"),
        (b"text\tlabel\nCats purr.\t1\n", "found what looks like a table .* or bad.tsv"),
        (b'{\n "prompt": "a",\n "answer": "b"\n}', "an object over several lines .* a list"),
        (b"PAR1\x15\x04", "found a Parquet file at .*bad.jsonl: save it as"),
        (b"\x1f\x8b\x08", "found a gzip archive"),
        ("{}".encode("utf-16"), "found UTF-16 text"),
        (
            b'{"prompt": "a", "answer": "b"}\n3',
            "a JSON object, found 3 in .*bad.jsonl line 2: write every record",
        ),
        (
            b'[{"prompt": "a", "answer": "b"}, null]',
            "a JSON object, found None in .*bad.jsonl record 2",
        ),
        (
            b'{"prompt": "a", "answer": "\xff"}',
            "UTF-8 text, found byte 0xff at position 27 of .*bad.jsonl: save",
        ),
        (
            b'{"prompt": ' + b"9" * 5000 + b"}",
            "nested too deeply or holds too long a number in .*bad.jsonl line 1",
        ),
        (b'{"prompt": "a", "answer": "b"}\n{"text": "a"}', "found 'text' in .*bad.jsonl line 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, content: bytes, line: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(LoclinError, match=line) as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


TRUTH = 'statement,label,city\n"Rome, of Italy, is a city.",1,Rome\nRome is a river.,0,Rome\n'


def test_tables_are_read_with_their_columns(tmp_path: Path) -> None:
    """Commas, semicolons or tabs; cells in quotes; a column that groups."""
    (tmp_path / "truth.csv").write_text("\ufeff" + TRUTH)
    data = read_file(tmp_path / "truth.csv", columns={"group": "city"})
    prompts = [
        f"Statement: {text}\nQuestion: Is the statement true?\nAnswer:"
        for text in ("Rome, of Italy, is a city.", "Rome is a river.")
    ]
    assert [e.prompt for e in data.examples["truth"]] == prompts
    assert [e.answer for e in data.examples["truth"]] == [" yes", " no"]
    assert {e.group for e in data.examples["truth"]} == {"Rome"}
    for name, mark in (("half.csv", ";"), ("tabs.csv", "\t"), ("tabs.tsv", "\t")):
        (tmp_path / name).write_text(f"text{mark}target\n\n1, 2{mark}3\n,{mark}\n")
        made = read_file(tmp_path / name, columns={"prompt": "text", "answer": "target"})
        ((e,),) = made.examples.values()
        assert (e.prompt, e.answer, made.read) == ("1, 2", " 3", 2)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a,a\n1,2\n", "columns of different names, found 'a', 'a' in .*bad.csv"),
        ("a,b\n1,2,3\n", "2 cells as in the first line, found 3 in .*bad.csv line 2"),
        ('a,b\n"1,2\n3,4\n', "rows of a table, found unexpected end of data in .* line 3"),
        ("a,b\n1,2\n", "found 'a', 'b' in .*bad.csv line 2: rename the fields, or name"),
        ("a,b\n", "at least one record"),
        (",\n", "at least one record"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, content: str, line: str
) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(LoclinError, match=line):
        read_file(tmp_path / "bad.csv")


def test_a_folder_of_arrays_and_tables_is_a_task_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "cats.json").write_text(json.dumps(ROWS))
    (tmp_path / "truth.csv").write_text(TRUTH)
    (tmp_path / "notes.txt").write_text("nothing")
    data = read_folder(tmp_path)
    assert data.summary() == f"{tmp_path}: 4 read, 4 kept in 2 tasks (cats 2, truth 2)"


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.csv"])
def test_damaged_files_are_refused_or_right(tmp_path: Path, name: str) -> None:
    """Hundreds of damaged files: one line, or examples that can be asked."""
    rows: list[dict[str, Any]] = [
        {"prompt": "is it?", "options": ["yes", "no"], "label": 0, "group": 3, "task": "a"},
        {"prompt": "is it not?", "options": ["yes", "no"], "label": "no", "task": "b"},
    ]
    kinds: list[list[dict[str, Any]]] = [
        [*rows, {**rows[0], "prompt": "c", "label": 1}],
        [{"prompt": "a", "answer": ["b", "c"]}, {"prompt": "d", "answer": "e\n#### 1,200"}],
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
        [{"prompt": "fine", "label": "good"}, {"prompt": "poor", "label": True}],
        ROWS,
    ]
    rng, path, refused = random.Random(name), tmp_path / name, 0
    for i in range(150):
        kind = kinds[i % len(kinds)]
        text = json.dumps(kind) if name == "pool.json" else "\n".join(map(json.dumps, kind))
        path.write_bytes(damaged((TRUTH if name == "pool.csv" else text).encode(), rng))
        try:
            data = read_file(path)
            check(data)
            assert data.read == rows_of(path)
        except LoclinError as error:
            refused += "\n" not in str(error)
    assert 10 < refused < 150


def rows_of(path: Path) -> int:
    """How many records a file holds, by the formats' own rules."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        return sum(any(cell.strip() for cell in row) for row in csv.reader(io.StringIO(text))) - 1
    array = text.lstrip().startswith("[")
    return len(json.loads(text)) if array else sum(bool(x.strip()) for x in text.split("\n"))


def check(data: TaskData) -> None:
    for e in (e for examples in data.examples.values() for e in examples):
        assert e.prompt.strip()
        assert e.answer.strip()
        assert not e.options or e.answer in e.options
        (e.prompt + e.answer + "".join(e.options + e.also) + e.group).encode()


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoclinError, match=r"found nothing at .*none.jsonl: check the path"):
        read_file(tmp_path / "none.jsonl")
    with pytest.raises(LoclinError, match=r"found the folder .*: name a file in it"):
        read_file(tmp_path)


def test_every_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(json|csv|tsv)(?: --fields (.*?))?\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 12
    for ending, fields, block in blocks:
        path = tmp_path / f"documented.{ending}"
        path.write_text(block, encoding="utf-8")
        columns = dict(pair.split("=") for pair in fields.split())
        data = read_file(path, columns=columns)
        assert data.kept == block.count("\n") - (ending != "json")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of the test's own, and no network."""
    datasets = pytest.importorskip("datasets")
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "prepared"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_folder_reads_like_a_file(hub: Path) -> None:
    folder = hub / "cats"
    folder.mkdir()
    (folder / "train.jsonl").write_text(LINES)
    (folder / "test.jsonl").write_text(LINES)
    (hub / "cats.jsonl").write_text(LINES)
    data = read_hub(str(folder), split="test")
    assert data.examples == read_file(hub / "cats.jsonl").examples
    assert data.summary() == f"{folder} (test): 2 read, 2 kept in 1 task (cats 2)"
    templated = read_hub(str(folder), template="{question} ?")
    assert templated.examples["cats"][1].prompt == "do cats bark ?"
    with pytest.raises(
        LoclinError,
        match=r"with a split 'validation', found ValueError \(Unknown split .*test.*cats: mend",
    ):
        read_hub(str(folder), split="validation")


def test_a_broken_folder_is_refused_in_one_line(
    hub: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = hub / "broken"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt":')
    with pytest.raises(
        LoclinError, match=r"found .*JSON parse error.* in .*broken: mend the files"
    ) as caught:
        read_hub(str(folder))
    assert "\n" not in str(caught.value)
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(LoclinError, match=r"found 'text' in .*broken row 1: rename the fields"):
        read_hub(str(folder))
    assert capfd.readouterr().err == ""


def test_without_a_network_the_line_says_how_to_fetch_it(hub: Path) -> None:
    fetch = (
        "found ConnectionError .*: check the name, or fetch it .*: hf download --repo-type dataset "
        "google/boolq$"
    )
    with pytest.raises(LoclinError, match=fetch):
        read_hub("google/boolq")


def test_what_hf_download_fetched_is_found_without_a_network(hub: Path) -> None:
    """A snapshot as `hf download` leaves it."""
    commit = "0" * 40
    repository = hub / "hub" / "datasets--some--cats"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    data = repository / "snapshots" / commit / "data"
    data.mkdir(parents=True)
    (data / "train-00000-of-00001.jsonl").write_text(LINES)
    assert read_hub("some/cats").summary() == "some/cats (train): 2 read, 2 kept in 1 task (cats 2)"


@pytest.mark.parametrize("name", ["json", "a/b/c", "../none", "no such"])
def test_what_names_no_data_set_is_refused(hub: Path, name: str) -> None:
    with pytest.raises(LoclinError, match="a folder or a data set like google/boolq, found"):
        read_hub(name)


def test_without_the_extra_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: Any = sys.modules
    monkeypatch.setitem(modules, "datasets", None)
    with pytest.raises(LoclinError, match=r"found none: pip install 'loclin\[hub\]'"):
        read_hub("google/boolq")
