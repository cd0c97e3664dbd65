"""A network as transformers reads it, and whether it is what its files and its name say."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.utils import cached_file

from loclin.errors import LoclinError
from loclin.models.folder import WRAPPER, open_checkpoint, stale

transformers.utils.logging.disable_progress_bar()  # loclin shows its own

#: Names of wrappers in those of tensors; transformers takes off one match of every pattern.
MAPPING = {rf"{WRAPPER}(?#{i})": "" for i in range(4)}
#: Beside a weight these say how it was quantised.
SCALES = re.compile(
    r"weight_scale|scale_inv|absmax|qweight|qzeros|qscale|g_idx|\.SCB$|quant_state|packed|_scales$"
)
#: Ways of quantising that transformers takes back on request.
DEQUANTISED = ("fp8", "mxfp4")
TOKENS = 8  # of the rows that show whether a model is causal
#: What a later token may move of an earlier logit, as a share of the largest: round-off, for a
#: mixture of experts that of sums in another order.
ROUND_OFF = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.01}


def loaded(kind: Any, name: str, **how: Any) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A model in evaluation mode whose every tensor is from its files, and what else they hold, in
    sentences.

    Args:
        kind: an Auto class or a model's own class.
        name: a folder or a hub id.
        how: what `from_pretrained` takes, the configuration among it.

    Raises:
        LoclinError: tensors that are not in the files, of another shape there, not finite, or that
            stay quantised.
        Exception: any, as the libraries do about damaged files.
    """
    quantised = _quantisation(how["config"])
    with quiet():
        model, report = kind.from_pretrained(
            name,
            use_safetensors=True,
            key_mapping=MAPPING,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
            **how,
        )
    used = getattr(model, "_weight_conversions", None) or []  # which saving would take back
    model._weight_conversions = [way for way in used if way.target_patterns != [""]]
    _check_report(model, report, name)
    if quantised is None:
        _read_padding(model, name, how.get("revision"))
    beside = sorted(report["unexpected_keys"])
    scale = next((n for n in beside if SCALES.search(n)), None)
    whole = all(p.is_floating_point() and p.itemsize > 1 for p in model.parameters())
    if scale or not whole:
        found = quantised or f"{scale} beside them" if scale else quantised or "integers"
        raise LoclinError(
            f"expected weights that are not quantised in {name}, found {found}: dequantise the "
            "model and save it again"
        )
    _check_finite(model, name)
    notes = [*stale(Path(name))]
    if quantised:
        notes.append(f"weights quantised by {quantised} are dequantised")
    if beside:
        more = ", ..." if len(beside) > 3 else ""
        notes.append(
            f"{len(beside)} tensors in the files are no part of the model and are left out: "
            f"{', '.join(beside[:3])}{more}"
        )
    return model.eval(), tuple(notes)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' table of what is missing: its report is read instead."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


@torch.no_grad()
def _read_padding(model: PreTrainedModel, name: str, revision: str | None) -> None:
    """The padding token's row of the embedding from the files, which some families (Youtu) set to
    zero after they are read.
    """
    table = model.get_input_embeddings()
    row = getattr(table, "padding_idx", None)
    if row is None or table.weight.is_meta or table.weight[row].any():
        return
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(cached_file(name, "config.json", revision=revision)).parent
    named = model.named_parameters(remove_duplicate=False)
    names = [n for n, p in named if p is table.weight]
    stored = open_checkpoint(folder, step=None).under(names)
    for each in stored.files:
        table.weight[row] = stored.read(each, slice(row, row + 1))[0].to(table.weight)


def _quantisation(config: Any) -> str | None:
    """How the weights are quantised; the configuration is changed so that they are dequantised."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    plain = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(plain.get("quant_method"))
    if method in DEQUANTISED:
        config.quantization_config = {**plain, "dequantize": True}
    return method


def _check_report(model: PreTrainedModel, report: Mapping[str, Any], name: str) -> None:
    """What transformers fills with random numbers, and only reports."""
    buffers = {n for n, _ in model.named_buffers()}  # made by the model's own code
    lost = sorted(set(report["missing_keys"]) - buffers)
    wrong = [f"no {n}" for n in lost]
    wrong += [f"{n} of shape {tuple(a)} for {tuple(b)}" for n, a, b in report["mismatched_keys"]]
    wrong += [" ".join(text.split())[:200] for text in report["error_msgs"]]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        there = sorted(report["unexpected_keys"])
        beside = f", and {there[0]} that is no part of it" if there else ""
        raise LoclinError(
            f"expected every tensor of the model in the files of {name}, found {wrong[0]}{more}"
            f"{beside}: save the model again with model.save_pretrained, as they would be random"
        )


def _check_finite(model: PreTrainedModel, name: str) -> None:
    here = ((n, p) for n, p in model.named_parameters() if not p.is_meta)
    broken = next((n for n, p in here if not p.isfinite().all()), None)
    if broken is not None:
        raise LoclinError(
            f"expected finite weights in {name}, found NaN or infinity in {broken}: download or "
            "save the model again, or choose another --dtype"
        )


def check_causal(model: PreTrainedModel, name: str) -> None:
    """Whether the model reads tokens alone, a later token changes no earlier logit, and gradients
    go through every block.

    Raises:
        LoclinError: it does not.
    """
    rows = _two_rows(model)
    if rows is None:
        return
    cut: list[nn.Module] = []  # blocks whose part in the gradient is left out
    layers = (layer for m in model.modules() if isinstance(m, nn.ModuleList) for layer in m)
    hooks = [
        layer.register_forward_hook(
            lambda m, *_: None if torch.is_grad_enabled() else cut.append(m)
        )
        for layer in layers
    ]
    try:
        logits = model(input_ids=rows).logits.detach().double()
    except Exception as error:  # whatever its own code raises
        first = " ".join(str(error).split())[:200]
        raise LoclinError(
            f"expected a causal language model that runs on tokens alone in {name}, found "
            f"{type(error).__name__}: {first}: give another model"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if cut:
        raise LoclinError(
            f"expected a model with gradients through all of its blocks in {name}, found "
            f"{type(model).__name__}, which runs some without: derivatives may be those of "
            "another function; give another model"
        )
    if logits.isnan().any():
        raise LoclinError(
            f"expected logits that are numbers from {name}, found NaN: mend its config.json, or "
            "choose another --dtype"
        )
    moved = float((logits[0] - logits[1])[:-1].abs().max())
    if moved > ROUND_OFF.get(model.dtype, 0.03) * float(logits.abs().max()):
        raise LoclinError(
            f"expected a causal language model in {name}, found {type(model).__name__}, in which a "
            f"later token changes earlier logits (by {moved:.2g}): give a model that reads from "
            "left to right"
        )


def context_of(model: PreTrainedModel) -> int | None:
    """The most tokens that the model reads at once; None where its configuration has no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else None


def _two_rows(model: PreTrainedModel) -> Int[Tensor, "2 length"] | None:
    """Rows of different tokens that differ in the last; None where there are too few to choose."""
    config, table = model.config.get_text_config(), model.get_input_embeddings()
    special = [getattr(config, f"{n}_token_id", None) for n in ("pad", "bos", "eos")]
    several = {i for each in special for i in (each if isinstance(each, list) else [each])}
    usual = [i for i in range(table.weight.shape[0]) if i not in several]
    length = min(TOKENS, context_of(model) or TOKENS, len(usual) - 1)
    if length < 2:
        return None
    ids = usual[:: len(usual) // (length + 1)][: length + 1]
    rows = torch.tensor([ids[:-1], [*ids[:-2], ids[-1]]])
    return rows.to(table.weight.device)


def of_today(model: PreTrainedModel) -> None:
    """Give an older family's model what the others have: `logits_to_keep`, ears for a mask and for
    `use_cache` where it needs neither, positions that stay as they were computed where they take no
    gradient (Marian), and a gradient at padding's row of the embedding, which is read where the
    end token pads too; attention to a choice of tokens the same choice in every row; and a model in
    float64 that precision throughout.
    """
    for module in model.modules():
        if "Sinusoidal" in type(module).__name__:
            module.requires_grad_(False)
        elif isinstance(module, nn.Embedding):
            module.padding_idx = None
    forward = type(model).forward
    if "logits_to_keep" not in inspect.signature(forward).parameters:
        setattr(model, "forward", MethodType(_keeping(forward), model))  # noqa: B010 (a method)
    if any("Indexer" in type(module).__name__ for module in model.modules()):
        _running_in(model, _FirstOfEqual)
    if model.dtype == torch.float64:
        in_float64(model)


def in_float64(model: PreTrainedModel) -> None:
    """The model in float64, in place, its every step: transformers' norms, softmaxes and routers
    cast to float32, which serves half precision and costs half of the digits here (second
    differences of a Mixtral's loss were off by 0.4 of their size).
    """
    _running_in(model.double(), _Float64Stays)
    model.set_experts_implementation("eager")  # grouped products of matrices have no float64


def _running_in(model: PreTrainedModel, mode: type[TorchFunctionMode]) -> None:
    """The model's forward pass inside a mode, from now on."""
    forward = model.forward  # no method where accelerate has put its own in its place
    whole = getattr(forward, "__func__", lambda _, *args, **more: forward(*args, **more))

    @functools.wraps(forward)
    def run(self: PreTrainedModel, *args: Any, **more: Any) -> Any:
        with mode():
            return whole(self, *args, **more)

    setattr(model, "forward", MethodType(run, model))  # noqa: B010 (a method)


class _FirstOfEqual(TorchFunctionMode):
    """Inside, of equal values topk takes the first. Which one it takes else depends on the length
    of the row: in attention to a choice of tokens (DeepSeek's), many of which are worth exactly 0,
    padding or a later token changed earlier logits.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.topk, Tensor.topk):
            return func(*args, **kwargs)
        k, dim = kwargs["k"] if "k" in kwargs else args[1], kwargs.get("dim", -1)
        values, places = args[0].sort(dim=dim, descending=True, stable=True)
        return torch.return_types.topk((values.narrow(dim, 0, k), places.narrow(dim, 0, k)))


class _Float64Stays(TorchFunctionMode):
    """Inside, what is float64 is not cast to float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in kwargs.items()}
        return func(*args, **kwargs)


def _keeping(forward: Callable[..., Any]) -> Callable[..., Any]:
    known = inspect.signature(forward).parameters
    loose = any(p.kind is p.VAR_KEYWORD for p in known.values())
    spare = {"attention_mask", "use_cache", "past_key_values"} - known.keys()

    @functools.wraps(forward)
    def run(
        self: PreTrainedModel, *args: Any, logits_to_keep: int | Tensor = 0, **more: Any
    ) -> Any:
        taken = more if loose else {n: v for n, v in more.items() if n not in spare}
        output = forward(self, *args, **taken)
        whole = isinstance(logits_to_keep, int)
        output.logits = output.logits[:, slice(-logits_to_keep, None) if whole else logits_to_keep]
        return output

    return run
