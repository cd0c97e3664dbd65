import math

import numpy as np

from loclin.record import Row
from loclin.stats import over_runs
from loclin.studies.table import by_run, summaries


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


def test_conditions_are_kept_apart_and_undefined_ones_have_no_value() -> None:
    found = summaries([row(0, 1.0, k=3), row(1, 2.0, k=3), row(0, None, k=4), row(1, None, k=4)])
    assert [(s.context["k"], s.value, s.n) for s in found] == [(3, 1.5, 2), (4, None, 0)]
