"""A causal language model of no known family, and looks at any model's state."""

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from loclin.tasks.batch import Batch


class Odd(nn.Module):
    """Blocks under a name of their own, which return tuples: h ← h + tanh(W h), then the mean of
    what came before.
    """

    def __init__(self, *, count: int, width: int = 6, others: int = 0) -> None:
        super().__init__()
        self.config = PretrainedConfig(num_hidden_layers=count, hidden_size=width, vocab_size=11)
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(11, width)
        self.cells = nn.ModuleList(Cell(width) for _ in range(count))
        self.adapters = nn.ModuleList(nn.Identity() for _ in range(others))
        self.head = nn.Linear(width, 11, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.5, generator=generator)

    def forward(
        self,
        input_ids: Int[Tensor, "n length"],
        attention_mask: Int[Tensor, "n length"] | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> CausalLMOutput:
        h = self.embed(input_ids)
        for cell in self.cells:
            h, _note = cell(h)
        return CausalLMOutput(logits=self.head(h[:, -logits_to_keep:]))


class Cell(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, h: Tensor) -> tuple[Tensor, str]:
        h = h + self.inner(h).tanh()
        return h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None], "a second output"


def hooks(model: nn.Module) -> int:
    """How many hooks are in the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def left_padded(batch: Batch) -> Batch:
    """The same rows, padded on the left."""
    width = batch.input_ids.shape[1]
    pairs = [(int(width - n)) for n in batch.attention_mask.sum(1)]

    def turned(rows: Tensor) -> Tensor:
        return torch.stack([row.roll(shift) for row, shift in zip(rows, pairs, strict=True)])

    return Batch(
        input_ids=turned(batch.input_ids),
        attention_mask=turned(batch.attention_mask),
        labels=turned(batch.labels),
    )
