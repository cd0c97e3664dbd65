"""Files of a vector: everything comes back, what is damaged or something else is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loclin.errors import LoclinError
from loclin.steering.vector import SteeringVector
from tests.steering.test_vector import FACTS, random, same


def test_a_file_gives_everything_back_and_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    vector = random(
        0, about={"η": "0.01\nrelative", "rows": "12"}, revision="main", layers_path="transformer.h"
    )
    path = tmp_path / "new" / "vector.safetensors"
    random(1).save(path)
    vector.save(str(path))
    assert [p.name for p in path.parent.iterdir()] == ["vector.safetensors"]
    again = SteeringVector.load(path)
    assert same(again, vector)
    for name in (*FACTS, "revision", "layers_path", "about", "site"):
        assert getattr(again, name) == getattr(vector, name)
    plain = load_file(path)  # any reader of safetensors finds the numbers
    assert {n: (t.dtype, tuple(t.shape)) for n, t in plain.items()} == {
        "block.0": (torch.float32, (32,)), "block.1": (torch.float32, (32,)),
    }  # fmt: skip
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "loclin steering vector"
    assert json.loads(metadata["about"]) == vector.about
    bare = random(3, blocks=None)
    bare.save(path)
    again = SteeringVector.load(path)
    assert (again.blocks, again.revision, again.layers_path, again.about) == (None, None, None, {})


def damaged(path: Path, how: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "text":
        path.write_text("a letter\nof two lines")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        changes: dict[str, dict[str, str]] = {
            "else": {"format": "pt"},
            "newer": {"version": "2"},
            "about": {"about": "[1]"},
            "blocks": {"blocks": "many"},
            "fewer": {"blocks": "1"},
        }
        metadata |= changes.get(how, {})
        if how == "no route":
            del metadata["route"]
        if how == "half":
            tensors = {n: t.half() for n, t in tensors.items()}
        if how == "name":
            tensors["bias"] = torch.ones(32)
        save_file(tensors, path, metadata=None if how == "bare" else metadata)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "found Error while deserializing header"),
        ("text", "found "),
        ("folder", "found "),
        ("bare", "found safetensors of something else"),
        ("else", "found safetensors of something else"),
        ("newer", "found format 2 where this loclin reads 1"),
        ("about", "found metadata that is no text"),
        ("blocks", "found invalid literal"),
        ("fewer", "found expected blocks numbered from 0 to 0, found 1"),
        ("no route", "found no 'route' in it"),
        ("half", "found tensors of another dtype than float32"),
        ("name", "found invalid literal"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(
    how: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "v.safetensors"
    random(0).save(path)
    damaged(path, how)
    with pytest.raises(
        LoclinError, match=f"expected a steering vector in .*v.safetensors, {message}"
    ) as error:
        SteeringVector.load(path)
    assert "\n" not in str(error.value)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        LoclinError, match=r"expected a steering vector, found nothing at .*nowhere: check the path"
    ):
        SteeringVector.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        LoclinError, match=r"expected to write .*v, found .*: make room or choose another file"
    ):
        random(0).save(tmp_path / "file" / "v")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_files_can_be_read_by_whoever_may_read_new_files(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = tmp_path / "v.safetensors"
    random(0).save(path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "v.safetensors"]
