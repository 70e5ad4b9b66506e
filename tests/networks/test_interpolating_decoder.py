from __future__ import annotations

import torch
from torch import nn

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
