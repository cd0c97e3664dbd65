import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, get_session

from loclin.errors import LoclinError
from loclin.models import load
from loclin.tasks.hub import check_model, hub_or_cache, missing_from_cache


class Hub(socketserver.ThreadingTCPServer):
    """Hangs up on every request, or answers it; and counts them."""

    daemon_threads = True
    requests = 0
    answer = b""


class Hang(socketserver.BaseRequestHandler):
    server: Hub

    def handle(self) -> None:
        self.server.requests += 1
        self.request.recv(1 << 16)
        self.request.sendall(self.server.answer)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """In the place of the real one, which no test asks."""
    with Hub(("127.0.0.1", 0), Hang) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
        server.shutdown()


def test_a_hub_that_hangs_up_is_asked_once(hub: Hub, tmp_path: Path) -> None:
    """An unknown model or data set is refused then, not after the libraries' retries."""
    (tmp_path / "cats.jsonl").write_text('{"prompt": "do cats purr?", "answer": "yes"}')
    with pytest.raises(LoclinError, match="cached or can be reached, found that 'no-such-model'"):
        load("no-such-model", data=str(tmp_path / "cats.jsonl"))
    assert hub.requests == 1
    pytest.importorskip("datasets")
    with pytest.raises(LoclinError, match="or in its cache, found ConnectionError"):
        load("sequences-small", data="no-such/data")
    assert hub.requests == 2
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_used_and_a_folder_needs_none(hub: Hub, tmp_path: Path) -> None:
    hub.answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    with hub_or_cache("some/model"):
        assert not constants.HF_HUB_OFFLINE
        get_session().head(constants.ENDPOINT)
    with hub_or_cache(str(tmp_path)):
        assert hub.requests == 2


def test_what_was_fetched_is_known_without_a_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, file, dataset in (
        ("distilgpt2", "models--distilgpt2/snapshots/a/model.safetensors", False),
        ("google/boolq", "datasets--google--boolq/snapshots/a/data/train.parquet", True),
    ):
        assert missing_from_cache(name, dataset=dataset)
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
        assert not missing_from_cache(name, dataset=dataset)
    assert not missing_from_cache(str(tmp_path))
    for name in ("distilgpt2", "sequences", "smollm2-135m", str(tmp_path)):
        check_model(name)
    assert hub.requests == 0
    with pytest.raises(LoclinError, match=r"--revision v1`, .* built-in --model smollm2-135m\?$"):
        check_model("smollm2", "v1")
    assert hub.requests == 1


def test_an_unknown_model_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    words = ["radius", "--model", "some/unknown", "--data", "self", "--direction", "gradient"]
    program = (
        "import sys, loclin.cli\ntry:\n    loclin.cli.main(sys.argv[1:])\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True, text=True, env=offline, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (2, "False\n")
    assert "found that 'some/unknown' is none of these (HF_HUB_OFFLINE is set)" in run.stderr
