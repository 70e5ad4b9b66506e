import random

import numpy as np
import pytest
import torch

from nnunet_dualcl.data.random_stream import RandomStream, seed_global_streams


def draw() -> tuple[float, ...]:
    """One value of each generator."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeding_repeats_all_three_generators() -> None:
    seed_global_streams(2**32 + 5)  # beyond NumPy's range
    first = draw()
    seed_global_streams(2**32 + 5)
    assert draw() == first
    seed_global_streams(6)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_draws_inside_leave_the_outside_stream_alone() -> None:
    seed_global_streams(3)
    expected = [draw() for _ in range(3)]
    seed_global_streams(3)
    stream, found = RandomStream(), []
    for number in range(3):
        found.append(draw())
        with stream.active():
            for _ in range(number + 1):
                draw()
    assert found == expected


def test_the_outside_stream_comes_back_after_an_exception() -> None:
    seed_global_streams(4)
    expected = draw()
    seed_global_streams(4)

    def fail() -> None:
        with RandomStream().active():
            draw()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert draw() == expected


def test_the_private_stream_goes_on_where_it_stopped_whatever_happens_outside() -> None:
    seed_global_streams(5)
    in_one_go = RandomStream()
    with in_one_go.active():
        expected = [draw() for _ in range(4)]
    seed_global_streams(5)
    in_parts, found = RandomStream(), []
    for number in range(4):
        with in_parts.active():
            found.append(draw())
        seed_global_streams(100 + number)
    assert found == expected
    assert len(set(expected)) == 4


def test_private_streams_follow_the_outer_seed_and_differ_from_it() -> None:
    inside, outside = [], []
    for seed in (8, 9):
        seed_global_streams(seed)
        with RandomStream().active():
            inside.append(draw())
        outside.append(draw())
    for values in zip(*inside, strict=True):
        assert len(set(values)) == 2
    assert not set(inside[0]) & set(outside[0])


def test_the_first_use_leaves_the_accelerators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    seed_global_streams(1)
    assert seeded == [1]
    with RandomStream().active():
        draw()
    assert seeded == [1]
