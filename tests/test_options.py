"""Options of loading: what is refused before anything is loaded."""

from pathlib import Path

import pytest

from loclin import models
from loclin.errors import LoclinError
from loclin.options import BUILT_IN, LoadOptions


def test_names_of_built_in_models_are_those_of_the_recipes() -> None:
    assert set(BUILT_IN) == set(models.BUILT_IN)


def test_a_model_that_is_not_built_in_needs_data() -> None:
    LoadOptions(model="statements").check_loading()
    with pytest.raises(LoclinError, match=r"did you mean the built-in --model sequences\?"):
        LoadOptions(model="sequence").check_loading()


def test_a_file_of_data_has_to_be_there(tmp_path: Path) -> None:
    there = tmp_path / "mine.jsonl"
    there.write_text("{}")
    LoadOptions(model="other", data=(str(there), "google/boolq")).check_loading()
    with pytest.raises(LoclinError, match=r"found nothing at none\.jsonl: check the path"):
        LoadOptions(model="other", data=(str(there), "none.jsonl")).check_loading()


def test_a_misspelled_name_or_a_missing_folder_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is looked for on the hub for a minute."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for model, line in (
        ("sequences-smal", "did you mean sequences-small?"),
        ("models/mine", "a model folder, found nothing at models/mine: check the path"),
        ("/nowhere/at/all", "a model folder, found nothing at /nowhere/at/all"),
    ):
        with pytest.raises(LoclinError, match=line):
            LoadOptions(model=model, data=("google/boolq",)).check_loading()
    with pytest.raises(LoclinError, match="a data folder, found nothing at models/data"):
        LoadOptions(model="gpt2", data=("models/data",)).check_loading()
    for data, line in (
        (("fact",), "found 'fact': did you mean facts\\?"),
        (("self", "selv"), "did you mean self\\?"),
        (
            ("sequences", "facts"),
            "expected one built-in set of tasks or several files, found sequences, facts",
        ),
        (("zzz",), "found 'zzz': check the name"),
    ):
        with pytest.raises(LoclinError, match=line):
            LoadOptions(model="gpt2", data=data).check_loading()
    LoadOptions(model="gpt2", data=("self", "facts:a-b", "models")).check_loading()
    for there in ("gpt2", "Qwen/Qwen2.5-0.5B", "models"):
        LoadOptions(model=there, data=("google/boolq",)).check_loading()


def test_columns_are_named_by_pairs() -> None:
    options = LoadOptions(model="gpt2", data=("self",), fields=("prompt=text", "label=a=b"))
    options.check_loading()
    assert options.columns == {"prompt": "text", "label": "a=b"}
    assert LoadOptions(model="gpt2", group="city").columns == {"group": "city"}
    for pair in ("prompt", "prompt=", "prompts=text", "=text"):
        with pytest.raises(LoclinError, match=r"FIELD=COLUMN with a field among prompt, .*, found"):
            LoadOptions(model="gpt2", data=("self",), fields=(pair,)).check_loading()


def test_the_system_speaks_in_a_chat_about_questions() -> None:
    with pytest.raises(LoclinError, match="--chat with --system, found none: add --chat"):
        LoadOptions(model="gpt2", data=("a/b",), system="Be brief.").check_loading()
    with pytest.raises(LoclinError, match="questions for --chat, found self"):
        LoadOptions(model="gpt2", data=("self",), chat=True).check_loading()


def test_facts_have_forms_and_phrasings_of_their_own() -> None:
    for data in ("facts", "facts:a-b"):
        LoadOptions(model="gpt2", data=(data,), template="auto").check_loading()
    for options, line in (
        (LoadOptions(model="gpt2", data=("facts:yes",)), "completion, negated, .* found 'yes'"),
        (LoadOptions(model="gpt2", data=("facts",), template="{x}"), "found {x}: leave it out"),
        (LoadOptions(model="gpt2", data=("facts",), group="city"), "found group: leave it out"),
        (LoadOptions(model="gpt2", data=("self",), template="auto"), "alone .* found self: write"),
    ):
        with pytest.raises(LoclinError, match=line):
            options.check_loading()
