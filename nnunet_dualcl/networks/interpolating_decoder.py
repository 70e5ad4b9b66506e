"""Decoder B: nnU-Net's decoder with interpolation in the place of transposed convolutions.

Two decoders that differ in how they upsample make different mistakes on the same features
(MC-Net+, arXiv 2109.09960), which is what mutual verification feeds on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn


class InterpolatingUpsample(nn.Module):
    """Upsample by linear interpolation, then mix channels with a convolution of kernel size 1.

    Takes the place of a transposed convolution whose kernel equals its stride: (B, in, *) -> (B, out, * x stride).
    The convolution runs first, at the low resolution: both operations are linear and act on different axes, so
    they commute (but for the bias, which interpolation keeps), and this order is cheaper.

    Interpolation goes axis by axis, as weighted sums of neighbors, and equals torch's own (``align_corners=False``) but
    for rounding. On a GPU torch sums up the gradient of its own in an order that changes from run to run.
    """

    def __init__(self, transposed: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> None:
        super().__init__()
        dimension = len(transposed.stride)
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimension]
        self.stride = tuple(cast(Sequence[int], transposed.stride))
        self.conv = convolution(
            transposed.in_channels, transposed.out_channels, kernel_size=1, bias=transposed.bias is not None
        )

    def forward(self, low: torch.Tensor) -> torch.Tensor:
        """(B, in, *) features of the stage below -> (B, out, * x stride)."""
        high: torch.Tensor = self.conv(low)
        for axis, step in reversed(list(enumerate(self.stride, start=2))):  # the last one is contiguous
            high = _interpolate(high, axis, step)
        return high


def _interpolate(low: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    """``step`` new voxels for each one along ``axis``, linear between voxel centers, constant beyond the outer ones."""
    if step == 1:
        return low
    size = low.shape[axis]
    before = torch.cat((low.narrow(axis, 0, 1), low.narrow(axis, 0, size - 1)), axis)
    after = torch.cat((low.narrow(axis, 1, size - 1), low.narrow(axis, size - 1, 1)), axis)
    offsets = [(index + 0.5) / step - 0.5 for index in range(step)]  # of the new centers, in old voxels
    parts = [torch.lerp(low, before if offset < 0 else after, abs(offset)) for offset in offsets]
    return torch.stack(parts, axis + 1).flatten(axis, axis + 1)


def build_interpolating_decoder(decoder: nn.Module, encoder: nn.Module) -> nn.Module:
    """A decoder of the same class and stages as ``decoder``, with its own weights and other upsampling.

    Args:
        decoder: nnU-Net's decoder, left untouched.
        encoder: the encoder it reads from; the copy keeps no reference to it, so its weights are not stored twice.
    """
    other = copy.deepcopy(decoder, {id(encoder): None})
    other.transpconvs = nn.ModuleList(
        InterpolatingUpsample(transposed)  # type: ignore[arg-type]
        for transposed in cast(nn.ModuleList, other.transpconvs)
    )
    return other
