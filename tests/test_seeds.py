import torch

from loclin.seeds import derived, seeded


def test_every_purpose_has_a_stream_of_its_own_that_never_changes() -> None:
    assert derived(0, "damage") == 8948418101645735137
    streams = {derived(s, *p) for s in (0, 1) for p in (("a",), ("b",), ("a", 0), ("a", "b"))}
    assert len(streams) == 8
    assert all(0 <= s < 1 << 63 for s in streams)


def test_the_global_generator_is_seeded_inside_and_left_as_it_was() -> None:
    before = torch.get_rng_state()
    with seeded(7):
        first = torch.rand(3)
    with seeded(7):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)
