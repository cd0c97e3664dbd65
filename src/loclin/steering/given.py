"""Examples given to a route: asked in one form, within the model's context, and cut in two where a
step needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models.pretrained import context_of
from loclin.steering.asked import Asked, ask
from loclin.steering.config import Form
from loclin.tasks.example import Example, split


def halves(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | PeftModel,
    *,
    positive: str | None,
    seed: int,
) -> tuple[Asked, Asked]:
    """Two halves of the examples, asked all at once so that both have one form; no group is in
    both.

    Raises:
        LoclinError: as `asked_within`, or all the examples are one group.
    """
    whole = asked_within(examples, tokenizer, model, positive=positive, form="auto")
    parts, place = (
        split(examples, {"step": 0.5, "read": 0.5}, seed=seed),
        {id(e): i for i, e in enumerate(examples)},
    )
    step, read = (whole.rows([place[id(e)] for e in parts[n]]) for n in ("step", "read"))
    return step, read


def asked_within(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | PeftModel,
    *,
    positive: str | None,
    form: Form,
) -> Asked:
    """The examples as prompts that the model can read.

    Raises:
        LoclinError: they cannot be asked so, or one is longer than the model's context.
    """
    asked = ask(examples, tokenizer, positive=positive, device=model.device)
    # the paired form reads the answer's token too
    longest = asked.batch.input_ids.shape[1] + (asked.labels is None or form == "paired")
    context = context_of(cast(PreTrainedModel, model))
    if context is not None and longest > context:
        raise LoclinError(
            f"expected prompts within the model's context of {context} tokens, found one of "
            f"{longest}: shorten it or leave it out"
        )
    return asked


def check_named(name: str, value: str, known: object) -> None:
    """Nothing where a name is one of those of a `Literal`.

    Raises:
        LoclinError: it is none of them.
    """
    if value not in get_args(known):
        raise LoclinError(
            f"expected {name} among {', '.join(get_args(known))}, found {value!r}: change it"
        )
