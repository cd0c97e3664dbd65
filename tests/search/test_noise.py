import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from loclin.errors import LoclinError
from loclin.search.noise import (
    BLOCK,
    CHUNK,
    LowRankNoise,
    Noise,
    NoiseStream,
    Numbers,
    dense,
    normals,
)

SHAPES = {
    "a.weight": (24, 16),
    "a.bias": (16,),
    "b.weight": (24, 16),
    "norm": (5,),
    "long": (BLOCK + 3, 2),
}


def drawn(noise: Noise, seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return whole(NoiseStream(noise, shapes), seed, shapes)


def whole(stream: NoiseStream, seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The pieces of every tensor, put together."""
    noise = {n: torch.full((int(np.prod(shape)),), torch.nan) for n, shape in shapes.items()}
    for name, part, z in stream.of(seed):
        noise[name][part] = dense(z).reshape(-1)
    return {n: z.view(shapes[n]) for n, z in noise.items()}


def draw(noise: Noise, seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Of one tensor alone."""
    return drawn(noise, seed, {name: shape})[name]


@pytest.mark.parametrize("text", ["gaussian", "rademacher", "lowrank:4", "tied"])
def test_a_noise_is_read_and_written_alike(text: str) -> None:
    assert str(Noise.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Gaussian",
        "lowrank",
        "lowrank:",
        "lowrank:0",
        "lowrank:-1",
        "lowrank:²",
        "tied:2",
        "gaussian:",
        "rademacher:1",
    ],
)
def test_other_noise_is_refused(text: str) -> None:
    with pytest.raises(
        LoclinError,
        match="expected noise gaussian, rademacher, lowrank:R with a rank R of at least 1, or tied",
    ):
        Noise.parse(text)


@pytest.mark.parametrize("text", ["gaussian", "rademacher", "lowrank:3", "tied"])
def test_the_noise_of_a_tensor_depends_on_seed_and_name_alone(text: str) -> None:
    """Not on which others are drawn, in what order, by how many threads, or after what."""
    noise, before = Noise.parse(text), torch.get_num_threads()
    expected = {n: draw(noise, 7, n, shape) for n, shape in SHAPES.items()}
    turned = dict(reversed(SHAPES.items()))
    ways = [
        drawn(noise, 7, SHAPES),
        drawn(noise, 7, turned),
        drawn(noise, 7, {"b.weight": SHAPES["b.weight"]}),
    ]
    stream = NoiseStream(noise, SHAPES)
    list(stream.of(8))
    ways.append(whole(stream, 7, SHAPES))
    try:
        torch.set_num_threads(3)
        ways.append(drawn(noise, 7, SHAPES))
    finally:
        torch.set_num_threads(before)
    for way in ways:
        for name, z in way.items():
            assert torch.equal(z, expected[name])
    assert not torch.equal(draw(noise, 8, "a.weight", (24, 16)), expected["a.weight"])


def test_pieces_of_gaussian_noise_are_those_of_one_stream() -> None:
    """However long a tensor is: searches of earlier versions drew it whole."""
    for size in (1, 6, BLOCK + 1, CHUNK, CHUNK + 1, 2 * CHUNK + BLOCK + 6):
        assert torch.equal(draw(Noise(), 3, "w", (size,)), normals(size, 3, "w"))
    sizes = [len(z) for _, _, z in NoiseStream(Noise(), {"w": (3 * CHUNK + 1,)}).of(0)]
    assert sizes == [CHUNK, CHUNK, CHUNK, 1]


def test_rademacher_noise_is_fair_signs_bit_by_bit() -> None:
    size = 4 * CHUNK + 13
    z = draw(Noise(kind="rademacher"), 0, "w", (size,))
    assert bool((z.abs() == 1).all())
    assert abs(float(z.sum())) < 4.5 * np.sqrt(size)
    for lag in (1, 2, 8, 64, BLOCK, CHUNK):
        assert abs(float((z[lag:] * z[:-lag]).sum())) < 4.5 * np.sqrt(size - lag)
    numbers = Numbers()
    numbers.start(0, "w")
    words = [int(w) for w in numbers._source.random_raw(CHUNK // 64)]
    bits = [word >> i & 1 for word in words for i in range(64)]
    assert z[:CHUNK].tolist() == [2 * bit - 1 for bit in bits]
    assert torch.equal(z[:77], draw(Noise(kind="rademacher"), 0, "w", (77,)))


def test_tensors_of_one_shape_are_independent_unless_tied() -> None:
    def correlation(noise: str) -> float:
        z = drawn(Noise.parse(noise), 0, {"one": (200, 100), "two": (200, 100)})
        return float(torch.corrcoef(torch.stack([v.flatten() for v in z.values()]))[0, 1])

    assert abs(correlation("gaussian")) < 4.5 / np.sqrt(20_000)
    assert correlation("tied") == pytest.approx(1)


def test_tied_tensors_take_the_first_numbers_of_one_stream() -> None:
    z = drawn(Noise.parse("tied"), 0, SHAPES)
    for name, shape in SHAPES.items():
        assert torch.equal(z[name].flatten(), z["long"].flatten()[: np.prod(shape)])


@pytest.mark.parametrize("rank", [1, 4])
def test_lowrank_noise_has_its_rank_and_unit_variance(rank: int) -> None:
    noise, shape, entries = Noise(kind="lowrank", rank=rank), (24, 16), []
    stream = NoiseStream(noise, {"w": shape})
    for seed in range(400):
        ((_, _, z),) = stream.of(seed)
        assert isinstance(z, LowRankNoise)
        entries.append(z.dense())
        torch.testing.assert_close(z.dense(), z.left @ z.right.T / np.sqrt(rank))
    assert int(torch.linalg.matrix_rank(entries[0])) == rank
    each = torch.stack(entries)
    assert bool(((each.mean(0)).abs() < 5 / 20).all())
    # Var E² = 2 + 6/r for products of normal factors, each entry over 400 independent seeds
    assert bool(((each.square().mean(0) - 1).abs() < 6 * np.sqrt((2 + 6 / rank) / 400)).all())
    assert float(each.square().mean()) == pytest.approx(1, abs=0.02)


def test_lowrank_noise_leaves_what_is_no_matrix_gaussian() -> None:
    for shape in ((7,), (), (3, 4, 5)):
        z = draw(Noise(kind="lowrank", rank=2), 1, "w", shape)
        assert torch.equal(z, draw(Noise(), 1, "w", shape))


def test_numbers_are_standard_normal() -> None:
    found = [normals(BLOCK + 7, seed, "law").double().numpy() for seed in range(20)]
    assert stats.kstest([stats.kstest(x, "norm").pvalue for x in found], "uniform").pvalue > 0.001
    together = np.concatenate(found)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = np.sqrt(np.mean(together ** (2 * power)) / len(together))
        assert abs(np.mean(together**power) - moment) < 4 * spread


def test_no_two_streams_are_correlated() -> None:
    """Neither the two numbers made of the same bits, nor streams of other seeds or other names."""
    n = BLOCK // 2
    whole = normals(2 * n, 0, "a")
    pairs = [
        (whole[:n], whole[n:]),
        (whole[:n].square(), whole[n:].square()),
        (whole, normals(2 * n, 1, "a")),
        (whole, normals(2 * n, 0, "b")),
        (whole, normals(2 * n, 0, "a", "a")),
    ]
    for first, second in pairs:
        found = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
        assert abs(found) < 4.5 / np.sqrt(len(first))


def test_the_stream_stays_what_it_was() -> None:
    """Seeds of old searches give the same weights: another stream would need another name."""
    assert normals(4, 0, "pinned").tolist() == pytest.approx(
        [0.533758, -0.688104, -1.811877, 0.101023], abs=1e-5
    )


def test_whole_blocks_do_not_depend_on_how_many_follow() -> None:
    longer = normals(2 * BLOCK + 5, 3, "w")
    torch.testing.assert_close(normals(2 * BLOCK, 3, "w"), longer[: 2 * BLOCK], rtol=0, atol=0)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 17, BLOCK + 1])
def test_any_number_of_numbers_is_finite_and_can_be_had_again(size: int) -> None:
    numbers = Numbers()
    numbers.start(5, "w")
    first = numbers.normals(torch.empty(size)).clone()
    numbers.start(6, "other")
    numbers.normals(torch.empty(BLOCK))
    assert len(first) == size
    assert bool(torch.isfinite(first).all())
    numbers.start(5, "w")
    assert torch.equal(first, numbers.normals(torch.full((size,), torch.nan)))


@pytest.mark.parametrize("bits", [-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 65, 2**31 - 1])
def test_no_bits_give_a_number_that_is_not_finite(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = Numbers()

    class Fixed:
        state = numbers._state

        def random_raw(self, count: int) -> np.ndarray:
            return np.full(2 * count, bits, np.int32).view(np.uint64)

    monkeypatch.setattr(numbers, "_source", Fixed())
    numbers.start(0, "w")
    found = numbers.normals(torch.empty(7))
    assert bool(torch.isfinite(found).all())
    assert float(found.abs().max()) < 5.8
