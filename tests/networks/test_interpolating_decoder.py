from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from nnunet_dualcl.networks.interpolating_decoder import InterpolatingUpsample


def test_interpolation_is_between_voxel_centers() -> None:
    upsample = InterpolatingUpsample(nn.ConvTranspose1d(1, 1, 2, 2))
    with torch.no_grad():
        upsample.conv.weight.fill_(2)
        upsample.conv.bias.fill_(1)
        line = upsample(torch.tensor([[[0.0, 4.0, 8.0]]]))  # convolved: 1, 9, 17
    torch.testing.assert_close(line, torch.tensor([[[1.0, 3.0, 7.0, 11.0, 15.0, 17.0]]]))


def test_an_axis_of_stride_one_is_left_alone() -> None:
    upsample = InterpolatingUpsample(nn.ConvTranspose3d(1, 1, (1, 2, 2), (1, 2, 2), bias=False))
    low = torch.tensor([[[[[0.0, 4.0]], [[8.0, 16.0]]]]])
    with torch.no_grad():
        upsample.conv.weight.fill_(1)
        high = upsample(low)
    expected = [[[0.0, 1.0, 3.0, 4.0]] * 2, [[8.0, 10.0, 14.0, 16.0]] * 2]
    torch.testing.assert_close(high, torch.tensor([[expected]]))


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((5,), (2,)), ((5,), (3,)), ((5, 7), (2, 4)), ((1, 6), (2, 1)), ((3, 4, 5), (2, 2, 2)), ((4, 3, 2), (1, 3, 2))],
)
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(shape)]
    upsample = InterpolatingUpsample(transposed(2, 3, stride, stride)).double()
    low = torch.randn(2, 2, *shape, dtype=torch.float64, requires_grad=True)
    high = upsample(low)
    mode = ("linear", "bilinear", "trilinear")[len(shape) - 1]
    scales = [float(step) for step in stride]
    expected = interpolate(upsample.conv(low), scale_factor=scales, mode=mode, align_corners=False)
    torch.testing.assert_close(high, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((each * weights).sum(), low, retain_graph=True)[0] for each in (high, expected)]
    torch.testing.assert_close(*gradients)
