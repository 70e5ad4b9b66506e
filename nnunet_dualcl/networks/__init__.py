"""A second decoder on any U-Net that nnU-Net's plans describe."""

from nnunet_dualcl.networks.dual_decoder import DualDecoderUNet, DualOutput
from nnunet_dualcl.networks.interpolating_decoder import build_interpolating_decoder

__all__ = ["DualDecoderUNet", "DualOutput", "build_interpolating_decoder"]
