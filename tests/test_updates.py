import os
from pathlib import Path

import pytest
import torch
from torch import nn

from loclin import updates
from loclin.errors import LoclinError
from loclin.geometry.sketch import Sketch
from loclin.parameters import ParameterSpace
from loclin.updates import UpdateStorage

SPACE = ParameterSpace(nn.Linear(100, 10))  # D = 1010


@pytest.mark.parametrize(
    ("memory", "disk", "store"),
    [(1 << 30, 1 << 30, "memory"), (1000, 1 << 30, "disk"), (1000, 1000, "sketch")],
)
def test_what_fits_decides(
    memory: int, disk: int, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "free_memory", lambda device: memory)
    monkeypatch.setattr(
        updates.shutil, "disk_usage", lambda place: type("Usage", (), {"free": disk})
    )
    kept = UpdateStorage(store="auto").resolved(SPACE, 50)
    assert kept.store == store
    sentences = {
        "memory": "are kept in memory",
        "disk": "are kept in a file",
        "sketch": "65536 sketched numbers of each",
    }
    assert sentences[store] in kept.describe(SPACE, 50)
    assert "50×1010 updates" in kept.describe(SPACE, 50)
    assert UpdateStorage(store="disk").resolved(SPACE, 50).store == "disk"
    assert UpdateStorage(store="auto").resolved(SPACE, 50, full=True).store == (
        "memory" if store == "memory" else "disk"
    )


def test_runs_side_by_side_share_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 50 * 1010 * 4
    monkeypatch.setattr(updates, "free_memory", lambda device: 4 * needed + 4)
    assert UpdateStorage(store="auto").resolved(SPACE, 50).store == "memory"
    assert UpdateStorage(store="auto").resolved(SPACE, 50, sharing=2).store == "disk"


def test_a_full_disk_is_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        LoclinError,
        match=r"room in .* for the updates, found No space left on device: make room, or choose",
    ):
        UpdateStorage(store="disk", folder=tmp_path).allocate(SPACE, 5)
    assert list(tmp_path.iterdir()) == []


def test_vectors_are_seen_as_the_updates_are_kept() -> None:
    rows = torch.randn(3, 1010, generator=torch.Generator().manual_seed(0))
    assert UpdateStorage().as_stored(SPACE, rows) is rows
    sketched = UpdateStorage(store="sketch", sketch=Sketch(size=512, seed=1))
    assert sketched.as_stored(SPACE, rows).shape == (3, 512)
    assert torch.equal(
        sketched.as_stored(SPACE, rows)[1], Sketch(size=512, seed=1).of(SPACE.by_tensor(rows[1]))
    )
    assert sketched.allocate(SPACE, 2, full=True).shape == (2, 1010)
