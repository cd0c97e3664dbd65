"""The sections of one steering vector, from planted rows: they say what the rows hold."""

from pathlib import Path
from typing import Any

import pytest

from loclin.report.page import build
from loclin.report.terminal import print_record
from loclin.run.record import Record
from loclin.run.rows import Row
from loclin.studies.steering.page import sections

SETTINGS: dict[str, Any] = {
    "study": "steer",
    "estimand": "E3",
    "choose": 64,
    "test": 128,
    "kl": 0.1,
    "null": 100,
    "route": "gradient",
}
ROUTES = ("gradient", "labels", "logits")


def row(
    quantity: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    **more: Any,
) -> Row:
    null, p, n = more.pop("null", None), more.pop("p", None), more.pop("n", 1)
    return Row(
        quantity=quantity, value=value, low=low, high=high, null=null, p=p, n=n, context=more
    )


def effects() -> list[Row]:
    made = []
    for i, route in enumerate(ROUTES):
        slope = 4.0 - i
        made += [
            row("change", slope * s, slope * s - 0.1, slope * s + 0.1, route=route, strength=s)
            for s in (-1.0, 0.0, 1.0)
        ]
        made.append(row("slope", slope, slope - 0.2, slope + 0.2, route=route, null=0.5, p=0.048))
        made.append(row("anti_steerable", 0.125, 0.0, 0.25, route=route))
        made += [row("prompt_slope", slope + j / 10, route=route, prompt=j) for j in range(-3, 4)]
        made += [
            row("kl", s * s / 5, s * s / 6, s * s / 4, route=route, strength=s)
            for s in ((-1.0, 0.0, 1.0) if not i else (1.0,))
        ]
        made.append(row("perplexity", 12.5, route=route, strength=1.0, null=10.0))
        made.append(row("strength_at_kl", 0.75 if i < 2 else None, route=route, kl=0.1))
        made.append(
            row(
                "change_at_kl",
                3.0 if i < 2 else None,
                2.9 if i < 2 else None,
                3.1 if i < 2 else None,
                route=route,
                kl=0.1,
            )
        )
    return made


def agreements() -> list[Row]:
    made = []
    for layer in range(3):
        made += [
            row(
                "cosine",
                0.6,
                0.5,
                0.7,
                route="gradient",
                layer=layer,
                null=0.3,
                p=0.01,
                **{"with": "labels"},
            ),
            row("cosine", 0.8, 0.7, 0.9, route="gradient", layer=layer, **{"with": "logits"}),
            row("cosine", 0.7, 0.65, 0.75, route="labels", layer=layer, **{"with": "logits"}),
            row("random_cosine", 0.0, -0.35, 0.35, layer=layer, n=200),
        ]
    return made


BAND = [
    row("random_slope", 0.0, -0.4, 0.45, n=20),
    *(row("random_change", 0.0, -0.4, 0.45, strength=s, n=20) for s in (-1.0, 0.0, 1.0)),
    row("random_anti_steerable", 0.5, 0.2, 0.8, n=20),
]
LAYERS = [
    *(row("layer_slope", float(n), n - 0.1, n + 0.1, layer=n) for n in range(3)),
    *(row("length", 2.0 + n, layer=n) for n in range(3)),
    row("chosen_layer", 2.0, layer=2),
]
TEXTS = [
    row("generation", s, prompt="is it so ?", text=f"<script>alert({s:g})</script> | well\nnow")
    for s in (-2.0, 0.0, 2.0)
]
ROWS = [*agreements(), *LAYERS, *effects(), *BAND, *TEXTS]


def flat(lines: Any) -> str:
    return " ".join(" ".join(lines).split())


def test_the_page_says_what_the_rows_hold() -> None:
    strength, routes, damage, prompts, texts = sections(ROWS, SETTINGS)
    assert [d.name for s in (strength, routes, damage, prompts, texts) for d in s.figures] == [
        "layers", "dose", "cosines", "matrix", "kl", "perplexity", "prompts",
    ]  # fmt: skip
    assert [s.brief for s in (strength, routes, damage, prompts, texts)] == [1, 1, 0, 0, 0]
    assert strength.follows == [
        "The vector from gradient step (E3) belongs at the output of block 2, at a strength up to "
        "0.75: there neutral text moves by 0.1 nats a token, and the logit difference by 3 "
        "[2.9, 3.1]."
    ]
    sees = flat(strength.sees)
    for words in (
        "output of block 2 of 3",
        "on the 64 prompts that choose is largest, 2 [1.9, 2.1]",
        "labels make there: 4.",
        "of the 128 test prompts by 4 [3.8, 4.2] on average; 20 random directions",
        "move it by -0.4 to 0.45.",
        "Labels at the same length: 3, 0.75 times that.",
        "Logit gradient at the same length: 2, 0.5 times that.",
        "at least 0.048 with 20 of them. They are a narrow null",
    ):
        assert words in sees
    (table,) = strength.tables
    assert [list(r) for r in table.rows] == [
        ["gradient step (E3)", "4 [3.8, 4.2]", "0.048", "0.125 [0, 0.25]", "0.75", "3 [2.9, 3.1]"],
        ["labels", "3 [2.8, 3.2]", "0.048", "0.125 [0, 0.25]", "0.75", "3 [2.9, 3.1]"],
        ["logit gradient", "2 [1.8, 2.2]", "0.048", "0.125 [0, 0.25]", "never", "not defined"],
        ["20 random directions", "-0.4 to 0.45", "–", "0.2 to 0.8", "–", "–"],
    ]
    assert list(routes.sees) == [
        "Block 2: cos(gradient step (E3), labels) = 0.6 [0.5, 0.7]; 5 % of random weight steps "
        "have more than 0.3, p = 0.01.",
        "Block 2: cos(gradient step (E3), logit gradient) = 0.8 [0.7, 0.9].",
        "Block 2: cos(labels, logit gradient) = 0.7 [0.65, 0.75].",
    ]
    for words in ("intervals over prompts and over gradient batches", "100 random steps"):
        assert words in routes.question
    assert "positions where an answer is due" in damage.question
    harmed = flat(damage.sees)
    for words in (
        "the vector from labels moves the next tokens of neutral text by 0.2 [0.167, 0.25] nats",
        "perplexity goes from 10 to 12.5.",
        "Gradient step (E3): 0.1 nats a token are reached at strength 0.75",
        "has moved by 3 [2.9, 3.1].",
        "Logit gradient: no strength reaches 0.1 nats a token.",
    ):
        assert words in harmed
    assert "Of random directions, 0.2 to 0.8 of the prompts." in prompts.sees
    assert list(texts.tables[0].header) == ["prompt", "strength -2", "strength 0", "strength 2"]


def changed(quantity: str, value: float, *more: float, route: str | None = None) -> list[Row]:
    """The rows with other numbers of one quantity, of one route or of all."""
    return [
        row(quantity, value, *more, null=r.null, p=0.2, **r.context)
        if r.quantity == quantity and route in (None, r.context.get("route"))
        else r
        for r in ROWS
    ]


def test_what_steers_no_better_than_chance_or_not_at_all_is_said() -> None:
    one = flat(sections(changed("slope", -0.4, -0.6, -0.2, route="labels"), SETTINGS)[0].sees)
    assert "Labels at the same length: -0.4. Logit gradient at the same length: 2, 0.5 times" in one
    weak = flat(sections(changed("slope", 0.4, 0.3, 0.5), SETTINGS)[0].sees)
    assert "times that" not in weak
    assert "no more than chance does" in weak
    for slope in (0.4, -4.0):
        first = sections(changed("slope", slope, slope - 1, slope + 1), SETTINGS)[0]
        assert flat(first.follows).endswith(
            "steers no better than random directions do: do not use it."
        )
    assert "no more than chance does" not in flat(sections(ROWS, SETTINGS)[0].sees)
    none = flat(sections(changed("layer_slope", -1.0, -2.0, 0.1), SETTINGS)[0].sees)
    assert "No block has a slope above 0" in none


def test_one_route_at_given_layers_has_fewer_figures() -> None:
    few = [
        r
        for r in [*LAYERS[3:], row("chosen_layer", 0.0, layer=0), *effects(), *BAND]
        if r.context.get("route") in (None, "labels")
    ]
    found = sections(few, SETTINGS)
    assert len(found) == 4  # no texts
    assert [d.name for s in found for d in s.figures] == ["dose", "kl", "perplexity", "prompts"]
    assert "output of blocks 2, 0, as asked." in flat(found[0].sees)
    assert "there: 4, 2." in flat(found[0].sees)
    assert list(found[1].sees) == ["One route alone was made: nothing to compare."]


def test_a_record_becomes_a_page_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(tmp_path / "run")
    settings = {k: v for k, v in SETTINGS.items() if k != "study"}
    record.open_study("steer-m", settings, device="test", kind="steer")
    record.write_results("steer-m", ROWS, {})
    record.close_study("steer-m", 1.0, ["+ is towards ' yes'"])
    drawn: dict[str, Any] = {}
    page = build(record.folder, lambda kind: sections, drawn=drawn).read_text()
    assert page.count("<figure>") == 7
    assert "<script" not in page
    assert "&lt;script&gt;alert(2)&lt;/script&gt; | well now" in page
    assert "| <script>alert(2)</script> \\| well now |" in (record.folder / "report.md").read_text()
    print_record(record.folder, drawn)
    printed = flat(capsys.readouterr().out.split("\n"))
    for words in ("0.75", "Block 2: cos(labels, logit gradient) = 0.7", "Strength 1 is as long"):
        assert words in printed
    assert "where an answer is due" not in printed
