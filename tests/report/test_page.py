"""A run folder drawn as a page: what it holds, whatever the study."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loclin.report.figures import PALETTE, Curve, draw_curves
from loclin.report.glance import glance
from loclin.report.page import build
from loclin.report.section import Missing, Section, Table, made
from loclin.report.words import VERDICTS, Look
from loclin.run.record import Record
from loclin.run.rows import Claim, Row
from tests.rows import WORDS

ATTACK = "<script>alert(1)</script>"
ROWS = [Row(quantity="q", value=0.25 * k, low=0.0, high=1.0, context={"k": k}) for k in (1, 2, 3)]
CLAIM = Claim(
    **WORDS | {"rule": "above 0"},
    value=0.5,
    low=0.25,
    high=0.75,
    n=3,
    unit="model",
    p=0.9,
    p_holm=1.0,
    p_against=0.0123,
    p_against_holm=0.0246,
    verdict="refuted",
    least_effect="slope: 0.61",
    halved="inconclusive",
    doubled="refuted",
    agree="2 of 3",
)


def sections(rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()) -> list[Section]:
    curve = Curve(rows=rows, label="measured", colour=PALETTE[0])
    figure = draw_curves(
        "line", f"Values of {ATTACK}.", [curve], over="k", labels=("k", "q"), title="A line"
    )
    table = Table(
        caption="Values",
        header=("k", "q", "note"),
        rows=[(str(r.context["k"]), f"{r.value}", "long") for r in rows],
        brief=(0, 1),
        chosen="2",
    )
    shown = Section(
        title="Is it straight?",
        question=settings["question"],
        figures=[figure],
        sees=["It rises."],
        tables=[table],
        brief=True,
        follows=["Go up to 0.5."],
    )
    hidden = Section(title="More", question="", figures=[], sees=["Only on the page."])
    return [shown, hidden]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    record = Record(tmp_path / "run")
    record.open_study("toy-model", {"question": f"Is {ATTACK} it?"}, device="cpu", kind="toy")
    record.write_results("toy-model", ROWS, {})
    record.write_claims("toy-model", [CLAIM])
    record.close_study("toy-model", 1.0, ["3 read"])
    record.open_study("other-model", {}, device="cpu", kind="toy")
    return tmp_path / "run"


def test_a_page_holds_claims_figures_tables_sentences_and_what_is_to_come(folder: Path) -> None:
    page = build(folder, lambda kind: sections, planned=["third-model"]).read_text()
    for text in ("straight", "0.5 [0.25, 0.75]", "Is it straight?", "It rises.", "3 read", "0.75"):
        assert text in page
    assert "Still to come:</b> third-model" in page
    assert "Not finished, and not on this page:</b> other-model" in page
    assert page.count("<figure>") == 1
    assert (folder / "figures" / "toy-model" / "line.svg").exists()
    markdown = (folder / "report.md").read_text()
    assert "| **refuted** | straight |" in markdown  # p after Holm of the verdict's direction
    assert "| 0.025 |" in markdown
    for text in (
        "n = 3 models",
        "against it 0.012, after Holm 0.025",
        "2 of 3 models beyond",
        "0.61",
    ):
        assert text in page
    assert "| 2 | 0.5 | long |" in markdown


def test_the_top_says_what_follows_and_a_study_begins_with_its_answer(folder: Path) -> None:
    page = build(folder, lambda kind: sections, titles={"toy": "Is it so?"}).read_text()
    places = [
        page.index(text)
        for text in (
            "<h2>What follows</h2>",
            "<li>Go up to 0.5.</li>",
            "<h2>Claims</h2>",
            "<li>Refuted: “straight” (1 of 1).</li>",
            "<details>",
            '<span class="verdict refuted">',
            "<h2>Is it so?</h2>",
            "<p>Go up to 0.5.</p>\n<p>Refuted: “straight” (straight).</p>",
            "<h3>Is it straight?</h3>",
        )
    ]
    assert places == sorted(places)
    assert "Go up to 0.5." in (folder / "report.md").read_text()


@pytest.mark.parametrize(("word", "look"), VERDICTS.items())
def test_a_verdict_has_one_colour_on_the_page_and_in_the_figure(
    word: str, look: Look, folder: Path
) -> None:
    page = build(folder, lambda kind: sections).read_text()
    name = word.replace(" ", "-")
    light, dark = (f".{name} {{ color: {colour}; }}" for colour in (look.light, look.dark))
    assert page.index(light) < page.index("prefers-color-scheme: dark") < page.index(dark)
    assert look.light in glance([replace(CLAIM, verdict=word)]).svg


def test_no_text_reaches_the_page_unescaped(folder: Path) -> None:
    assert "<script" not in build(folder, lambda kind: sections).read_text()


def test_the_same_record_gives_the_same_page(folder: Path) -> None:
    first = build(folder, lambda kind: sections).read_bytes()
    assert build(folder, lambda kind: sections).read_bytes() == first


def test_an_unfinished_study_shows_the_sections_that_its_rows_suffice_for(folder: Path) -> None:
    def begun(
        rows: Sequence[Row], settings: Mapping[str, Any], skip: Missing = ()
    ) -> list[Section]:
        plain = Section(title="Is there", question="", figures=[], sees=[])
        later = Section(title="Is not", question="", figures=[], sees=[])
        parts = [lambda: plain, lambda: later if rows[7].value else plain]
        return sections(rows, settings) if settings.get("question") else made(parts, skip)

    so_far = {"other-model": ROWS}
    page = build(folder, lambda kind: begun, so_far=lambda n: so_far.get(n, [])).read_text()
    assert "Is there" in page
    assert "Is not" not in page
    assert "not finished: this is what is there so far" in page
    with pytest.raises(IndexError):  # of a finished study nothing is left out
        begun(ROWS, {})


def test_a_folder_without_a_finished_study_has_a_page_of_what_is_planned(tmp_path: Path) -> None:
    page = build(tmp_path / "new", lambda kind: sections, planned=["a", "b"]).read_text()
    assert "Still to come:</b> a, b" in page


def test_a_study_that_is_measured_again_is_not_drawn_as_it_was(folder: Path) -> None:
    drawn: dict[str, Any] = {}
    build(folder, lambda kind: sections, planned=["toy-model"], drawn=drawn)
    assert not drawn


def test_a_study_that_was_drawn_is_not_drawn_again(folder: Path) -> None:
    drawn: dict[str, Any] = {}
    first = build(folder, lambda kind: sections, drawn=drawn).read_bytes()
    assert set(drawn) == {"toy-model"}

    def fail(kind: str) -> Any:
        raise AssertionError(kind)

    assert build(folder, fail, drawn=drawn).read_bytes() == first
