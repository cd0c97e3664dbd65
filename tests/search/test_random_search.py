"""The whole search as one call: the same whoever scores, and a model loaded as often as there are
processes.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loclin import law
from loclin.errors import LoclinError
from loclin.models import Problem, load
from loclin.parameters import ParameterSpace
from loclin.run.dispatch import Place
from loclin.search import ledger
from loclin.search.candidate import candidates
from loclin.search.random_search import random_search
from loclin.search.scorer import Scorer
from loclin.search.scoring import best_first
from loclin.search.spec import SearchSpec
from tests.search.test_spec import examples, options, same

ASKED: dict[str, Any] = {"n": 10, "sigmas": [0.005, 0.02], "seed": 3}


@pytest.fixture
def scorer(trained: Problem) -> Scorer:
    return Scorer(trained, ParameterSpace(trained.model), examples(trained, "recovery", 6))


@pytest.fixture
def spec(trained: Problem) -> SearchSpec:
    return SearchSpec(options=options(), examples=examples(trained, "recovery", 6))


def test_it_gives_what_every_candidate_scores_by_hand(trained: Problem, scorer: Scorer) -> None:
    found = random_search(scorer, **ASKED)
    drawn = candidates(10, [0.005, 0.02], seed=3)
    assert [o.candidate for o in found.outcomes] == drawn
    assert same(found.outcomes, scorer.do(drawn))
    assert (found.loss, found.score) == scorer.own
    assert np.array_equal(found.gains, [found.loss - o.loss for o in found.outcomes])
    assert found.ranked() == best_first(found.outcomes)
    scorer.perturbed.verify()


def test_groups_workers_and_ledgers_do_not_matter(
    scorer: Scorer, spec: SearchSpec, tmp_path: Path
) -> None:
    shares: list[float] = []
    alone = random_search(scorer, **ASKED)
    for group, place in ((3, None), (1, Place(workers=1)), (4, Place(workers=2))):
        path = tmp_path / f"{group}.jsonl"
        found = random_search(
            scorer,
            **ASKED,
            spec=spec,
            group=group,
            place=place,
            ledger=path,
            progress=lambda stage, share: shares.append(share),
        )
        assert same(found.outcomes, alone.outcomes)
        assert same(ledger.read(path)[1], alone.outcomes)
        assert shares[-1] == 1
        assert shares == sorted(shares)
        shares.clear()
    headers = {(tmp_path / f"{group}.jsonl").read_text().splitlines()[0] for group in (3, 1, 4)}
    assert len(headers) == 1


def test_a_search_that_was_stopped_goes_on_and_gives_the_same(
    scorer: Scorer, tmp_path: Path
) -> None:
    path, notes = tmp_path / "ledger.jsonl", list[str]()
    whole = random_search(scorer, **ASKED, ledger=path)
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:9]) + '\n{"index": 8, "se')
    again = random_search(scorer, **ASKED, ledger=path, note=notes.append)
    assert same(again.outcomes, whole.outcomes)
    assert sorted(path.read_text().splitlines()) == sorted(rows)
    assert "cut off an unfinished last line" in notes[0]
    assert again.notes == tuple(notes)
    with pytest.raises(LoclinError, match=r"belongs to another search \(n is 10 there, 12 here\)"):
        random_search(scorer, **{**ASKED, "n": 12}, ledger=path)
    other = path.read_text().replace(
        '"seed": ' + str(whole.outcomes[4].candidate.seed), '"seed": 1'
    )
    path.write_text(other)
    with pytest.raises(LoclinError, match="expected candidate 4 of this search in "):
        random_search(scorer, **ASKED, ledger=path)


def test_a_search_loads_its_model_once_in_each_process(
    spec: SearchSpec, loads: list[str], tmp_path: Path
) -> None:
    problem = load(spec.options)
    scorer = spec.build(problem)
    random_search(scorer, **ASKED, spec=spec, place=Place(workers=1))
    assert len(loads) == 1
    random_search(scorer, **ASKED, spec=spec, place=Place(workers=2))  # those load their own
    assert len(loads) == 1


def test_other_processes_need_a_description(scorer: Scorer) -> None:
    with pytest.raises(LoclinError, match="expected a spec for workers in other processes"):
        random_search(scorer, **ASKED, place=Place(workers=2))


def test_workers_that_load_another_model_end_it(
    trained: Problem, scorer: Scorer, spec: SearchSpec
) -> None:
    """A description of attention alone, of a scorer of everything."""
    other = SearchSpec(options=options(), space="*attn*", examples=spec.examples)
    with pytest.raises(LoclinError, match=r"found others \(searched weights is .*--revision"):
        random_search(scorer, **ASKED, spec=other, place=Place(workers=2))


def test_impossible_searches_are_refused_before_anything_is_scored(scorer: Scorer) -> None:
    with pytest.raises(LoclinError, match="expected at least 1 candidate, found 0"):
        random_search(scorer, **{**ASKED, "n": 0})
    with pytest.raises(LoclinError, match="expected a positive, finite σ"):
        random_search(scorer, **{**ASKED, "sigmas": [-1.0]})


def test_at_a_small_sigma_gains_are_those_of_the_slope(trained: Problem) -> None:
    """−g·δ of every candidate, and their best about σ‖g‖m_N (measures §10); in float64."""
    problem, sigma = replace(trained, model=copy.deepcopy(trained.model).double()), 1e-7
    space = ParameterSpace(problem.model)
    scorer = Scorer(problem, space, examples(problem, "recovery", 4))
    slope = space.gradient(scorer.eval_set.loss, list(scorer.eval_set.fold(0)))
    found = random_search(scorer, n=40, sigmas=[sigma])
    expected = [-float(slope @ scorer.perturbed.vector(o.candidate)) for o in found.outcomes]
    assert found.gains == pytest.approx(expected, abs=1e-3 * sigma * float(slope.norm()))
    best = sigma * float(slope.norm()) * law.expected_maximum(40)
    assert found.gains.max() == pytest.approx(best, rel=0.5)
