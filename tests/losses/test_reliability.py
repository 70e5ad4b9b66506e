import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from nnunet_dualcl.losses import reliable_mask
from nnunet_dualcl.losses.reliability import MAX_SAMPLES, _sampling_stride


def random_entropy(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def random_labels(*shape: int, num_classes: int) -> torch.Tensor:
    return torch.randint(num_classes, shape, generator=torch.Generator().manual_seed(1))


def loop_mask(entropy: np.ndarray, unreliable_fraction: float) -> np.ndarray:
    """Reliable unless among the ``floor(alpha n)`` greatest of a list without ties."""
    reliable = np.ones(len(entropy), dtype=bool)
    descending = sorted(range(len(entropy)), key=lambda index: -entropy[index])
    for index in descending[: int(unreliable_fraction * len(entropy))]:
        reliable[index] = False
    return reliable


@pytest.mark.parametrize(
    ("unreliable_fraction", "expected"),
    [
        (0.0, [1, 1, 1, 1, 1]),
        (0.19, [1, 1, 1, 1, 1]),
        (0.2, [1, 0, 1, 1, 1]),
        (0.5, [1, 0, 1, 0, 1]),
        (1.0, [0, 0, 1, 0, 0]),
    ],
)
def test_closed_form(unreliable_fraction, expected):
    entropy = torch.tensor([[0.3, 0.9, 0.1, 0.5, 0.4]])
    reliable = reliable_mask(entropy, unreliable_fraction=unreliable_fraction)
    assert reliable.tolist() == [[bool(value) for value in expected]]


def test_closed_form_per_class():
    entropy = torch.tensor([[0.01, 0.02, 0.03, 0.04, 0.7, 0.8]])
    labels = torch.tensor([[0, 0, 0, 0, 1, 1]])
    whole = reliable_mask(entropy, unreliable_fraction=0.5)
    by_class = reliable_mask(entropy, unreliable_fraction=0.5, labels=labels, num_classes=3)
    # One quantile for all costs the uncertain class every voxel.
    assert whole.tolist() == [[True, True, True, False, False, False]]
    assert by_class.tolist() == [[True, True, False, False, True, False]]


@pytest.mark.parametrize("shape", [(2, 11, 13), (2, 5, 6, 7)])
@pytest.mark.parametrize("unreliable_fraction", [0.05, 0.2, 0.73])
def test_equals_loop(shape, unreliable_fraction):
    entropy, labels = random_entropy(*shape), random_labels(*shape, num_classes=3)
    reliable = reliable_mask(entropy, unreliable_fraction=unreliable_fraction)
    expected = loop_mask(entropy.flatten().numpy(), unreliable_fraction)
    np.testing.assert_array_equal(reliable.flatten().numpy(), expected)

    reliable = reliable_mask(entropy, unreliable_fraction=unreliable_fraction, labels=labels, num_classes=4)
    for k in range(3):
        expected = loop_mask(entropy[labels == k].numpy(), unreliable_fraction)
        np.testing.assert_array_equal(reliable[labels == k].numpy(), expected)


def test_rounding_keeps_the_exact_share():
    entropy = torch.arange(100.0).view(1, 100)
    for percent in range(101):
        unreliable = ~reliable_mask(entropy, unreliable_fraction=percent / 100)
        assert unreliable.sum() == min(percent, 99)  # the surest voxel stays


def test_fewer_voxels_are_reliable_as_the_fraction_grows():
    entropy = random_entropy(2, 5, 6, 7)
    masks = [reliable_mask(entropy, unreliable_fraction=fraction) for fraction in (0.0, 0.2, 0.4, 0.9)]
    for larger, smaller in pairwise(masks):
        assert (larger | ~smaller).all()
        assert larger.sum() > smaller.sum()


def test_only_the_order_of_entropies_matters():
    entropy = random_entropy(2, 5, 6)
    expected = reliable_mask(entropy, unreliable_fraction=0.3)
    assert torch.equal(reliable_mask(3 + 0.01 * entropy, unreliable_fraction=0.3), expected)


@pytest.mark.parametrize("unreliable_fraction", [0.0, 0.3])
def test_labels_outside_the_classes_are_not_reliable(unreliable_fraction):
    labels = torch.tensor([[0, 2, -1, 1, 255]], dtype=torch.int16)
    entropy = torch.zeros(1, 5)
    reliable = reliable_mask(entropy, unreliable_fraction=unreliable_fraction, labels=labels, num_classes=2)
    assert reliable.tolist() == [[True, False, False, True, False]]


def test_ties_are_reliable_and_nan_is_not():
    reliable = reliable_mask(torch.tensor([[0.0, 0.0, 0.0, math.nan]]), unreliable_fraction=0.5)
    assert reliable.tolist() == [[True, True, True, False]]
    assert not reliable_mask(torch.tensor([[math.nan]]), unreliable_fraction=0.0).any()


@pytest.mark.parametrize("per_class", [False, True])
def test_nan_moves_no_quantile(per_class):
    entropy, labels = random_entropy(1, 400), random_labels(1, 400, num_classes=2)
    known = torch.arange(400) % 4 > 0
    arguments = {"unreliable_fraction": 0.5, "labels": labels if per_class else None, "num_classes": 2}
    found = reliable_mask(torch.where(known, entropy, math.nan), **arguments)
    if per_class:
        arguments["labels"] = labels[:, known]
    assert torch.equal(found[:, known], reliable_mask(entropy[:, known], **arguments))


def test_empty_volume_gives_an_empty_mask():
    assert reliable_mask(torch.zeros(0, 4), unreliable_fraction=0.2).shape == (0, 4)


@pytest.mark.parametrize("shape", [(2, 64, 64, 64), (3, 100, 300), (2, 36, 50, 70)])
def test_large_volumes_are_sampled_evenly(shape):
    entropy, labels = random_entropy(*shape), random_labels(*shape, num_classes=2)
    stride = _sampling_stride(shape, 4096)
    assert math.prod(shape) / stride <= 4096 < math.prod(shape)
    for axis, length in enumerate(shape[1:], start=1):
        positions = np.unravel_index(np.arange(0, math.prod(shape), stride), shape)[axis]
        assert len(np.unique(positions)) == length
    for extra in ({}, {"labels": labels, "num_classes": 2}):
        reliable = reliable_mask(entropy, unreliable_fraction=0.2, max_samples=4096, **extra)
        assert reliable.float().mean().item() == pytest.approx(0.8, abs=0.03)


def test_sample_does_not_follow_the_grid():
    # Entropy depends on the position along one axis only, with a period that a stride of 64 would lock onto.
    entropy = torch.arange(64.0).expand(1, 64, 64, 64).contiguous()
    reliable = reliable_mask(entropy, unreliable_fraction=0.25, max_samples=4096)
    assert reliable.float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_volumes_up_to_the_limit_are_not_sampled():
    assert _sampling_stride((1, MAX_SAMPLES), MAX_SAMPLES) == 1
    assert _sampling_stride((2, 48, 16, 8), MAX_SAMPLES) == 1


def test_class_that_the_sample_misses_is_reliable():
    entropy, labels = random_entropy(1, 5000), torch.zeros(1, 5000, dtype=torch.int64)
    stride = _sampling_stride((1, 5000), 100)
    labels[0, 1:stride] = 1  # between the first two sampled voxels
    arguments = {"unreliable_fraction": 0.2, "max_samples": 100}
    assert reliable_mask(entropy, labels=labels, num_classes=2, **arguments)[labels == 1].all()
    assert not reliable_mask(entropy, **arguments)[labels == 1].all()


def test_class_between_every_two_sampled_voxels():
    entropy, labels = random_entropy(1, 199), torch.arange(199).unsqueeze(0) % 2
    assert _sampling_stride((1, 199), 100) == 2
    arguments = {"unreliable_fraction": 0.2, "max_samples": 100}
    by_class = reliable_mask(entropy, labels=labels, num_classes=2, **arguments)
    assert torch.equal(by_class, reliable_mask(entropy, **arguments) | (labels == 1))


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
@pytest.mark.parametrize("edge", [4, 8, 20])  # voxels of the class in the sample: about 0.5, 4 and 61
def test_no_more_of_a_small_class_is_unreliable_than_asked_for(edge, alpha):
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(60):
        entropy, labels = 0.1 * random_entropy(2, 64, 64, 64), torch.zeros(2, 64, 64, 64, dtype=torch.int64)
        corner = generator.integers(0, 64 - edge, 3)
        labels[(0, *(slice(start, start + edge) for start in corner))] = 1
        entropy[labels == 1] = torch.from_numpy(generator.random(edge**3, np.float32))
        arguments = {"labels": labels, "num_classes": 2, "max_samples": 4096}
        reliable = reliable_mask(entropy, unreliable_fraction=alpha, **arguments)
        shares.append(1 - reliable[labels == 1].float().mean().item())
    assert np.mean(shares) <= alpha + 0.02
    if edge == 20 and alpha == 0.2:  # 61 are enough to tell a fifth
        assert np.mean(shares) >= 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entropy": torch.zeros(3)}, r"entropy must be a floating tensor of shape \(B, \*\).*got .*\(3,\)"),
        ({"unreliable_fraction": 1.1}, r"unreliable_fraction must lie between 0 and 1, got 1\.1"),
        ({"unreliable_fraction": math.nan}, r"unreliable_fraction must lie between 0 and 1, got nan"),
        ({"max_samples": 0}, r"max_samples must be at least 1, got 0"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int64)}, r"labels need num_classes, at least 1, got None"),
        (
            {"labels": torch.zeros(2, 1, 3, dtype=torch.int64), "num_classes": 2},
            r"labels must be an integer tensor of shape \(B, \*\) = \(2, 3\), got .* of shape \(2, 1, 3\)",
        ),
        ({"labels": torch.zeros(2, 3), "num_classes": 2}, r"labels must be an integer.*got torch\.float32"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        reliable_mask(**{"entropy": torch.zeros(2, 3), "unreliable_fraction": 0.2, **arguments})
