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
from torch.nn import functional


class InterpolatingUpsample(nn.Module):
    """Mix channels with a convolution of kernel size 1, then upsample by nearest-neighbor interpolation.

    Takes the place of a transposed convolution whose kernel equals its stride: (B, in, *) -> (B, out, * x stride).
    It is the transposed convolution with one weight for all places of its kernel (:meth:`as_transposed`), so decoder
    B, too, can be handed out as a stock network.
    """

    def __init__(self, transposed: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> None:
        super().__init__()
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(transposed.stride)]
        self.stride = tuple(float(step) for step in cast(Sequence[int], transposed.stride))
        self.pointwise = convolution(
            transposed.in_channels, transposed.out_channels, kernel_size=1, bias=transposed.bias is not None
        )

    def forward(self, low: torch.Tensor) -> torch.Tensor:
        """(B, in, *) features of the stage below -> (B, out, * x stride)."""
        return functional.interpolate(self.pointwise(low), scale_factor=list(self.stride), mode="nearest")

    @staticmethod
    def as_transposed(weight: torch.Tensor, kernel_size: Sequence[int]) -> torch.Tensor:
        """(out, in, 1...) weight of the convolution -> (in, out, *kernel_size) of the equal transposed one."""
        return weight.transpose(0, 1).expand(-1, -1, *kernel_size).contiguous()


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
