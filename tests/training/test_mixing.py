from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnunet_dualcl.training.mixing import copy_paste
from nnunet_dualcl.training.pseudo_labels import PseudoLabels

SHAPE = (10, 20, 30)
EDGES = {1.0: SHAPE, 0.67: (7, 13, 20), 0.5: (5, 10, 15), 1e-6: (1, 1, 1)}  # round(fraction * size), at least 1


def case(unlabeled: int = 2, labeled: int = 2, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    """Every voxel of every patch has its own intensity, below 0 in unlabeled patches and above in labeled ones."""
    generator = torch.Generator().manual_seed(0)
    images, labeled_images = (
        sign * (1 + torch.arange(count * 2 * np.prod(shape), dtype=torch.float32)).reshape(count, 2, *shape)
        for sign, count in ((-1, unlabeled), (1, labeled))
    )
    return {
        "images": images,
        "labels": random_labels(unlabeled, shape, generator),
        "labeled_images": labeled_images,
        "known": random_labels(labeled, shape, generator),
    }


def random_labels(patches: int, shape: tuple[int, ...], generator: torch.Generator) -> PseudoLabels:
    """For two problems of three classes."""
    labels = torch.randint(3, (patches, 2, *shape), generator=generator)
    return PseudoLabels(labels, torch.rand(patches, 2, *shape, generator=generator) < 0.5)


def mix(arguments: dict[str, Any], *, fraction: float = 0.67, seed: int = 0) -> tuple[torch.Tensor, PseudoLabels]:
    generator = np.random.default_rng(seed)
    return copy_paste(**arguments, fraction=fraction, generator=generator)


def first_of(seed: int) -> int:
    """0 where the first patch gets a cuboid, 1 where it keeps one."""
    return int(np.random.default_rng(seed).integers(2))


def test_both_directions_come_first() -> None:
    assert {first_of(seed) for seed in range(10)} == {0, 1}


def pasted_into(images: torch.Tensor) -> torch.Tensor:
    """Where each patch shows its labeled partner; both channels agree."""
    assert torch.equal(images[:, 0] > 0, images[:, 1] > 0)
    return images[:, 0] > 0


def box_of(inside: torch.Tensor) -> tuple[tuple[int, int], ...]:
    """First and last index on each axis of a mask that must be a filled box."""
    where = inside.nonzero()
    box = tuple((int(column.min()), int(column.max())) for column in where.T)
    assert len(where) == np.prod([last - first + 1 for first, last in box])
    return box


@pytest.mark.parametrize("fraction", EDGES)
def test_every_other_patch_gets_a_cuboid_and_the_rest_keep_theirs(fraction: float) -> None:
    pasted = pasted_into(mix(case(unlabeled=4), fraction=fraction)[0])
    for index, patch in enumerate(pasted):
        box = box_of(~patch if (index + first_of(0)) % 2 else patch)
        assert tuple(last - first + 1 for first, last in box) == EDGES[fraction]


def test_two_axes() -> None:
    pasted = pasted_into(mix(case(shape=(20, 30)))[0])
    for inside in (pasted[first_of(0)], ~pasted[1 - first_of(0)]):
        assert [last - first + 1 for first, last in box_of(inside)] == [13, 20]


def test_cuboids_take_every_place_and_differ_within_a_batch() -> None:
    arguments = case()
    boxes = []
    for seed in range(100):
        pasted = pasted_into(mix(arguments, seed=seed)[0])
        boxes.append((box_of(pasted[first_of(seed)]), box_of(~pasted[1 - first_of(seed)])))
    for axis, (size, edge) in enumerate(zip(SHAPE, EDGES[0.67], strict=True)):
        assert {box[axis][0] for pair in boxes for box in pair} == set(range(size - edge + 1))
    assert sum(even == odd for even, odd in boxes) < 10


@pytest.mark.parametrize(("unlabeled", "labeled"), [(2, 2), (5, 2)])
def test_labels_and_reliable_follow_the_pixels(unlabeled: int, labeled: int) -> None:
    arguments = case(unlabeled, labeled)
    images, (labels, reliable) = mix(arguments)
    assert labels.dtype == torch.int64
    assert reliable.dtype == torch.bool
    for index, pasted in enumerate(pasted_into(images)):
        partner = index % labeled
        expected = torch.where(pasted, arguments["labeled_images"][partner], arguments["images"][index])
        assert torch.equal(images[index], expected)
        for mixed, known, before in zip((labels, reliable), arguments["known"], arguments["labels"], strict=True):
            assert torch.equal(mixed[index][:, pasted], known[partner][:, pasted])
            assert torch.equal(mixed[index][:, ~pasted], before[index][:, ~pasted])


def test_each_labeled_patch_has_its_turn_where_there_are_more() -> None:
    """nnU-Net forces the last ones onto foreground."""
    arguments = case(unlabeled=2, labeled=3)
    partners = []
    for seed in range(30):
        images, (labels, _) = mix(arguments, seed=seed)
        shown = []
        for index, pasted in enumerate(pasted_into(images)):
            fits = [bool((images[index] == patch)[:, pasted].all()) for patch in arguments["labeled_images"]]
            shown.append(fits.index(True))
            assert torch.equal(labels[index][:, pasted], arguments["known"].labels[shown[-1]][:, pasted])
        assert shown[1] == (shown[0] + 1) % 3
        partners.append(shown[0])
    assert all(partners.count(patch) > 4 for patch in range(3))


def test_the_whole_patch() -> None:
    arguments = case()
    images, mixed = mix(arguments, fraction=1.0)
    given, kept = first_of(0), 1 - first_of(0)
    assert torch.equal(images[given], arguments["labeled_images"][given])
    assert torch.equal(images[kept], arguments["images"][kept])
    for part, known, before in zip(mixed, arguments["known"], arguments["labels"], strict=True):
        assert torch.equal(part[given], known[given])
        assert torch.equal(part[kept], before[kept])


def test_arguments_are_left_as_they_are() -> None:
    arguments, untouched = case(), case()
    mix(arguments)
    for name in ("images", "labeled_images"):
        assert torch.equal(arguments[name], untouched[name])
    for name in ("labels", "known"):
        for part, expected in zip(arguments[name], untouched[name], strict=True):
            assert torch.equal(part, expected)


def test_one_generator_state_one_result() -> None:
    first, again, other = (mix(case(), seed=seed) for seed in (5, 5, 6))
    for one, two, three in zip((first[0], *first[1]), (again[0], *again[1]), (other[0], *other[1]), strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    mix(case())
    assert torch.equal(torch.get_rng_state(), before)
