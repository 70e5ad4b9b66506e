"""A second decoder on any U-Net that nnU-Net's plans describe."""

from nnunet_dualcl.networks.dual_decoder import DualDecoderUNet, DualOutput
from nnunet_dualcl.networks.interpolating_decoder import build_interpolating_decoder
from nnunet_dualcl.networks.second_encoder import build_other_encoder

__all__ = ["DualDecoderUNet", "DualOutput", "build_interpolating_decoder", "build_other_encoder"]
