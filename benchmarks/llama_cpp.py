"""Is a GGUF file read as llama.cpp reads it: tokens and logits of loclin beside llama.cpp's own.

    python benchmarks/llama_cpp.py [FILE.gguf | smollm2-135m] --python PYTHON [--out FILE]

PYTHON is that of an environment with llama-cpp-python, which compiles for minutes and is therefore
no dependency: `python -m venv there; CMAKE_BUILD_PARALLEL_LEVEL=1 there/bin/pip install
llama-cpp-python`. Two comparisons of all logits of a few texts, each centred over the vocabulary:

1. the file rewritten in F32 by llama.cpp's own quantiser: the largest difference (aim: 1e-3);
2. the file as it is: llama.cpp rounds activations to 8 bits there, so that logits differ by the
   rounding: root mean square of the difference over that of the logits.

Keys and values are kept in F32; by default llama.cpp rounds them to F16, which alone moves logits
by about 1e-2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch

from loclin.models.gguf import gguf_file
from loclin.models.loading import load_model
from loclin.options import LoadOptions

TEXTS = (
    "The capital of France is",
    "The city of Lyon is in France.  In 1984, 12 + 7 = 19 people came.",
    "def f(x):\n\n    return x**2  # don't\n",
    "Straße, naïve café, 東京 and 🙂: 3.14\n\n\n42",
    "<|im_start|>user\nWhat is the symbol of gold?<|im_end|>\n<|im_start|>assistant\n",
)
#: Run by the other environment: tokens and logits of every text, of the file and of its copy.
THEIRS = """
import sys, json, numpy, llama_cpp
path, copy, texts, out = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
how = llama_cpp.llama_model_quantize_default_params()
how.ftype, how.allow_requantize, how.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 1
assert llama_cpp.llama_model_quantize(path.encode(), copy.encode(), how) == 0
kept = {}
for name, file in (("file", path), ("copy", copy)):
    whole = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "n_threads": 1}
    model = llama_cpp.Llama(file, n_ctx=128, logits_all=True, verbose=False, **whole)
    for i, text in enumerate(texts):
        tokens = model.tokenize(text.encode(), add_bos=True, special=True)
        model.reset()
        model.eval(tokens)
        kept[f"tokens{i}"] = numpy.array(tokens)
        kept[f"{name}{i}"] = model.scores[: len(tokens)].copy()
numpy.savez(out, version=llama_cpp.__version__, **kept)
"""


def centred(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    return values - values.mean(1, keepdims=True)


@torch.no_grad()
def rows(name: str, path: Path, theirs: dict[str, np.ndarray]) -> list[str]:
    model, tokenizer, _ = load_model(LoadOptions(model=name, device="cpu"), seed=0)
    table = []
    for i, text in enumerate(TEXTS):
        ids = tokenizer(text).input_ids
        same = ids == theirs[f"tokens{i}"].tolist()
        line = f"| {text[:32]!r} | {len(ids)} | {'the same' if same else 'others'} |"
        if same:
            own = centred(model(torch.tensor([ids])).logits[0].numpy())
            copy, file = (centred(theirs[f"{n}{i}"]) for n in ("copy", "file"))
            share = np.sqrt(((own - file) ** 2).mean() / (own**2).mean())
            line += f" {np.abs(own - copy).max():.1e} | {share:.1%} |"
        else:
            line += " | |"
        table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--python", required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    path = gguf_file(options.model)
    if path is None:
        parser.error(f"expected a GGUF file, found none: {options.model}")
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "theirs.npz"
        texts = json.dumps(TEXTS)
        command = [options.python, "-c", THEIRS, str(path), f"{scratch}/f32.gguf", texts, str(kept)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            parser.exit(1, done.stderr)
        with np.load(kept) as archive:
            theirs = dict(archive)
    lines = [
        f"# {path.name} in loclin and in llama.cpp, {date.today()}",
        "",
        f"llama-cpp-python {theirs['version']}, torch {torch.__version__}, one CPU thread. "
        "`python benchmarks/llama_cpp.py`",
        "",
        "| text | tokens | llama.cpp's | F32: largest difference | file: share of the logits |",
        "| --- | --- | --- | --- | --- |",
        *rows(options.model, path, theirs),
    ]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
