from dataclasses import replace

import torch
from transformers import PreTrainedModel

from loclin.activations.capture import activations
from loclin.studies.steering.claims_context import ClaimsContext, cosine
from loclin.studies.steering.claims_vectors import Vectors, estimands, whitened, without_embeddings


def test_the_estimands_are_those_of_the_brief(ctx: ClaimsContext, vectors: Vectors) -> None:
    """Against states before and after a step that is taken here by hand."""
    space, read = ctx.space, ctx.parts["shift"]
    after = {}
    for loss, direction in vectors.steps.items():
        with space.restored():
            point = space.read()
            step = ctx.settings.eta * point.norm() * direction / direction.norm()
            ends = []
            for sign in (1, -1):
                space.write(point + sign * step)
                ends.append(activations(ctx.model, read.batch, layers=ctx.layers))
            after[loss] = (ends[0] - ends[1]) / 2
    assert read.labels is not None
    yes = torch.from_numpy(read.labels)
    expected = {
        "E1": after["fixed"].mean(1),
        "E2": after["gold"].mean(1),
        "E3": after["gold"][:, yes].mean(1) - after["gold"][:, ~yes].mean(1),
    }
    for of, vector in expected.items():
        assert cosine(vectors.shifts[of], vector).min() > 0.999
        assert torch.allclose(vectors.shifts[of].norm(dim=-1), vector.norm(dim=-1), rtol=1e-2)
    assert estimands({"fixed": after["fixed"]}, replace(read, labels=None)).keys() == {"E1"}


def test_frozen_embeddings_stay_where_they_are(
    ctx: ClaimsContext, families: dict[str, PreTrainedModel]
) -> None:
    left = without_embeddings(ctx.model, ctx.space.names).split(",")
    assert {n for n in ctx.space.names if n not in left} == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
    llama = families["llama"]
    names = [n for n, _ in llama.named_parameters()]
    gone = set(names) - set(without_embeddings(llama, names).split(","))
    assert gone == {"model.embed_tokens.weight", "lm_head.weight"} & set(names)
    assert without_embeddings(ctx.model, ["transformer.wte.weight"]) == ""


def test_whitened_vectors_see_every_direction_vary_alike(
    ctx: ClaimsContext, vectors: Vectors
) -> None:
    read = [
        activations(ctx.model, ctx.parts[p].batch, layers=ctx.layers) for p in ("labels", "shift")
    ]
    h = whitened(torch.cat(read, dim=1).transpose(0, 1), vectors).transpose(0, 1).double()
    spread = torch.linalg.eigvalsh(torch.stack([x.T.cov() for x in h]))
    # as far as so few prompts say: before, the largest is hundreds of times the mean
    assert (spread.max(1).values < 2.5).all()
    one = whitened(vectors.caa, vectors)
    assert torch.allclose(one[1], vectors.white[1] @ vectors.caa[1], atol=1e-5)
