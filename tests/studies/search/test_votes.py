import numpy as np
import pytest

from loclin.studies.search import names
from loclin.studies.search.names import MODEL, RANDOM_VOTE, SAMPLED_VOTE, VOTE
from loclin.studies.search.point import Gains
from loclin.studies.search.votes import chosen_size


def made_up(score: list[float], loss: list[float]) -> Gains:
    return Gains(outcomes=(), loss=np.array(loss), score=np.array(score))


def test_sigma_is_chosen_by_the_select_examples() -> None:
    poor, good = made_up([0.0, 0.1, 0.0, 0.0], [0.3] * 4), made_up([0.0, 0.3, 0.2, 0.0], [0.1] * 4)
    assert chosen_size({0.1: poor, 0.5: good}, 2) == 0.5
    tied_score = made_up([0.0, 0.1, 0.0, 0.0], [0.4] * 4)
    assert chosen_size({0.1: poor, 0.5: tied_score}, 2) == 0.5
    lost = made_up([0.9, 0.9, 0.0, 0.0], [np.nan, np.nan, 0.1, 0.1])
    assert (
        chosen_size({0.1: poor, 0.5: lost}, 2) == 0.1
    )  # what has no loss is not chosen for its score


@pytest.mark.parametrize("kind", ["part", "lora_part"])
def test_the_table_is_a_ladder_with_an_oracle_above(
    kind: str, request: pytest.FixtureRequest
) -> None:
    rows = list(request.getfixturevalue(kind).rows)
    table = {(r.context["arm"], r.context["votes"]): r for r in rows if r.quantity == "table_score"}
    assert set(table) == {
        (MODEL, 1),
        *((name, k) for name in (VOTE, RANDOM_VOTE, SAMPLED_VOTE) for k in (1, 3)),
        *((names.ORACLE, k) for k in (1, 2, 4)),
    }
    assert table[MODEL, 1].p == 1
    oracle = [table[names.ORACLE, k].value or 0.0 for k in (1, 2, 4)]
    assert oracle == sorted(oracle)
    assert {r.null for r in table.values()} == {table[MODEL, 1].value}
