"""What `loclin steer` may be asked, and where its files go."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loclin.errors import LoclinError
from loclin.steering import routes, search
from loclin.studies.steering import settings as module
from loclin.studies.steering.settings import SteerSettings

GOOD = SteerSettings(model="statements-small")


def test_the_run_folder_names_model_and_route() -> None:
    assert SteerSettings(model="some/model.7b").run_folder == Path("runs/steer-model.7b-labels")
    assert replace(GOOD, route="search").run_folder == Path("runs/steer-statements-small-search")
    assert replace(GOOD, out=Path("here")).run_folder == Path("here")


def test_winners_are_fewer_than_candidates_by_default() -> None:
    assert [replace(GOOD, n=n).checked().k for n in (2, 20, 40)] == [1, 2, 20]


def test_a_model_of_your_own_gets_one_route_and_counts_that_fit() -> None:
    own = module.preset("some/model")
    assert own.routes == ("labels",)
    assert (own.choose, own.test, own.texts) == (32, 64, 16)
    assert module.preset("statements-small") == GOOD
    assert replace(own, compare=("gradient",)).routes == ("labels", "gradient")


def test_the_routes_begin_with_the_one_that_was_asked_for() -> None:
    found = replace(GOOD, route="search", compare=("logits", "labels", "search")).routes
    assert found == ("search", "labels", "logits")


def test_where_the_vector_goes_decides_nothing_and_block_0_something(tmp_path: Path) -> None:
    before = GOOD.fingerprint()
    assert replace(GOOD, vector=tmp_path / "v", out=tmp_path).fingerprint() == before
    gguf = replace(GOOD, gguf=tmp_path / "v.gguf")
    assert gguf.fingerprint() == {**before, "without_block_0": True}
    assert replace(gguf, layer=("1",)).fingerprint() == {**before, "layer": ("1",)}
    (tmp_path / "text").write_text("one")
    one = replace(GOOD, neutral=tmp_path / "text").fingerprint()
    (tmp_path / "text").write_text("two")
    assert replace(GOOD, neutral=tmp_path / "text").fingerprint() != one


@pytest.mark.parametrize("option", ["vector", "gguf"])
def test_where_files_go_is_looked_at_before_the_work(tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("mine")
    for target, message in (
        (tmp_path, f"expected a file for --{option}, found the folder"),
        (tmp_path / "file" / "v", f"expected a folder that can be written for --{option}, found"),
        (tmp_path / "file" / "deep" / "v", f"that can be written for --{option}, found"),
    ):
        with pytest.raises(LoclinError, match=message):
            replace(GOOD, **{option: target}).checked()  # type: ignore[arg-type]
    fine = replace(GOOD, vector=tmp_path / "new" / "er" / "v")
    assert fine.checked() is fine


def test_a_missing_gguf_package_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(LoclinError, match=r"pip install 'loclin\[gguf\]'"):
        replace(GOOD, gguf=tmp_path / "a.gguf").checked()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "some/model"}, "found none: give a JSON Lines file, google/boolq or statements"),
        ({"layer": ("one",)}, "expected auto or whole numbers, found --layer one: change --layer"),
        ({"layer": ("auto", "1")}, "expected auto or whole numbers, found --layer auto 1"),
        ({"layer": ()}, "expected auto or whole numbers"),
        ({"labels": 1}, "expected labels of at least 4, found 1: change --labels"),
        ({"band": 1}, "expected band of at least 2, found 1: change --band"),
        ({"null": -1}, "expected null of at least 0, found -1: change --null"),
        (
            {"k": 200, "route": "search"},
            "expected fewer winners than candidates, found k = 200 of n = 200: change --k or --n",
        ),
        ({"eta": 0.0}, "expected eta above 0, found 0.0: change --eta"),
        ({"kl": float("nan")}, "expected kl above 0, found nan: change --kl"),
        (
            {"strengths": (1.0, 2.0)},
            r"expected different finite strengths with −1, 0 and 1 among them, found \[1.0, 2.0\]",
        ),
        ({"strengths": (-1.0, 0.0, 1.0, 1.0)}, "expected different finite strengths"),
        ({"strengths": (-1.0, 0.0, 1.0, float("inf"))}, "expected different finite strengths"),
        ({"out": Path("v.safetensors")}, "expected a run folder for --out, found v.safetensors"),
        ({"space": "lora"}, "expected --space full or a pattern of parameter names, found lora"),
        (
            {"dtype": "bfloat16"},
            "expected float32 or float64 weights for small steps, found --dtype bfloat16",
        ),
        ({"data": ("nothing.jsonl",)}, "found nothing at nothing.jsonl: check the path"),
        (
            {"neutral": Path("nothing.txt")},
            "expected a file for --neutral, found nothing at nothing.txt: check the path",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LoclinError, match=message):
        replace(GOOD, **change).checked()


def test_the_defaults_are_those_of_the_library() -> None:
    assert (GOOD.size, GOOD.eta) == (search.SIZE, routes.ETA)
    half = replace(GOOD, dtype="bfloat16", compare=("labels", "logits"))
    assert half.checked() is half
