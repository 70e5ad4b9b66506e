"""DualCL with two whole networks of different architecture, as in the paper."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_dualcl.networks import DualDecoderUNet, build_other_encoder
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer


class DualCLTwoNetTrainer(DualCLTrainer):
    """As :class:`DualCLTrainer`, but decoder B reads from an encoder of its own: residual where nnU-Net's is plain.

    Takes more time and memory than a shared encoder; the export is nnU-Net's own network, as before.
    """

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's network and a second one; also called at inference."""
        unet = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return DualDecoderUNet(unet, second_encoder=build_other_encoder(unet.encoder))
