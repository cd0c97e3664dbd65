import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loclin.errors import LoclinError
from loclin.search.candidate import Candidate
from loclin.search.ledger import Ledger, line, opened, read
from loclin.search.scoring import Outcome
from tests.search.planted import EXAMPLES, expected_lines, groups, lines, outcome

SETTINGS: dict[str, Any] = {
    "searched weights": "ab12",
    "sigma": [0.1],
    "noise": "gaussian",
    "examples": EXAMPLES,
}
GROUPS = groups(5)


def filled(path: Path, *, count: int = 5) -> Path:
    with opened(path, SETTINGS) as ledger:
        for group in GROUPS[:count]:
            ledger.append(map(outcome, group))
    return path


def indices(ledger: Ledger) -> list[int]:
    return [o.candidate.index for o in ledger.outcomes()]


def refused(path: Path, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(LoclinError, match=text), opened(path, settings):
        pass


def same(a: Outcome, b: Outcome) -> bool:
    losses = a.loss == b.loss or not (math.isfinite(a.loss) or math.isfinite(b.loss))
    return a.candidate == b.candidate and losses and np.array_equal(a.right, b.right)


def test_what_is_appended_is_read_back_and_gone_on_with(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "ledger.jsonl", count=3)
    with opened(path, SETTINGS) as ledger:
        assert indices(ledger) == list(range(9))
        ledger.append(map(outcome, GROUPS[4]))
        assert indices(ledger) == [*range(9), 12, 13, 14]
        ledger.append(map(outcome, GROUPS[3]))
        assert not ledger.note
        held = ledger.outcomes()
    settings, found = read(path)
    assert settings == SETTINGS
    wanted = [outcome(c) for group in GROUPS for c in group]
    for outcomes in (held, found):
        assert [o.candidate.index for o in outcomes] == list(
            range(15)
        )  # by index, in whatever order they came
        assert all(map(same, outcomes, wanted))
    assert lines(path) == {path.read_text().splitlines()[0]} | expected_lines(GROUPS)


def test_the_order_of_arrival_is_all_that_two_ledgers_differ_in(tmp_path: Path) -> None:
    with opened(tmp_path / "backwards", SETTINGS) as ledger:
        for group in reversed(GROUPS):
            ledger.append(map(outcome, group))
    assert lines(tmp_path / "backwards") == lines(filled(tmp_path / "forwards"))


@given(
    st.integers(0, 10**6),
    st.integers(0, 2**63 - 1),
    st.floats(1e-300, 1e300),
    st.sampled_from([1, -1]),
    st.floats(),
    st.lists(st.booleans(), min_size=1, max_size=40),
)
def test_every_outcome_has_one_line_and_comes_back_from_it(
    index: int, seed: int, sigma: float, sign: int, loss: float, right: list[bool]
) -> None:
    made = Outcome(
        candidate=Candidate(index=index, seed=seed, sigma=sigma, sign=sign),
        loss=loss,
        right=np.array(right, dtype=bool),
    )
    entry = json.loads(line(made))
    assert line(made).count("\n") == 1
    assert Candidate(**{k: entry[k] for k in ("index", "seed", "sigma", "sign")}) == made.candidate
    assert entry["finite"] == math.isfinite(loss)
    assert entry["loss"] == (loss if math.isfinite(loss) else None)
    assert entry["score"] == sum(right) / len(right)
    assert (
        np.unpackbits(
            np.frombuffer(bytes.fromhex(entry["right"]), np.uint8), count=len(right)
        ).tolist()
        == right
    )


def test_a_loss_that_is_no_number_is_kept_as_such(tmp_path: Path) -> None:
    for loss in (math.nan, math.inf, -math.inf):
        path = tmp_path / str(loss)
        candidate = GROUPS[0][0]
        with opened(path, SETTINGS) as ledger:
            ledger.append(
                [Outcome(candidate=candidate, loss=loss, right=np.zeros(EXAMPLES, dtype=bool))]
            )
            (now,) = ledger.outcomes()
        (later,) = read(path)[1]
        assert math.isnan(now.loss)  # as after an interruption
        assert math.isnan(later.loss)


def test_of_an_index_that_comes_twice_the_first_stands(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.jsonl")
    before = path.read_bytes()
    late = Outcome(candidate=GROUPS[1][0], loss=99.0, right=np.ones(EXAMPLES, dtype=bool))
    with opened(path, SETTINGS) as ledger:
        ledger.append([late])
        assert same(ledger.outcomes()[3], outcome(GROUPS[1][0]))
    assert path.read_bytes() == before
    path.write_bytes(before + line(late).encode())  # as two processes without a lock might
    assert same(read(path)[1][3], outcome(GROUPS[1][0]))
    twice = tmp_path / "twice"
    with opened(twice, SETTINGS) as ledger:
        ledger.append([outcome(GROUPS[1][0]), late])
    assert same(read(twice)[1][0], outcome(GROUPS[1][0]))


def test_a_last_line_cut_anywhere_is_repaired_and_said(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.jsonl")
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for cut in range(last + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert len(read(path)[1]) == 14  # a reader repairs nothing
        assert path.read_bytes() == whole[:cut]
        with opened(path, SETTINGS) as ledger:
            assert f"cut off an unfinished last line of {cut - last} bytes" in ledger.note
            assert indices(ledger) == list(range(14))
            assert path.read_bytes() == whole[:last]
            ledger.append([outcome(GROUPS[4][2])])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("bytes_left", [0, 1, 40])
def test_a_header_that_was_cut_is_written_again(tmp_path: Path, bytes_left: int) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(filled(tmp_path / "other").read_bytes()[:bytes_left])
    filled(path)
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("", "found ''"),
        ("nonsense", "found 'nonsense'"),
        ("[]", r"found '\[\]'"),
        ('{"index": 3}', "index"),
        (line(outcome(GROUPS[1][0])).strip().replace('"sign": 1', '"sign": "up"'), "index"),
        (line(outcome(GROUPS[1][0])).strip().replace('"score": 0.', '"score": 1.'), "index"),
        (line(outcome(GROUPS[1][0])).strip().replace('"right": "', '"right": "zz'), "index"),
    ],
)
def test_a_wrong_line_in_the_middle_is_named(tmp_path: Path, wrong: str, found: str) -> None:
    path = filled(tmp_path / "ledger.jsonl")
    rows = path.read_text().splitlines()
    rows[4] = wrong
    path.write_text("\n".join(rows) + "\n")
    before = path.read_bytes()
    refused(
        path,
        SETTINGS,
        f"expected the outcome of a candidate in line 5 of .*{found}.*restore the file",
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize("wrong", ["nonsense", "{}", '{"format": 1, "settings": {}}', "[1]", "1"])
def test_a_file_that_is_no_ledger_is_left_alone(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(wrong + "\n")
    refused(path, SETTINGS, "expected the header of a ledger in line 1")
    assert path.read_text() == wrong + "\n"


def test_a_ledger_of_another_format_is_not_read(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.jsonl")
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(
        LoclinError,
        match=r"expected a ledger of format 1 .*, found 2: read it with the loclin that wrote it",
    ):
        read(path)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"noise": "tied", "sigma": [0.2]}, r"sigma is \[0.1\] there, \[0.2\] here"),
        (
            {"searched weights": "cd34", "noise": "tied"},
            "searched weights is 'ab12' there, 'cd34' here",
        ),
        ({"antithetic": True}, "antithetic is None there, True here"),
    ],
)
def test_a_ledger_of_another_search_is_refused_by_the_first_setting_that_differs(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    path = filled(tmp_path / "ledger.jsonl")
    text = f"belongs to another search \\({named}\\): choose another --out"
    refused(path, {**SETTINGS, **changed}, text)
    fewer = {name: value for name, value in SETTINGS.items() if name != "noise"}
    refused(path, fewer, "noise is 'gaussian' there, None here")
    with opened(path, {**SETTINGS, "sigma": (0.1,)}) as ledger:  # a tuple is the same list
        assert len(ledger.outcomes()) == 15


def test_settings_that_could_not_be_read_back_are_refused(tmp_path: Path) -> None:
    text = r"expected the number of examples .* found \['noise'\]"
    refused(tmp_path / "ledger.jsonl", {"noise": "tied"}, text)


def test_the_header_holds_a_hash_of_its_settings(tmp_path: Path) -> None:
    def search(name: str, settings: dict[str, Any]) -> str:
        with opened(tmp_path / name, settings):
            return str(json.loads((tmp_path / name).read_text())["search"])

    backwards = dict(reversed(SETTINGS.items()))
    assert search("a", SETTINGS) == search("b", backwards)
    assert search("a", SETTINGS) != search("c", {**SETTINGS, "noise": "tied"})


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Like a disk with no more room: writes go up to here, then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_what_is_written_stays_whole_and_goes_on_later(tmp_path: Path) -> None:
    path = filled(tmp_path / "ledger.jsonl", count=2)
    before = path.read_bytes()
    with opened(path, SETTINGS) as ledger:
        for more in (0, 1, 100, 300):
            with (
                files_up_to(len(before) + more),
                pytest.raises(LoclinError, match="make room or choose another --out"),
            ):
                ledger.append(map(outcome, GROUPS[2]))
            assert path.read_bytes() == before
            assert indices(ledger) == list(range(6))
        for group in GROUPS[2:]:
            ledger.append(map(outcome, group))
    assert path.read_bytes() == filled(tmp_path / "whole").read_bytes()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = r"expected to write .*make room or choose another --out"
    refused(tmp_path / "file" / "ledger.jsonl", SETTINGS, text)
    with pytest.raises(LoclinError, match=r"expected a ledger at .*nothing\.jsonl"):
        read(tmp_path / "nothing.jsonl")


def test_two_searches_do_not_write_to_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with opened(path, SETTINGS):
        refused(path, SETTINGS, "found another process writing to it")
    refused(path, {**SETTINGS, "noise": "tied"}, "another search")
    with opened(path, SETTINGS):  # an opening that fails leaves it free
        pass


CHILD = """
import sys, time
from pathlib import Path
from loclin.search.ledger import opened
from tests.search.planted import groups, outcome
from tests.search.test_ledger import SETTINGS

with opened(Path(sys.argv[1]) / "ledger.jsonl", SETTINGS) as ledger:
    for group in groups(200):
        time.sleep(0.05)
        ledger.append(map(outcome, group))
"""


def test_killed_and_gone_on_with_it_ends_with_the_lines_of_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    path, made = tmp_path / "ledger.jsonl", groups(200)
    root = Path(__file__).parent.parent.parent
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])},
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while (not path.exists() or path.read_bytes().count(b"\n") < 10) and time.monotonic() < end:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait(20) == -signal.SIGKILL
    with opened(path, SETTINGS) as ledger:
        done = set(indices(ledger))
        assert 9 <= len(done) < 600
        for group in made:
            if not {c.index for c in group} <= done:
                ledger.append(map(outcome, group))
        assert indices(ledger) == list(range(600))
    with opened(tmp_path / "uninterrupted", SETTINGS) as ledger:
        for group in made:
            ledger.append(map(outcome, group))
    assert lines(path) == lines(tmp_path / "uninterrupted")
