from loclin.run.rows import Row
from loclin.studies.names import deciding_space, displacement, two_spaces
from loclin.studies.recovery.settings import RecoverySettings


def test_the_weights_decide_where_there_are_two_spaces() -> None:
    rows = [Row(quantity="q", value=1.0, context={"space": s}) for s in ("factors", "weights")]
    assert (deciding_space(rows), two_spaces(rows)) == ("weights", True)
    assert (deciding_space(rows[:1]), two_spaces(rows[:1])) == ("factors", False)


def test_the_displacement_is_named_by_the_space_that_decides() -> None:
    assert displacement(RecoverySettings()) == "d"
    assert displacement(RecoverySettings(space="lora")) == "d in ΔW"
    assert displacement(RecoverySettings(space="lora", store="sketch")) == "d in the factors"
