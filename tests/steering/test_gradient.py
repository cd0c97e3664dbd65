"""Weight steps: against hand-written gradients, at the predicted order of convergence, on a planted
model, without a trace.
"""

import copy
from typing import Literal

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.activations.capture import activations
from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.parameters import ParameterSpace
from loclin.steering.averages import class_contrast
from loclin.steering.compare import cosines
from loclin.steering.gradient import (
    centred_shift,
    shift,
    shift_per_size,
    step_direction,
)
from loclin.steering.prompts import prompt_set
from loclin.steering.readout import logit_gradient
from tests.activations.odd import hooks
from tests.conftest import FAMILIES
from tests.planted import truth_world
from tests.steering.test_averages import asked_statements
from tests.steering.test_prompts import CLASSES, LETTERS, in_passes_of

Models = dict[str, PreTrainedModel]
Tokenizers = dict[str, PreTrainedTokenizerBase]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["fixed", "gold", "given"])
def test_step_is_downhill_of_a_hand_written_loss(
    families: Models, tokenizers: Tokenizers, family: str, loss: Literal["fixed", "gold", "given"]
) -> None:
    model, asked = families[family], prompt_set(CLASSES, tokenizers[family], device="cpu")
    tokens = {"fixed": asked.toward, "gold": asked.gold, "given": torch.tensor([7, 90, 8, 33, 7])}[
        loss
    ]
    total = torch.zeros(())
    for i, token in enumerate(tokens):
        ids = asked.batch.input_ids[i][asked.batch.attention_mask[i] > 0]
        total = total - model(input_ids=ids[None]).logits[0, -1].log_softmax(-1)[token] / len(
            tokens
        )
    space = ParameterSpace(model, "*attn*,*mlp*")
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, space.parameters)])
    found = step_direction(model, space, asked, loss=tokens if loss == "given" else loss)
    assert float(found.norm()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(found, -gradient / gradient.norm(), atol=1e-6)
    for rows in (1, 2):
        with in_passes_of(rows, model):
            cut = step_direction(model, space, asked, loss=tokens if loss == "given" else loss)
        assert torch.allclose(cut, found, atol=1e-6)


def test_fixed_and_gold_are_one_loss_in_the_paired_form(
    families: Models, tokenizers: Tokenizers
) -> None:
    model, asked = families["gpt2"], prompt_set(LETTERS, tokenizers["gpt2"], device="cpu")
    space = ParameterSpace(model)
    fixed, gold = (step_direction(model, space, asked, loss=name) for name in ("fixed", "gold"))
    assert torch.equal(fixed, gold)


def test_finite_steps_converge_to_the_jacobian_at_the_predicted_order(speaking: Problem) -> None:
    """‖Δh/η − Jv‖ = O(η); for central differences O(η²). In float64, along the gradient of the
    fixed loss (E1).
    """
    model = copy.deepcopy(speaking.model).double()
    asked = asked_statements(speaking, 8)
    space, layers = ParameterSpace(model), range(speaking.model.config.n_layer)
    direction = step_direction(model, space, asked, loss="fixed")
    limit = shift_per_size(model, space, direction, asked.batch, layers=layers)
    sizes = 1e-4 * 2.0 ** -np.arange(4)

    def moved(size: float) -> torch.Tensor:
        return shift(model, space, direction, asked.batch, size=size, layers=layers)

    ahead = {s: moved(s) for s in sizes}
    behind = {s: moved(-s) for s in sizes}
    one_sided = [(ahead[s] / s - limit).norm(dim=(1, 2)).numpy() for s in sizes]
    central = [((ahead[s] - behind[s]) / (2 * s) - limit).norm(dim=(1, 2)).numpy() for s in sizes]
    for errors, order in ((one_sided, 1), (central, 2)):
        slopes = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
        assert np.allclose(slopes, order, atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_limit_is_that_of_central_differences_in_every_family(
    families: Models, tokenizers: Tokenizers, family: str
) -> None:
    model, asked = families[family], prompt_set(CLASSES, tokenizers[family], device="cpu")
    space = ParameterSpace(model, "*attn*,*embed*,*wte*")
    direction = space.noise(seed=2)
    attention = model.config._attn_implementation
    limit = shift_per_size(model, space, direction, asked.batch, layers=[-1, 0])
    assert model.config._attn_implementation == attention
    assert torch.equal(limit, shift_per_size(model, space, direction, asked.batch, layers=[-1, 0]))
    ends = [
        shift(model, space, 5 * direction, asked.batch, size=s, layers=[-1, 0])
        for s in (1e-3, -1e-3)
    ]
    assert ((ends[0] - ends[1]) / 2e-3 - limit).norm() < 5e-3 * limit.norm()
    with in_passes_of(1, model):
        alone = shift_per_size(model, space, direction, asked.batch, layers=[-1, 0])
    assert torch.allclose(alone, limit, rtol=1e-4, atol=1e-4 * float(limit.abs().max()))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_steps_alone(families: Models, tokenizers: Tokenizers) -> None:
    asked = prompt_set(CLASSES, tokenizers["llama"], device="cpu")
    how = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(copy.deepcopy(families["llama"]), how).eval()
    space = ParameterSpace(model)
    assert space.names
    assert all("lora" in name for name in space.names)
    space.write(space.noise(seed=3) / 8)
    direction = step_direction(model, space, asked, loss="gold")
    limit = shift_per_size(model, space, direction, asked.batch, layers=[0, 1])
    ends = [
        shift(model, space, direction, asked.batch, size=s, layers=[0, 1]) for s in (1e-3, -1e-3)
    ]
    assert ((ends[0] - ends[1]) / 2e-3 - limit).norm() < 1e-2 * limit.norm()


def test_tensors_that_ask_for_no_gradient_stay(speaking: Problem) -> None:
    model = copy.deepcopy(speaking.model)
    asked = asked_statements(speaking, 8)
    full = ParameterSpace(model, "*h.0.*")
    expected = step_direction(model, full, asked, loss="fixed")
    moved = shift_per_size(model, full, expected, asked.batch, layers=[1])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("h.0." in name)
    space = ParameterSpace(model)
    assert space.names == full.names
    assert torch.allclose(step_direction(model, space, asked, loss="fixed"), expected, atol=1e-6)
    assert torch.allclose(
        shift_per_size(model, space, expected, asked.batch, layers=[1]), moved, atol=1e-5
    )


def test_weights_are_bit_for_bit_what_they_were_also_after_a_failure(speaking: Problem) -> None:
    model, asked = speaking.model, asked_statements(speaking, 8)
    space = ParameterSpace(model)
    before, count = {n: p.detach().clone() for n, p in model.named_parameters()}, hooks(model)
    origin = activations(model, asked.batch, layers=[0])
    direction = step_direction(model, space, asked, loss="gold")
    step = shift(model, space, direction, asked.batch, size=1e-2, layers=[0])
    assert torch.equal(
        step, shift(model, space, direction, asked.batch, size=1e-2, layers=[0], origin=origin)
    )
    shift_per_size(model, space, direction, asked.batch, layers=[0])

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model.transformer.h[0].register_forward_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            shift(model, space, direction, asked.batch, size=1e-2, layers=[0], origin=origin)
        with pytest.raises(RuntimeError, match="out of memory"):
            shift_per_size(model, space, direction, asked.batch, layers=[0])
    finally:
        handle.remove()
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert hooks(model) == count


def test_planted_truth_is_found_by_labels_gradient_and_readout() -> None:
    model, asked, a = truth_world(layers=3, width=12, facts=8, seed=2)
    assert asked.labels is not None
    layers, space = [0, 1, 2], ParameterSpace(model)
    along = a.expand(3, -1)
    contrast = class_contrast(activations(model, asked.batch, layers=layers), asked.labels)
    fixed = step_direction(model, space, asked, loss="fixed")
    gold = step_direction(model, space, asked, loss="gold")
    e1 = shift_per_size(model, space, fixed, asked.batch, layers=layers)
    e2 = shift_per_size(model, space, gold, asked.batch, layers=layers)
    routes = (
        contrast,
        logit_gradient(model, asked, layers=layers),
        e1.mean(1),
        shift(model, space, fixed, asked.batch, size=1e-3, layers=layers).mean(1),
        class_contrast(e2, asked.labels),
    )
    for found in routes:
        assert torch.allclose(cosines(found, along), torch.ones(3).double(), atol=1e-10)
    # Both classes are learned alike and move in opposite directions: E2 has nothing left.
    assert e2.mean(1).norm() < 1e-10 * class_contrast(e2, asked.labels).norm()


def test_planted_shift_has_its_closed_form() -> None:
    """One step of the last block alone: ΔW = η‖W‖ (Σ_j c_j a h_jᵀ)/‖·‖ with c_j = 1 − p_yes + p_no,
    and Δh = ΔW h.
    """
    model, asked, a = truth_world(layers=2, width=9, facts=5, seed=3)
    space = ParameterSpace(model, "layers.1.*")
    weight = model.layers[1].weight.detach()
    last = asked.batch.input_ids.gather(1, asked.batch.attention_mask.sum(1, keepdim=True) - 1)[
        :, 0
    ]
    h = model.embedding.detach()[last]
    h = h + h @ model.layers[0].weight.detach().T
    odds = ((h + h @ weight.T) @ model.readout.detach().T).softmax(-1)
    step = torch.outer(a, (1 - odds[:, 1] + odds[:, 2]) @ h)
    step = step / step.norm()
    direction = step_direction(model, space, asked, loss="fixed")
    assert torch.allclose(direction, step.reshape(-1), atol=1e-10)
    expected = weight.norm() * h @ step.T
    assert torch.allclose(
        shift_per_size(model, space, direction, asked.batch, layers=[1])[0], expected, atol=1e-10
    )
    for size in (0.3, -0.01):  # linear in the last block: exact for any step
        found = shift(model, space, direction, asked.batch, size=size, layers=[0, 1])
        assert torch.allclose(found[1], size * expected, atol=1e-10)
        assert found[0].norm() == 0


def test_what_has_no_direction_is_refused(families: Models, tokenizers: Tokenizers) -> None:
    model, asked = families["gpt2"], prompt_set(CLASSES, tokenizers["gpt2"], device="cpu")
    space = ParameterSpace(model)
    unused = ParameterSpace(model, "*wpe*")
    direction = space.noise(seed=0)
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.transformer.ln_f.weight.zero_()
        silent.transformer.ln_f.bias.zero_()
    with pytest.raises(
        LoclinError, match="a gradient of the fixed loss that is finite and not zero, found zeros"
    ):
        step_direction(silent, ParameterSpace(silent, "*h.*"), asked, loss="fixed")
    for wrong, found in (
        (torch.zeros_like(direction), "zeros"),
        (direction / 0, "NaN or infinity"),
    ):
        with pytest.raises(
            LoclinError,
            match=f"a direction of the weights that is finite and not zero, found {found}",
        ):
            shift(model, space, wrong, asked.batch, size=1e-3, layers=[0])
        with pytest.raises(
            LoclinError,
            match=f"a direction of the weights that is finite and not zero, found {found}",
        ):
            shift_per_size(model, space, wrong, asked.batch, layers=[0])
    with pytest.raises(LoclinError, match=r"expected a vector of .* coordinates"):
        shift(model, unused, direction, asked.batch, size=1e-3, layers=[0])
    with pytest.raises(LoclinError, match="expected a space of this model"):
        shift(silent, space, direction, asked.batch, size=1e-3, layers=[0])
    with pytest.raises(
        LoclinError,
        match=r"finite values in the activations of a step of 1e\+38, found NaN or infinity",
    ):
        shift(model, space, direction, asked.batch, size=1e38, layers=[0])
    half = copy.deepcopy(model).bfloat16()
    with pytest.raises(LoclinError, match=r"weights in float32 or better, found torch\.bfloat16"):
        shift(half, ParameterSpace(half), direction.bfloat16(), asked.batch, size=1e-3, layers=[0])


def test_a_step_forward_and_back_is_half_their_difference_and_leaves_the_weights(
    speaking: Problem,
) -> None:
    model, asked = speaking.model, asked_statements(speaking, 8)
    space = ParameterSpace(model)
    before = space.read()
    direction = step_direction(model, space, asked, loss="gold")
    forward, back = (
        shift(model, space, direction, asked.batch, size=s * 1e-2, layers=[0, 1]) for s in (1, -1)
    )
    found = centred_shift(model, space, direction, asked.batch, size=1e-2, layers=[0, 1])
    assert torch.allclose(found, (forward - back) / 2, atol=1e-5)
    assert (
        float((found - forward).norm() / forward.norm()) > 1e-3
    )  # the even part is there, and is gone
    assert torch.equal(space.read(), before)
