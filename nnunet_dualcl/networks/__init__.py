"""A second decoder on any U-Net that nnU-Net's plans describe."""

from nnunet_dualcl.networks.dual_decoder import (
    PREFIX_B,
    DualDecoderUNet,
    DualOutput,
    Network,
    check_layout,
    has_network_b,
    weights_of,
)
from nnunet_dualcl.networks.interpolating_decoder import build_interpolating_decoder
from nnunet_dualcl.networks.other_family import other_family

__all__ = [
    "PREFIX_B",
    "DualDecoderUNet",
    "DualOutput",
    "Network",
    "build_interpolating_decoder",
    "check_layout",
    "has_network_b",
    "other_family",
    "weights_of",
]
