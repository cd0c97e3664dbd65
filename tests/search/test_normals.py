import numpy as np
import pytest
import torch
from scipy import stats

from loclin.search.normals import BLOCK, Numbers, normals


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
