"""A steering vector from two lists of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.blocks import blocks, chosen_layers
from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.steering.routes import described
from loclin.steering.vector import SteeringVector
from loclin.tasks.batch import as_batch


def from_pairs(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    path: str | None = None,
) -> SteeringVector:
    """Mean of h_L at the last token of the positive texts, less that of the negative ones.

    The mean difference of contrastive pairs (CAA, arXiv 2312.06681); the texts need not be paired,
    as a difference of means is the mean of the differences. Strength 1 is that difference, of the
    model's width and in units of its activations.

    Args:
        model: in evaluation mode; untouched.
        tokenizer: its tokenizer.
        positive, negative: texts, at least one of each.
        layers: 0-based, negative from the end; all by default.
        path: of the list of blocks, where it is not found by itself.

    Raises:
        LoclinError: a list without texts, a text without tokens, a layer out of range.

    >>> import loclin
    >>> problem = loclin.load("sequences-small")
    >>> vector = from_pairs(problem.model, problem.tokenizer, ["copy a b"], ["swap a b"])
    >>> vector.layers, vector.width
    ((0, 1), 32)
    """
    if isinstance(positive, str) or isinstance(negative, str):
        raise LoclinError("expected lists of texts, found one text: give [text]")
    if not positive or not negative:
        raise LoclinError(
            f"expected positive and negative texts, found {len(positive)} and {len(negative)}: "
            "give at least one of each"
        )
    numbers = chosen_layers(len(blocks(model, path)), layers)

    def mean(texts: Sequence[str]) -> Float[Tensor, "L d"]:
        rows = tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
        batch = as_batch(rows).to(next(model.parameters()).device)
        return activations(model, batch, layers=numbers, path=path).mean(1)

    data = hashlib.sha256("\0".join([*positive, "", *negative]).encode()).hexdigest()[:16]
    return described(
        model,
        dict(zip(numbers, mean(positive) - mean(negative), strict=True)),
        route="labels",
        norm=f"the mean of {len(positive)} texts less that of {len(negative)}",
        data=data,
        path=path,
        about={"form": "texts"},
    )
