"""Candidates by seed, and the weights that they stand for: always written from a copy of the base,
never by going back.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loclin.errors import LoclinError
from loclin.geometry.gramian import to_float64
from loclin.parameters import ParameterSpace
from loclin.search.noise import CHUNK, LowRankNoise, Noise, NoiseStream, dense, normals
from loclin.seeds import derived


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One point of a search: θ = base + sign·σ·z.

    Attributes:
        index: place in the search.
        seed: z is a function of this and the names of the tensors.
        sigma: σ, in units of the weights.
        sign: −1 for the mirror image in an antithetic pair.
    """

    index: int
    seed: int
    sigma: float
    sign: int = 1

    @property
    def scale(self) -> float:
        """sign·σ."""
        return self.sign * self.sigma


def candidates(
    n: int, sigmas: Sequence[float], *, seed: int, antithetic: bool = False
) -> list[Candidate]:
    """n candidates at every σ: those of the first σ, then those of the next, and so on.

    The n seeds are the same at each σ, so that curves over σ are paired.

    Args:
        n: for each σ.
        sigmas: in units of the weights.
        seed: of the search.
        antithetic: candidates 2j and 2j + 1 are mirror images: one seed, signs + and −.

    Raises:
        LoclinError: n < 1; no σ, one that is not positive and finite, or comes twice; an odd n with
            antithetic pairs.

    >>> [(c.index, c.sigma, c.sign) for c in candidates(2, [0.1, 0.2], seed=0, antithetic=True)]
    [(0, 0.1, 1), (1, 0.1, -1), (2, 0.2, 1), (3, 0.2, -1)]
    """
    if n < 1:
        raise LoclinError(f"expected at least 1 candidate, found {n}: raise --n")
    if antithetic and n % 2:
        raise LoclinError(
            f"expected an even number of candidates for antithetic pairs, found {n}: change --n by "
            "one"
        )
    if not sigmas or len(set(sigmas)) < len(sigmas):
        raise LoclinError(
            f"expected at least one σ, each given once, found {list(sigmas)}: change --sigma"
        )
    for sigma in sigmas:
        if not (math.isfinite(sigma) and sigma > 0):
            raise LoclinError(f"expected a positive, finite σ, found {sigma}: change --sigma")
    return [
        Candidate(
            index=place * n + i,
            seed=derived(seed, "candidate", i // 2 * 2 if antithetic else i),
            sigma=float(sigma),
            sign=-1 if antithetic and i % 2 else 1,
        )
        for place, sigma in enumerate(sigmas)
        for i in range(n)
    ]


class Perturbed:
    """A model's chosen tensors, moved to one candidate after the other and back, bit for bit.

    Every candidate's weights are base + sign·σ·z, computed in float32 or better and rounded once to
    the dtype of the weights. They are written beside the base, which nothing writes to, and the
    tensors point at them: nothing drifts, and going back costs nothing. As a context manager it
    restores the base and checks it against its hash, whatever happened inside. From the first
    candidate on, memory grows by the tensors, and by no more than a piece of noise.

    Args:
        space: the tensors; where they stand now is the base.
        noise: how z is made.
        basis: orthonormal rows; z is then Σᵢ zᵢqᵢ with k standard normal numbers.

    Attributes:
        tensors: the model's own, as they stand, by name.
        base: the values that every tensor had when this began, by name.
        hashes: `weights_hash` of every tensor, by name.

    Raises:
        LoclinError: a basis of another dimension or that is not orthonormal, or with noise that is
            not gaussian.
    """

    def __init__(
        self, space: ParameterSpace, noise: Noise, *, basis: Float[Tensor, "k D"] | None = None
    ) -> None:
        if basis is not None:
            _check_basis(basis, space.dimension, noise)
        self.space, self.noise, self.basis = space, noise, basis
        self.tensors = dict(zip(space.names, space.parameters, strict=True))
        self.hashes = {n: weights_hash({n: p}) for n, p in self.tensors.items()}
        ends = list(itertools.accumulate(space.sizes))
        spans = map(slice, [0, *ends], ends)
        self._spans = dict(zip(space.names, spans, strict=True))
        self.begin()

    def begin(self) -> None:
        """Take where the tensors stand for the base, on the devices where they lie."""
        self.base = {n: p.detach() for n, p in self.tensors.items()}
        self._beside: dict[str, Tensor] = {}
        self._stream = NoiseStream(
            self.noise,
            {n: tuple(p.shape) for n, p in self.base.items()},
            self.base[self.space.names[0]].device,
        )

    @torch.no_grad()
    def place(self, candidate: Candidate) -> None:
        """Move the model to a candidate, from wherever it stands: every tensor is written once,
        from the base.
        """
        if not self._beside:
            plain = torch.contiguous_format
            self._beside = {
                n: torch.empty_like(t, memory_format=plain) for n, t in self.base.items()
            }
        for name, part, z in self._noise(candidate.seed):
            _step(self.base[name], part, z, candidate.scale, self._beside[name])
        for name, parameter in self.tensors.items():
            parameter.data = self._beside[name]

    def restore(self) -> None:
        """Move the model back to the base."""
        for name, parameter in self.tensors.items():
            parameter.data = self.base[name]

    @contextmanager
    def at(self, candidate: Candidate | None) -> Iterator[None]:
        """Inside, the model stands at a candidate (None: at its base); afterwards at its base."""
        try:
            if candidate is not None:
                self.place(candidate)
            yield
        finally:
            self.restore()

    def verify(self) -> None:
        """Check that the model stands at the base, bit for bit.

        Raises:
            LoclinError: the hash of a tensor is another one.
        """
        for name, parameter in self.tensors.items():
            if weights_hash({name: parameter}) != self.hashes[name]:
                raise LoclinError(
                    f"expected {name} at its base, found other bytes: load the model again, and "
                    "report this"
                )

    def __enter__(self) -> Perturbed:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()
        self._beside.clear()
        self.verify()

    def vector(self, candidate: Candidate) -> Float[Tensor, " D"]:
        """δ = sign·σ·z as it is meant, before any rounding to the dtype of the weights: on the CPU,
        in float64 where the weights are and in float32 elsewhere.
        """
        double = self.base[self.space.names[0]].dtype == torch.float64
        whole = torch.empty(self.space.dimension, dtype=torch.float64 if double else torch.float32)
        for name, part, z in self._noise(candidate.seed):
            whole[self._spans[name]][part] = dense(z).reshape(-1)
        return whole.mul_(candidate.scale)

    @torch.no_grad()
    def realised(self, candidate: Candidate) -> dict[str, float]:
        """How far every tensor moves, as a share of σ: RMS(placed − base)/σ. Near 1, less where the
        dtype rounds steps away.

        Raises:
            LoclinError: σ is so small that no weight moves.
        """
        shares = {}
        with self.at(candidate):
            for name, base in self.base.items():
                there, here = (t.reshape(-1).split(CHUNK) for t in (self.tensors[name], base))
                moves = (to_float64(x) - to_float64(y) for x, y in zip(there, here, strict=True))
                square = float(torch.stack([move.square().sum() for move in moves]).sum())
                shares[name] = math.sqrt(square / base.numel()) / candidate.sigma
        self._beside.clear()
        if any(shares.values()):
            return shares
        dtype = str(self.space.parameters[0].dtype).removeprefix("torch.")
        raise LoclinError(
            f"expected a σ that moves a weight, found {candidate.sigma:g}, which {dtype} rounds "
            "away everywhere: raise --sigma"
        )

    def _noise(self, seed: int) -> Iterator[tuple[str, slice, Tensor | LowRankNoise]]:
        """The noise of every tensor, as `NoiseStream.of` gives it."""
        if self.basis is None:
            yield from self._stream.of(seed)
            return
        z = normals(len(self.basis), seed, "basis").to(self.basis)
        for name in self.base:
            yield name, slice(None), z @ self.basis[:, self._spans[name]]


def _step(base: Tensor, part: slice, z: Tensor | LowRankNoise, scale: float, out: Tensor) -> None:
    """base + scale·z at some of the entries, written to `out`: in float32 or better, and rounded
    once.
    """
    whole = isinstance(z, LowRankNoise)
    here, there = (base, out) if whole else (base.reshape(-1)[part], out.view(-1)[part])
    exact = base.dtype in (torch.float32, torch.float64)
    precise = here if exact else here.float()
    direct = there if exact else precise
    if isinstance(z, LowRankNoise):
        left, right = z.left.to(precise), z.right.to(precise)
        torch.addmm(precise, left, right.T, alpha=scale * z.scale, out=direct)
    else:
        torch.add(precise, z.to(precise), alpha=scale, out=direct)
    if not exact:
        there.copy_(precise)


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, shapes, dtypes and bytes.

    >>> w = torch.zeros(2)
    >>> weights_hash({"w": w}) == weights_hash({"w": w.double()})
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().data if data.numel() else b"")
    return digest.hexdigest()


def _check_basis(basis: Tensor, dimension: int, noise: Noise) -> None:
    if noise.kind != "gaussian":
        raise LoclinError(
            f"expected gaussian noise inside a basis, found {noise}: change --noise or --space"
        )
    if basis.ndim != 2 or not 0 < len(basis) <= basis.shape[1] == dimension:
        raise LoclinError(
            f"expected a basis of rows of {dimension} numbers, found shape {tuple(basis.shape)}: "
            "check the space"
        )
    products = basis.double() @ basis.double().T
    off = float((products - torch.eye(len(basis)).to(products)).abs().max())
    if not off < 1e-3:
        raise LoclinError(
            f"expected orthonormal rows, found products off by {off:.2g}: orthonormalise the basis"
        )
