from __future__ import annotations

import pytest
import torch

from nnunet_dualcl.training.problems import UNKNOWN, Problems

SHAPE = (2, 3, 4)


def test_classes_are_one_problem() -> None:
    problems = Problems(3)
    heads = torch.randn(2, 3, *SHAPE)
    assert (problems.count, problems.num_classes) == (1, 3)
    (logits,) = problems.logits(heads)
    assert logits is heads
    target = torch.randint(3, (2, 1, *SHAPE), dtype=torch.int16)
    assert torch.equal(problems.truth(target), target.long())


def test_each_region_is_a_problem_whose_softmax_is_its_sigmoid() -> None:
    problems = Problems(3, regions=True)
    heads = torch.randn(2, 3, *SHAPE, requires_grad=True)
    assert (problems.count, problems.num_classes) == (3, 2)
    found = problems.logits(heads)
    for region, logits in enumerate(found):
        assert logits.shape == (2, 2, *SHAPE)
        torch.testing.assert_close(logits.softmax(1)[:, 1], heads[:, region].sigmoid())
    (gradient,) = torch.autograd.grad(found[1].sum(), heads)
    assert torch.equal(gradient.abs().sum((0, 2, 3, 4)) > 0, torch.tensor([False, True, False]))
    target = torch.rand(2, 3, *SHAPE) < 0.5
    assert torch.equal(problems.truth(target), target.long())


@pytest.mark.parametrize("as_bool", [True, False])
def test_ignored_voxels_are_unknown_in_every_region(as_bool: bool) -> None:
    target = torch.rand(2, 3, *SHAPE) < 0.5  # two regions and nnU-Net's mask of ignored voxels
    ignored = target[:, 2:]
    truth = Problems(2, regions=True, has_ignore=True).truth(target if as_bool else target.float())
    assert truth.shape == (2, 2, *SHAPE)
    assert torch.equal(truth == UNKNOWN, ignored.expand(-1, 2, -1, -1, -1))
    assert torch.equal(truth[truth != UNKNOWN], target[:, :2].long()[~ignored.expand(-1, 2, -1, -1, -1)])


def test_the_ignore_label_is_unknown() -> None:
    target = torch.randint(4, (2, 1, *SHAPE))
    truth = Problems(3, has_ignore=True).truth(target)
    assert torch.equal(truth == UNKNOWN, target == 3)
    assert torch.equal(truth[target < 3], target[target < 3])
