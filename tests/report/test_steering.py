"""The page and the table of one steering vector, from planted rows: what is said must be what the
rows hold.
"""

from pathlib import Path
from typing import Any

import pytest

from loclin.record import Record, Row
from loclin.report import build
from loclin.report.steering import ENTRY, KIND, print_steering, sections

CONFIG: dict[str, Any] = {
    "study": KIND,
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
    strength, routes, damage, prompts, texts = sections(ROWS, CONFIG)
    assert [d.name for s in (strength, routes, damage, prompts, texts) for d in s.figures] == [
        "layers", "dose", "cosines", "matrix", "kl", "perplexity", "prompts",
    ]  # fmt: skip
    said = flat(strength.sees)
    for words in (
        "added to the output of block 2 of 3: there its slope on the 64 prompts that choose is "
        "largest, 2 [1.9, 2.1] logits",
        "Strength 1 is as long as the difference that labels make there: 4.",
        "moves the logit difference of the 128 test prompts by 4 [3.8, 4.2] on average; 20 random "
        "directions of that length move it by "
        "-0.4 to 0.45.",
        "Labels at the same length: 3, 0.75 times that.",
        "Logit gradient at the same length: 2, 0.5 times that.",
    ):
        assert words in said
    assert (
        "p is against isotropic random directions, at least 0.048 with 20 of them. They are a "
        "narrow null" in said
    )
    (listing,) = strength.tables
    assert [list(r) for r in listing.rows] == [
        ["gradient step (E3)", "4 [3.8, 4.2]", "0.048", "0.125 [0, 0.25]", "0.75", "3 [2.9, 3.1]"],
        ["labels", "3 [2.8, 3.2]", "0.048", "0.125 [0, 0.25]", "0.75", "3 [2.9, 3.1]"],
        ["logit gradient", "2 [1.8, 2.2]", "0.048", "0.125 [0, 0.25]", "never", "not defined"],
        ["20 random directions", "-0.4 to 0.45", "–", "0.2 to 0.8", "–", "–"],
    ]
    told = flat(routes.sees)
    assert (
        "Block 2: cos(gradient step (E3), labels) = 0.6 [0.5, 0.7]; 5 % of random weight steps "
        "have more than 0.3, p = 0.01." in told
    )
    assert "Block 2: cos(labels, logit gradient) = 0.7 [0.65, 0.75]." in told
    assert "Block 1" not in told
    assert "positions where an answer is due" in damage.question
    harmed = flat(damage.sees)
    assert (
        "At strength 1 the vector from labels moves the next tokens of neutral text by 0.2 [0.167, "
        "0.25] nats a token" in harmed
    )
    assert "perplexity goes from 10 to 12.5." in harmed
    assert (
        "Gradient step (E3): 0.1 nats a token are reached at strength 0.75, where the logit "
        "difference has moved by 3 [2.9, 3.1]." in harmed
    )
    assert "Logit gradient: no strength reaches 0.1 nats a token." in harmed
    assert "Of random directions, 0.2 to 0.8 of the prompts." in flat(prompts.sees)
    assert list(texts.tables[0].header) == ["prompt", "strength -2", "strength 0", "strength 2"]


def test_what_steers_no_better_than_chance_or_not_at_all_is_said() -> None:
    chance = [
        r
        if r.quantity != "slope" or r.context["route"] != "labels"
        else row("slope", -0.4, -0.6, -0.2, null=0.5, p=0.2, **r.context)
        for r in ROWS
    ]
    assert (
        "Labels at the same length: -0.4. Logit gradient at the same length: 2, 0.5 times that."
        in flat(sections(chance, CONFIG)[0].sees)
    )
    weak = [
        r if r.quantity != "slope" else row("slope", 0.4, 0.3, 0.5, null=0.5, p=0.2, **r.context)
        for r in ROWS
    ]
    assert "times that" not in flat(sections(weak, CONFIG)[0].sees)
    assert "so that this is no more than chance does" in flat(sections(weak, CONFIG)[0].sees)
    assert "so that this is no more than chance does" not in flat(sections(ROWS, CONFIG)[0].sees)
    none = [
        row("layer_slope", -1.0, -2.0, 0.1, layer=r.context["layer"])
        if r.quantity == "layer_slope"
        else r
        for r in ROWS
    ]
    assert "No block has a slope above 0" in flat(sections(none, CONFIG)[0].sees)


def test_one_route_at_given_layers_has_fewer_figures() -> None:
    few = [
        r
        for r in [*LAYERS[3:], row("chosen_layer", 0.0, layer=0), *effects(), *BAND]
        if r.context.get("route") in (None, "labels")
    ]
    found = sections(few, CONFIG)
    assert len(found) == 4  # no texts
    assert [d.name for s in found for d in s.figures] == ["dose", "kl", "perplexity", "prompts"]
    assert "output of blocks 2, 0, as asked." in flat(found[0].sees)
    assert "there: 4, 2." in flat(found[0].sees)
    assert list(found[1].sees) == ["One route alone was made: nothing to compare."]


def test_a_record_becomes_a_page_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(tmp_path / "run")
    record.open_study(
        ENTRY, {k: v for k, v in CONFIG.items() if k != "study"}, device="test", kind=KIND
    )
    print_steering(record.folder)  # begun, and not finished
    assert capsys.readouterr().out == ""
    record.write_results(ENTRY, ROWS, {})
    record.close_study(ENTRY, 1.0, ["+ is towards ' yes'"])
    text = build(record.folder).read_text()
    assert text.count("<figure>") == 7
    assert "<script" not in text
    assert "&lt;script&gt;alert(2)&lt;/script&gt; | well now" in text
    assert "| <script>alert(2)</script> \\| well now |" in (record.folder / "report.md").read_text()
    print_steering(record.folder)
    said = flat(capsys.readouterr().out.split("\n"))
    for words in ("0.75", "+ is towards ' yes'.", "Block 2: cos(labels, logit gradient) = 0.7"):
        assert words in said
    other = Record(tmp_path / "other")
    other.open_study("recovery", {}, device="test")
    print_steering(other.folder)
    assert capsys.readouterr().out == ""
