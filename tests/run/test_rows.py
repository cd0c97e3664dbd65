import math

import numpy as np

from loclin.run.rows import Row, by_run, estimated, finite, summaries
from loclin.stats import Estimate, over_models, over_runs


def row(run: int, value: float | None, **context: object) -> Row:
    return Row(quantity="q", value=value, null=0.1, context={"run": run, "k": 3, **context})


def test_values_come_in_the_order_of_the_runs() -> None:
    rows = [row(1, 2.0, task="a"), row(0, 1.0, task="b"), row(2, None, task="c"), row(0, 9.0, k=4)]
    values = by_run(rows, "q", k=3)
    assert values[:2].tolist() == [1, 2]
    assert math.isnan(values[2])
    assert by_run(rows, "q", column="null", k=3).tolist() == [0.1, 0.1, 0.1]


def test_a_summary_is_over_runs_and_rows_of_one_run_count_once() -> None:
    rows = [
        row(r, float(v), task="t", on=str(i)) for r in range(4) for i, v in enumerate((r, r + 1))
    ]
    (summary,) = summaries(rows)
    expected = over_runs(np.arange(4) + 0.5)
    assert (summary.value, summary.low, summary.high, summary.n) == (
        expected.value,
        expected.low,
        expected.high,
        4,
    )
    assert summary.context == {"k": 3}
    assert math.isclose(summary.null or 0, 0.1)


def test_runs_of_one_model_are_one_unit_of_a_summary_on_its_scale() -> None:
    rows = [row(r, v) for r, v in enumerate((0.9, 0.8, 0.99, 0.7))]
    (summary,) = summaries(rows, 2, {"q": "logit"})
    expected = over_models([0.9, 0.8, 0.99, 0.7], 2, "logit")
    assert (summary.value, summary.low, summary.high, summary.n) == (
        expected.value,
        expected.low,
        expected.high,
        2,
    )
    assert 0 < expected.low < expected.high < 1


def test_conditions_are_kept_apart_and_undefined_ones_have_no_value() -> None:
    found = summaries([row(0, 1.0, k=3), row(1, 2.0, k=3), row(0, None, k=4), row(1, None, k=4)])
    assert [(s.context["k"], s.value, s.n) for s in found] == [(3, 1.5, 2), (4, None, 0)]


def test_what_is_not_defined_has_no_value_and_no_interval() -> None:
    assert [finite(v) for v in (0.5, math.nan, math.inf, None)] == [0.5, None, None, None]
    one = estimated("q", Estimate(value=0.5, low=-math.inf, high=math.inf, n=1), {"k": 3})
    assert (one.value, one.low, one.high, one.n) == (0.5, None, None, 1)
    nothing = estimated("q", None, {}, null=0.1)
    assert (nothing.value, nothing.n, nothing.null) == (None, 0, 0.1)
