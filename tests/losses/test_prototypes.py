import math

import numpy as np
import pytest
import torch

from nnunet_dualcl.losses import class_prototypes


def random_case(*shape: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, labels with some voxels on either side of the valid range, and a mask."""
    generator = torch.Generator().manual_seed(0)
    voxels = (shape[0], *shape[2:])
    embeddings = 1 + torch.randn(*shape, generator=generator)
    labels = torch.randint(-1, num_classes + 1, voxels, generator=generator)
    return embeddings, labels, torch.rand(voxels, generator=generator) < 0.5


def test_closed_form():
    # Columns are voxels. Class 0: (1, 0) and (0, 1) at unit length; 1: masked out; 2: (-3, 4) / 5.
    embeddings = torch.tensor([[10.0, 0.0, 5.0, -3.0], [0.0, 0.1, 5.0, 4.0]]).unsqueeze(0)
    labels = torch.tensor([[0, 0, 1, 2]])
    mask = torch.tensor([[True, True, False, True]])
    prototypes, present = class_prototypes(embeddings, labels, mask, 3)
    half = math.sqrt(0.5)
    torch.testing.assert_close(prototypes, torch.tensor([[half, half], [0.0, 0.0], [-0.6, 0.8]]))
    assert present.tolist() == [True, False, True]


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 4, 5, 6, 7)])
def test_equals_loop(shape):
    embeddings, labels, mask = random_case(*shape, num_classes=3)
    f = embeddings.double().movedim(1, -1).numpy()
    expected = np.zeros((3, shape[1]))
    for voxel in np.ndindex(*labels.shape):
        if mask[voxel] and 0 <= labels[voxel] < 3:
            expected[labels[voxel]] += f[voxel] / np.linalg.norm(f[voxel])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    prototypes, present = class_prototypes(embeddings, labels, mask, 3)
    np.testing.assert_allclose(prototypes.numpy(), expected, atol=1e-6)
    assert present.all()


def test_length_of_an_embedding_does_not_matter():
    embeddings, labels, mask = random_case(2, 4, 5, 6, num_classes=2)
    expected, _ = class_prototypes(embeddings, labels, mask, 2)
    prototypes, _ = class_prototypes(embeddings * (1 + torch.arange(6.0)), labels, mask, 2)
    torch.testing.assert_close(prototypes, expected)


def test_order_of_voxels_does_not_matter():
    embeddings, labels, mask = random_case(2, 4, 5, 6, num_classes=2)
    expected, _ = class_prototypes(embeddings, labels, mask, 2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    prototypes, _ = class_prototypes(embeddings[..., order], labels[..., order], mask[..., order], 2)
    torch.testing.assert_close(prototypes, expected)


def test_masked_out_voxels_do_not_matter():
    embeddings, labels, mask = random_case(2, 4, 5, 6, num_classes=2)
    expected, _ = class_prototypes(embeddings, labels, mask, 2)
    prototypes, _ = class_prototypes(torch.where(mask.unsqueeze(1), embeddings, 9.0), labels, mask, 2)
    torch.testing.assert_close(prototypes, expected)


def test_prototypes_carry_no_gradient():
    embeddings, labels, mask = random_case(2, 4, 5, 6, num_classes=2)
    prototypes, _ = class_prototypes(embeddings.requires_grad_(), labels, mask, 2)
    assert not prototypes.requires_grad


def test_nothing_masked_gives_zero_rows():
    embeddings, labels, mask = random_case(2, 4, 5, 6, num_classes=2)
    prototypes, present = class_prototypes(embeddings, labels, torch.zeros_like(mask), 2)
    assert torch.equal(prototypes, torch.zeros(2, 4))
    assert not present.any()


def test_embeddings_without_a_direction_make_no_prototype():
    # Class 0: opposite vectors; class 1: the zero vector.
    embeddings = torch.tensor([[1.0, -2.0, 0.0], [1.0, -2.0, 0.0]]).unsqueeze(0)
    labels = torch.tensor([[0, 0, 1]])
    prototypes, present = class_prototypes(embeddings, labels, torch.ones(1, 3, dtype=torch.bool), 2)
    assert torch.equal(prototypes, torch.zeros(2, 2))
    assert not present.any()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_embeddings_that_are_not_finite_add_nothing(bad):
    embeddings, labels, mask = random_case(2, 4, 5, 6, num_classes=2)
    spoiled = embeddings.clone()
    spoiled[:, 1, 2] = bad
    spoiled_mask = mask.clone()
    spoiled_mask[:, 2] = False
    expected, _ = class_prototypes(embeddings, labels, spoiled_mask, 2)
    prototypes, _ = class_prototypes(spoiled, labels, mask, 2)
    torch.testing.assert_close(prototypes, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": torch.zeros(2, 4)}, r"embeddings must be .* shape \(B, D, \*\).*\(2, 4\)"),
        ({"labels": torch.zeros(2, 6)}, r"labels must be an integer.* = \(2, 5\), got .* \(2, 6\)"),
        ({"mask": torch.ones(2, 5)}, r"mask must be a torch\.bool .* \(2, 5\), got torch\.float32"),
        ({"num_classes": 0}, r"num_classes must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    valid = {
        "embeddings": torch.zeros(2, 4, 5),
        "labels": torch.zeros(2, 5, dtype=torch.int64),
        "mask": torch.ones(2, 5, dtype=torch.bool),
        "num_classes": 3,
    }
    with pytest.raises(ValueError, match=message):
        class_prototypes(**{**valid, **arguments})
