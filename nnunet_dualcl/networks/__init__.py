"""A second decoder on any U-Net that nnU-Net's plans describe."""

from nnunet_dualcl.networks.dual_decoder import PREFIX_B, DualDecoderUNet, DualOutput, check_layout
from nnunet_dualcl.networks.interpolating_decoder import build_interpolating_decoder
from nnunet_dualcl.networks.second_encoder import build_other_encoder

__all__ = [
    "PREFIX_B",
    "DualDecoderUNet",
    "DualOutput",
    "build_interpolating_decoder",
    "build_other_encoder",
    "check_layout",
]
