"""From a model's name and a data set's name to a `Problem`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models.builtin import BUILT_IN, Progress, Recipe, built_in_examples, built_in_folder
from loclin.models.pretrained import How, context_of, read_pretrained
from loclin.models.problem import Problem
from loclin.seeds import derived
from loclin.tasks.data import TaskData, counted, grouped_splits, merged
from loclin.tasks.files import read_file, read_hub
from loclin.tasks.fit import Long, fit
from loclin.tasks.samples import self_examples

#: Shares of the groups for data that no built-in recipe divides.
SHARES: Mapping[str, float] = {
    "train": 0.3, "validate": 0.1, "damage": 0.1, "recovery": 0.2, "gradients": 0.2, "test": 0.1,
}  # fmt: skip
SELF_SAMPLES = 1024


def load(
    model: str,
    *,
    data: str | Sequence[str] | None = None,
    seed: int = 0,
    how: How | None = None,
    template: str | None = None,
    long: Long = "drop",
    shares: Mapping[str, float] = SHARES,
    progress: Progress | None = None,
) -> Problem:
    """A causal language model with the tasks it is asked, in disjoint splits.

    Args:
        model: "sequences", "statements" or "sequences-small" (trained on first use), a hub id, or a
            folder.
        data: the name of a built-in model for its data, "self" (the model's own samples), a JSON
            Lines file, or a data set of the hub; or several files or data sets, each with tasks of
            its own. By default a built-in model's own.
        seed: of the splits, and of a built-in model's data and training; another seed is an
            independent model, except that "statements" is one model, whatever the seed.
        how: revision, dtype, device, remote code.
        template: the prompt of a file's or data set's records, made from their fields.
        long: "drop" prompts longer than the model's context, or "fail".
        shares: of the groups in each split, where the data are not a built-in model's.
        progress: called with a description and the share done while a model is trained.

    Raises:
        LoclinError: whatever is wrong with the model or the data, a task of which the model can
            read nothing among it, in one line.
    """
    how = how or How()
    if model not in BUILT_IN and data is None:
        raise LoclinError(
            f"expected --data with the model {model!r}, found none: give sequences, self or a file"
        )
    network, tokenizer = load_model(model, how, seed=seed, progress=progress)
    names = [data] if isinstance(data, str) else list(data or ())
    source = BUILT_IN.get(names[0] if len(names) == 1 else "" if names else model)
    divided = _own_seed(source, seed) if source else derived(seed, "splits")
    if source:
        found = built_in_examples(source, divided)
    else:
        found = merged([_read(network, tokenizer, name, template, seed) for name in names])
    if names:  # a built-in model can read its own data
        before = found
        found = fit(found, tokenizer, context=context_of(network), long=long)
        _all_left(before, found)
    return Problem(
        model=network,
        tokenizer=tokenizer,
        examples=grouped_splits(found, source.shares if source else shares, seed=divided),
        notes=tuple(found.summary().splitlines()),
    )


def _all_left(before: TaskData, found: TaskData) -> None:
    """Whether the tokenizer can read something of every task."""
    lost = [task for task in before.examples if task not in found.examples]
    if lost:
        raise LoclinError(
            "expected examples of every task that the model can read, found none left of "
            f"{', '.join(lost)} in {found.source}: dropped "
            f"{counted(found.dropped)}; choose tasks in the words of the tokenizer, or another "
            "model"
        )


def load_model(
    name: str, how: How, *, seed: int, progress: Progress | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without data: a built-in one (trained on first use), a folder's or a hub id's, and
    its tokenizer.

    Args:
        name: as `load` takes it.
        how: revision, dtype, device, remote code.
        seed: of a built-in model.
        progress: called while a model is trained.

    Raises:
        LoclinError: whatever is wrong with the model, in one line.
    """
    recipe = BUILT_IN.get(name)
    if recipe is None:
        return read_pretrained(name, how)
    folder = built_in_folder(
        name, seed=_own_seed(recipe, seed), progress=progress or (lambda text, share: None)
    )
    return read_pretrained(str(folder), replace(how, revision=None))


def _own_seed(recipe: Recipe, seed: int) -> int:
    return 0 if recipe.shared else seed


def _read(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: str,
    template: str | None,
    seed: int,
) -> TaskData:
    if data == "self":
        context = context_of(network) or 64
        answer = min(4, max(context // 4, 1))
        prompt = min(8, max(context - answer, 1))
        drawn = derived(seed, "samples")
        return self_examples(
            network, tokenizer, SELF_SAMPLES, prompt_tokens=prompt, answer_tokens=answer, seed=drawn
        )
    if Path(data).is_file() or data.endswith((".jsonl", ".json")):
        return read_file(data, template=template)
    return read_hub(data, template=template)
