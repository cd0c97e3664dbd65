import pytest
import torch

from loclin import steering
from loclin.errors import LoclinError
from loclin.models import Problem


def last_state(problem: Problem, text: str, block: int) -> torch.Tensor:
    """h of a block that is not the last, at the last token, by a pass of its own."""
    ids = problem.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = problem.model(input_ids=ids, output_hidden_states=True).hidden_states
    found: torch.Tensor = states[block + 1][0, -1]
    return found


def test_two_lists_of_texts_give_the_difference_of_their_means(speaking: Problem) -> None:
    some = [e.prompt for e in speaking.examples["test"][speaking.tasks[0]][:5]]
    positive, negative = some[:2], some[2:]
    vector = steering.from_pairs(speaking.model, speaking.tokenizer, positive, negative, layers=[0])
    expected = torch.stack([last_state(speaking, text, 0) for text in positive]).mean(0)
    expected -= torch.stack([last_state(speaking, text, 0) for text in negative]).mean(0)
    assert torch.allclose(vector.directions[0], expected, atol=1e-5)
    assert vector.norm == "the mean of 2 texts less that of 3"
    assert len(repr(vector)) < 300


def test_one_text_is_no_list_of_texts(speaking: Problem) -> None:
    with pytest.raises(LoclinError, match=r"found one text: give \[text\]"):
        steering.from_pairs(speaking.model, speaking.tokenizer, "rome", ["anna"])


def test_a_list_without_texts_is_refused(speaking: Problem) -> None:
    with pytest.raises(LoclinError, match="expected positive and negative texts, found 1 and 0"):
        steering.from_pairs(speaking.model, speaking.tokenizer, ["yes"], [])
