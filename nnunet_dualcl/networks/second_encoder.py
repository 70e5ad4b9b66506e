"""An encoder of the other family than the one that nnU-Net's plans name, for two whole networks that differ."""

from __future__ import annotations

from typing import Any, cast

from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import nn
from torch.nn.modules.conv import _ConvNd

from nnunet_dualcl.errors import DualCLError

_CONVOLUTIONS = 2
"""In each stage of a plain encoder; a basic residual block has as many."""


def build_other_encoder(encoder: nn.Module) -> nn.Module:
    """A residual encoder for a plain one, a plain encoder for a residual one: same stages, channels and strides.

    Args:
        encoder: nnU-Net's encoder, left untouched; its skips and those of the result have the same shapes.

    Raises:
        DualCLError: the encoder is of neither family.
    """
    if not isinstance(encoder, PlainConvEncoder | ResidualEncoder):
        raise DualCLError(
            f"No counterpart is known for the encoder {type(encoder).__name__}. Use plans with PlainConvUNet or "
            "ResidualEncoderUNet, or -tr DualCLTrainer, whose decoders share the encoder."
        )
    source: Any = encoder
    first = next(module for module in encoder.modules() if isinstance(module, _ConvNd))
    stages = len(source.output_channels)
    common = {
        "input_channels": first.in_channels,
        "n_stages": stages,
        "features_per_stage": source.output_channels,
        "return_skips": True,
        **{
            name: getattr(source, name)
            for name in (
                "conv_op",
                "kernel_sizes",
                "strides",
                "conv_bias",
                "norm_op",
                "norm_op_kwargs",
                "dropout_op",
                "dropout_op_kwargs",
                "nonlin",
                "nonlin_kwargs",
            )
        },
    }
    if isinstance(encoder, PlainConvEncoder):
        return cast(nn.Module, ResidualEncoder(**common, n_blocks_per_stage=[1] * stages))
    return cast(nn.Module, PlainConvEncoder(**common, n_conv_per_stage=[_CONVOLUTIONS] * stages))
