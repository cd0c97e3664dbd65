"""From a model's name and a data set's name to a `Problem`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models.builtin import BUILT_IN, built_in_examples, built_in_folder
from loclin.models.gguf import dequantised, gguf_file
from loclin.models.pretrained import context_of, read_pretrained, resolved
from loclin.models.problem import Problem
from loclin.models.zero_shot import best_phrasing
from loclin.options import DATA_FILES, LoadOptions, fact_form
from loclin.progress import ProgressCallback, silent
from loclin.seeds import derived
from loclin.tasks.chat import in_chat
from loclin.tasks.data import TaskData, counted, grouped_splits, merged
from loclin.tasks.facts import facts
from loclin.tasks.files import read_file, read_folder, read_hub
from loclin.tasks.fit import fit
from loclin.tasks.hub import hub_or_cache
from loclin.tasks.samples import self_examples

#: Shares of the groups for data that no built-in recipe divides.
SHARES: Mapping[str, float] = {
    "train": 0.3, "validate": 0.1, "damage": 0.1, "recovery": 0.2, "gradients": 0.2, "test": 0.1,
}  # fmt: skip
SELF_SAMPLES = 1024


def load(
    model: str | LoadOptions,
    *,
    data: str | Sequence[str] = (),
    seed: int = 0,
    shares: Mapping[str, float] = SHARES,
    progress: ProgressCallback | None = None,
) -> Problem:
    """A causal language model with the tasks it is asked, in disjoint splits. Data are read and
    checked before the model is loaded.

    Args:
        model: "sequences", "statements" or "sequences-small" (trained on first use), a hub id, a
            folder or a GGUF file; or all options of loading, which then name the data too.
        data: the name of a built-in model for its data, "facts", "self" (the model's own samples),
            JSON Lines files, or data sets of the hub. By default a built-in model's own.
        seed: of the splits, and of a built-in model's data and training; another seed is an
            independent model.
        shares: of the groups in each split, where the data are not a built-in model's.
        progress: called with a description and the share done while a model is trained.

    Raises:
        LoclinError: whatever is wrong with the model or the data, a task of which the model can
            read nothing among it, in one line.

    >>> problem = load("sequences-small")
    >>> problem.tasks[:2], problem.examples["test"]["copy"][0].answer
    (('copy', 'reverse'), ' g b c f')
    """
    if isinstance(model, str):
        names = (data,) if isinstance(data, str) else tuple(data)
        model = LoadOptions(model=model, data=names)
    options = resolved(model)
    if options.model not in BUILT_IN:
        options.check_loading()
    names = options.data
    source = BUILT_IN.get(names[0] if len(names) == 1 else "" if names else options.model)
    read = {name: _read(name, options, seed) for name in names if not source and name != "self"}
    network, tokenizer, notes = load_model(options, seed=seed, progress=progress)
    divided = seed if source else derived(seed, "splits")
    if source:
        tasks = built_in_examples(source, divided)
    else:
        tasks = merged([read.get(n) or _samples(network, tokenizer, seed) for n in names])
    if options.chat:
        tasks = in_chat(tasks, tokenizer, system=options.system)
    if names:  # a built-in model can read its own data
        before = tasks
        rows = network.get_input_embeddings().weight.shape[0]
        tasks = fit(
            tasks, tokenizer, context=context_of(network), vocabulary=rows, long=options.long
        )
        _all_left(before, tasks)
    problem = Problem(
        model=network,
        tokenizer=tokenizer,
        examples=grouped_splits(tasks, source.shares if source else shares, seed=divided),
        notes=(*notes, *tasks.summary().splitlines()),
    )
    return best_phrasing(problem) if options.template == "auto" else problem


def _all_left(before: TaskData, after: TaskData) -> None:
    """Whether the tokenizer can read something of every task."""
    lost = [task for task in before.examples if task not in after.examples]
    if lost:
        raise LoclinError(
            "expected examples of every task that the model can read, found none left of "
            f"{', '.join(lost)} in {after.source}: dropped {counted(after.dropped)}; choose tasks "
            "in the words of the tokenizer, or another model"
        )


def load_model(
    options: LoadOptions, *, seed: int, progress: ProgressCallback | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """A model without data: a built-in one (trained on first use), a folder's, a GGUF file's or a
    hub id's; its tokenizer; and what its files hold beside it, in sentences.

    Args:
        options: with a device that is there (`resolved`).
        seed: of a built-in model.
        progress: called while a model is trained.

    Raises:
        LoclinError: whatever is wrong with the model, in one line.
    """
    about: tuple[str, ...] = ()
    if options.model in BUILT_IN:
        folder = built_in_folder(options.model, seed=seed, progress=progress or silent)
    elif (file := gguf_file(options.model)) is not None:
        folder, about = dequantised(file)
    else:
        with hub_or_cache(options.model):
            return read_pretrained(options.model, options)
    model, tokenizer, notes = read_pretrained(str(folder), replace(options, revision=None))
    return model, tokenizer, (*about, *notes)


def _read(name: str, options: LoadOptions, seed: int) -> TaskData:
    if (form := fact_form(name)) is not None:
        return facts(form, seed=seed)
    read = read_folder if Path(name).is_dir() else read_hub
    if Path(name).is_file() or name.endswith(DATA_FILES):
        read = read_file
    data = read(name, template=options.template, columns=options.columns)
    if data.turns and not options.chat:
        note = "conversations are lines of role and text; --chat takes the model's own template"
        return replace(data, notes=(*data.notes, note))
    return data


def _samples(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> TaskData:
    """The model's own samples, short enough for its context."""
    context = context_of(network) or 64
    answer = min(4, max(context // 4, 1))
    prompt = min(8, max(context - answer, 1))
    return self_examples(
        network,
        tokenizer,
        SELF_SAMPLES,
        prompt_tokens=prompt,
        answer_tokens=answer,
        seed=derived(seed, "samples"),
    )
