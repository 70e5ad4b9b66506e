"""The network of nnU-Net's other family than the one that plans name, for two whole networks that differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_dualcl.errors import DualCLError

_PLAIN, _RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
_DEPTH = {_PLAIN: ("n_conv_per_stage", 2), _RESIDUAL: ("n_blocks_per_stage", 1)}
"""What a family calls the depth of its stages, and how much of it the other one gets: a block has two convolutions."""
_OF_ONE_FAMILY = {
    "n_conv_per_stage",
    "nonlin_first",
    "n_blocks_per_stage",
    "block",
    "bottleneck_channels",
    "stem_channels",
}


def other_family(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """A residual encoder for a plain one, a plain encoder for a residual one; all else as it is.

    Args:
        architecture: ``architecture`` of a configuration in nnU-Net's plans, left untouched.

    Returns:
        What stands in the same place of the other network's plans: same stages, channels, kernels, strides and decoder.

    Raises:
        DualCLError: the architecture is of neither family.
    """
    name = architecture["network_class_name"].rpartition(".")[2]
    if name not in _DEPTH:
        raise DualCLError(
            f"No counterpart is known for the network {name}. Use plans with PlainConvUNet or ResidualEncoderUNet, or "
            "-tr DualCLTrainer, whose decoders share the encoder."
        )
    other = _RESIDUAL if name == _PLAIN else _PLAIN
    depth, each = _DEPTH[other]
    arguments = {key: value for key, value in architecture["arch_kwargs"].items() if key not in _OF_ONE_FAMILY}
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{other}",
        "arch_kwargs": {**arguments, depth: [each] * arguments["n_stages"]},
        "_kw_requires_import": [key for key in architecture["_kw_requires_import"] if key in arguments],
    }
