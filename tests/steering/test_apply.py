"""`loclin steer apply`: what is generated at each strength, what is printed, and what is refused."""

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loclin.errors import LoclinError
from loclin.models import Problem
from loclin.models.loading import load_model
from loclin.models.pretrained import How
from loclin.parameters import ParameterSpace
from loclin.steering.apply import Generation, apply, generations, read_vector, show
from loclin.steering.apply_config import ApplyConfig
from loclin.steering.gguf import write_gguf
from loclin.steering.vector import SteeringVector
from tests.steering.test_vector import random

PROMPTS = ["the cat sat on the", "do cats purr?"]


def spoken_by(problem: Problem, layers: tuple[int, ...] = (0, 1)) -> SteeringVector:
    return random(0, layers, d=48, model="statements-small")


def stepwise(
    model: PreTrainedModel, ids: list[int], count: int, moved: dict[int, Tensor], start: int
) -> list[int]:
    """Greedy, without a cache, one whole pass for each token, vectors added by plain hooks at
    positions from `start` on.
    """

    def hook(vector: Tensor) -> Any:
        def add(module: Any, inputs: Any, out: Any) -> Any:
            h = (out[0] if isinstance(out, tuple) else out).clone()
            h[:, start:] += vector
            return (h, *out[1:]) if isinstance(out, tuple) else h

        return add

    body = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    hooks = [body[n].register_forward_hook(hook(v)) for n, v in moved.items()]
    given = list(ids)
    try:
        with torch.no_grad():
            for _ in range(count):
                given.append(int(model(input_ids=torch.tensor([given])).logits[0, -1].argmax()))
    finally:
        for h in hooks:
            h.remove()
    return given[len(ids) :]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma"])
@pytest.mark.parametrize("start", [0, 3, 9])
def test_generations_are_those_of_whole_passes_without_a_cache(
    family: str,
    start: int,
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = families[family], tokenizers[family]
    vector = random(5, model_type=family)
    made = generations(model, tokenizer, vector, PROMPTS, [0.0, 2.0, -1.5], tokens=8, start=start)
    assert [(g.prompt, g.strength) for g in made] == [
        (p, s) for p in PROMPTS for s in (0.0, 2.0, -1.5)
    ]
    for g in made:
        moved = {n: g.strength * v for n, v in vector.directions.items()}
        new = stepwise(model, tokenizer(g.prompt)["input_ids"], 8, moved, start)
        assert g.text == tokenizer.decode(new, skip_special_tokens=True)
    assert len({g.text for g in made[:3]}) > 1


def test_strength_0_is_the_plain_model_and_weights_stay(speaking: Problem) -> None:
    model, tokenizer = speaking.model, speaking.tokenizer
    prompt = speaking.examples["test"][speaking.tasks[0]][0].prompt
    before = ParameterSpace(model).read()
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    plain = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False
    )
    made = generations(model, tokenizer, spoken_by(speaking), [prompt], [0.0, 40.0], tokens=3)
    assert (
        made[0].text
        == tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)
        != made[1].text
    )
    assert torch.equal(ParameterSpace(model).read(), before)


def test_a_planted_direction_makes_the_model_say_its_word(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    """Far along a word's row of the output matrix, after the last block, nothing else is left of
    the final norm's input.
    """
    model, tokenizer = families["llama"], tokenizers["llama"]
    rows = model.get_output_embeddings().weight.detach()
    for word in (70, 71):
        assert int((rows @ rows[word]).argmax()) == word
        vector = SteeringVector(
            **{**vars(random(0, (1,), model_type="llama")), "directions": {1: rows[word]}}
        )
        made = generations(model, tokenizer, vector, PROMPTS, [1e4], tokens=5)
        assert {g.text for g in made} == {tokenizer.decode([word] * 5)}


def test_drawn_tokens_depend_on_seed_and_prompt_alone(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer, vector = families["qwen2"], tokenizers["qwen2"], random(5, model_type="qwen2")
    state = torch.get_rng_state()

    def drawn(prompts: list[str], strengths: list[float], seed: int = 0) -> list[str]:
        made = generations(
            model, tokenizer, vector, prompts, strengths, tokens=8, temperature=0.8, seed=seed
        )
        return [g.text for g in made]

    both = drawn(PROMPTS, [0.0, 1.0])
    assert drawn(PROMPTS[1:], [1.0, 0.0]) == [both[3], both[2]]
    assert drawn(PROMPTS, [0.0, 1.0], seed=1) != both
    assert drawn(PROMPTS[:1], [0.0, 0.0]) == [both[0], both[0]]
    cold = generations(model, tokenizer, vector, PROMPTS, [0.0], tokens=8, temperature=1e-4)
    assert [g.text for g in cold] == [
        g.text for g in generations(model, tokenizer, vector, PROMPTS, [0.0], tokens=8)
    ]
    assert torch.equal(torch.get_rng_state(), state)


def test_new_tokens_stay_within_the_context(
    families: dict[str, PreTrainedModel], tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer, vector = families["gpt2"], tokenizers["gpt2"], random(5)
    length = len(tokenizer(PROMPTS[0])["input_ids"])
    long = PROMPTS[0] + " mat" * (60 - length)
    room = 64 - len(tokenizer(long)["input_ids"])
    assert 0 < room < 10
    (made,) = generations(model, tokenizer, vector, [long], [0.0])
    ids = tokenizer(long)["input_ids"]
    assert made.text == tokenizer.decode(
        stepwise(model, ids, room, {}, 0), skip_special_tokens=True
    )
    for tokens, text in ((room + 1, long), (None, long + " mat" * 9)):
        with pytest.raises(
            LoclinError,
            match="expected prompt and new tokens within the model's context of 64, found a prompt "
            "of",
        ):
            generations(model, tokenizer, vector, [PROMPTS[0], text], [0.0], tokens=tokens)
    with pytest.raises(
        LoclinError, match="expected a prompt of at least one token, found '': fill it in"
    ):
        generations(model, tokenizer, vector, [""], [0.0])
    with pytest.raises(LoclinError, match="expected at least one prompt, found none"):
        generations(model, tokenizer, vector, [], [0.0])


def printed(width: int) -> tuple[io.StringIO, Console]:
    out = io.StringIO()
    return out, Console(file=out, width=width)


def test_generations_stand_side_by_side_where_there_is_room() -> None:
    made = [
        Generation(prompt=p, strength=s, text=t)
        for p in ("[red]one[/red]", "two")
        for s, t in ((-2.0, "less [b]x"), (0.0, " plain"), (0.5, ""))
    ]
    out, console = printed(80)
    show(made, console)
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["[red]one[/red]"] in lines
    assert lines.count(["-2", "0", "+0.5"]) == 2
    assert lines.count(["less", "[b]x", "plain", "(nothing)"]) == 2
    out, console = printed(30)
    show(made, console)
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert [
        lines.count(x) for x in (["-2", "less", "[b]x"], ["0", "plain"], ["+0.5", "(nothing)"])
    ] == [2, 2, 2]
    out, console = printed(30)
    show([replace(made[0], text="word " * 20 + "end")], console)
    assert out.getvalue().split().count("word") == 20
    assert max(map(len, out.getvalue().splitlines())) <= 30


def test_a_vector_is_applied_from_either_file(speaking: Problem, tmp_path: Path) -> None:
    vector = spoken_by(speaking)
    prompts = [e.prompt for e in speaking.examples["test"][speaking.tasks[0]][:3]]
    (tmp_path / "prompts.txt").write_text(f"\n{prompts[1]}\n\n{prompts[2]}\n")
    path = tmp_path / "v.safetensors"
    vector.save(path)
    config = ApplyConfig(
        vector=path,
        model="statements-small",
        prompt=(prompts[0],),
        prompts=tmp_path / "prompts.txt",
        strength=(0.0, 30.0),
        layer=(-1,),
        tokens=2,
    ).checked()
    out, console = printed(100)
    made = apply(config, console=console)
    assert [g.prompt for g in made[::2]] == prompts
    wanted = generations(
        speaking.model, speaking.tokenizer, vector.at([1]), prompts, [0.0, 30.0], tokens=2
    )
    assert made == wanted
    text = " ".join(out.getvalue().split())
    assert "v.safetensors: made with statements-small by labels, added at block 1" in text
    assert "strength 1: difference of means" in text
    assert all(" ".join(p.split()) in text for p in prompts)
    write_gguf(vector.at([1]), tmp_path / "v.gguf")
    assert apply(replace(config, vector=tmp_path / "v.gguf"), console=console) == wanted
    assert read_vector(tmp_path / "v.gguf").norm == "difference of means"


def test_a_folder_is_read_without_data(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    families["gpt2"].save_pretrained(tmp_path / "gpt2")
    tokenizers["gpt2"].save_pretrained(tmp_path / "gpt2")
    model, _ = load_model(str(tmp_path / "gpt2"), How(), seed=0)
    assert torch.equal(ParameterSpace(model).read(), ParameterSpace(families["gpt2"]).read())
    vector = random(0, (0, 1), blocks=3)
    vector.save(tmp_path / "v.safetensors")
    config = ApplyConfig(
        vector=tmp_path / "v.safetensors",
        model=str(tmp_path / "gpt2"),
        prompt=("the cat",),
        device="cpu",
        tokens=4,
    )
    with pytest.raises(LoclinError, match=r"one of another \(made with 3 blocks, not 2\)"):
        apply(config)
    made = apply(replace(config, force=True))
    told = capsys.readouterr()
    assert told.err.count("loclin: ignored that the vector was made with 3 blocks, not 2") == 1
    assert [g.strength for g in made] == [-1, 0, 1]
    for bad, message in (
        ({"layer": (7,)}, "expected layers from -2 to 1, found 7"),
        (
            {"layers_path": "model.layers"},
            r"expected a list of blocks at 'model.layers', found none: .*transformer\.h",
        ),
        (
            {"vector": tmp_path / "w.safetensors"},
            "found nothing at .*w.safetensors: check the path",
        ),
        ({"vector": tmp_path / "w.gguf"}, "found nothing at .*w.gguf: check the path"),
        ({"model": "./nowhere"}, "expected a model folder, found nothing at"),
        ({"device": "abacus"}, "expected a device among"),
        ({"tokens": 80}, "within the model's context of 64"),
    ):
        with pytest.raises(LoclinError, match=message):
            apply(replace(config, force=True, **bad))
    random(0, d=16).save(tmp_path / "v.safetensors")
    with pytest.raises(
        LoclinError, match="expected a vector of the model's width 32, found one of width 16"
    ):
        apply(replace(config, force=True))
    for content, message in (
        (b" \n\n", "found blank lines only"),
        (b"\xff\xfe\xff", "expected a text file of prompts in UTF-8"),
    ):
        (tmp_path / "prompts").write_bytes(content)
        random(0).save(tmp_path / "v.safetensors")
        with pytest.raises(LoclinError, match=message):
            apply(replace(config, prompts=tmp_path / "prompts"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"prompt": ()},
            "expected at least one prompt, found none: give --prompt or --prompts FILE",
        ),
        ({"prompt": ("x", "")}, "expected prompts with text, found an empty one"),
        ({"prompts": Path("nowhere")}, "expected a file of prompts, found nothing at nowhere"),
        ({"strength": ()}, "expected at least one strength, found none"),
        (
            {"strength": (0.0, float("nan"))},
            "expected a finite strength, found nan: change --strength",
        ),
        ({"strength": (float("inf"),)}, "expected a finite strength, found inf"),
        ({"tokens": 0}, "expected at least 1 new token, found 0: change --tokens"),
        ({"start": -1}, "expected a first token from 0, found -1: change --start"),
        ({"temperature": -1.0}, "expected a temperature of 0 or from 1e-05, found -1.0"),
        ({"temperature": float("inf")}, "expected a temperature of 0 or from 1e-05, found inf"),
        ({"shift": 2}, "expected a shift of 0 or 1, found 2"),
        ({"shift": 1}, "expected a GGUF file with --shift, found v.safetensors: leave --shift out"),
    ],
)
def test_settings_that_cannot_be_are_refused(bad: dict[str, Any], message: str) -> None:
    good = ApplyConfig(vector=Path("v.safetensors"), model="statements-small", prompt=("x",))
    assert good.checked() is good
    with pytest.raises(LoclinError, match=message):
        replace(good, **bad).checked()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite_are_refused(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    temperature: float,
) -> None:
    model, tokenizer, vector = families["llama"], tokenizers["llama"], random(5, model_type="llama")
    with pytest.raises(
        LoclinError, match="expected finite logits, found NaN or infinity: take a smaller strength"
    ):
        generations(model, tokenizer, vector, PROMPTS, [1e38], tokens=2, temperature=temperature)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(LoclinError, match="or check the model's weights"):
        generations(broken, tokenizer, vector, PROMPTS, [0.0], tokens=2, temperature=temperature)


@pytest.mark.parametrize("temperature", [-1.0, 1e-300, 9e-6, float("nan"), float("inf")])
def test_temperatures_that_nothing_can_be_divided_by_are_refused(
    families: dict[str, PreTrainedModel],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    temperature: float,
) -> None:
    model, tokenizer, vector = families["llama"], tokenizers["llama"], random(5, model_type="llama")
    with pytest.raises(LoclinError, match="expected a temperature of 0 or from 1e-05, found"):
        generations(model, tokenizer, vector, PROMPTS, [0.0], tokens=2, temperature=temperature)
    with pytest.raises(LoclinError, match="expected a temperature of 0 or from 1e-05, found"):
        ApplyConfig(vector=Path("v"), model="m", prompt=("a",), temperature=temperature).checked()
