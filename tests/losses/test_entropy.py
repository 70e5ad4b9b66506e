import math

import numpy as np
import pytest
import torch

from nnunet_dualcl.losses import normalized_entropy


def random_probs(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randn(*shape, generator=generator, dtype=dtype)).softmax(dim=1)


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        ([1.0, 0.0], 0.0),
        ([0.5, 0.5], 1.0),
        ([0.9, 0.1], 0.46899559),  # in bits
        ([0.5, 0.5, 0.0, 0.0], 0.5),
        ([0.25, 0.25, 0.25, 0.25], 1.0),
    ],
)
def test_closed_form(probs, expected):
    entropy = normalized_entropy(torch.tensor(probs).view(1, -1, 1))
    torch.testing.assert_close(entropy, torch.tensor([[expected]]))


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 4, 5, 6, 7)])
def test_equals_loop(shape):
    probs = random_probs(*shape)
    p = probs.numpy()
    expected = np.zeros((shape[0], *shape[2:]))
    for voxel in np.ndindex(*expected.shape):
        for k in range(shape[1]):
            value = p[(voxel[0], k, *voxel[1:])]
            expected[voxel] -= value * math.log(value) / math.log(shape[1])
    np.testing.assert_allclose(normalized_entropy(probs).numpy(), expected, rtol=1e-12)


def test_stays_in_unit_interval_despite_rounding():
    for num_classes in range(2, 30):
        uniform = torch.full((1, num_classes, 1), 1 / num_classes)
        assert 1 - 1e-6 < normalized_entropy(uniform).item() <= 1
    certain = torch.tensor([1.0, 0.0]).view(1, 2, 1).half()
    assert normalized_entropy(certain).item() == 0


def test_order_of_classes_does_not_matter():
    probs = random_probs(2, 4, 5, 6)
    torch.testing.assert_close(normalized_entropy(probs), normalized_entropy(probs.flip(1)))


def test_gradient_is_exact_inside_the_simplex():
    torch.autograd.gradcheck(normalized_entropy, random_probs(2, 3, 2, 3).requires_grad_())


def test_gradient_is_finite_at_zero_probability():
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]).T.unsqueeze(0).requires_grad_()
    normalized_entropy(probs).sum().backward()
    assert probs.grad.isfinite().all()
    assert probs.grad[0, 2, 1] > 1  # moving toward a class of probability 0 raises the entropy steeply


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"probs must hold at least two classes.*got shape \(2, 1, 5\)"):
        normalized_entropy(torch.ones(2, 1, 5))


@pytest.mark.parametrize("probs", [torch.ones(2, 3), torch.ones(2, 3, 5, dtype=torch.int64)])
def test_wrong_input_is_refused(probs):
    with pytest.raises(ValueError, match=r"probs must be a floating .* shape \(B, C, \*\).*got torch\."):
        normalized_entropy(probs)
