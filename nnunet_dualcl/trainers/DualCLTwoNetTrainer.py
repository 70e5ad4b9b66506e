"""DualCL with two whole networks of different architecture, as in the paper."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_dualcl.networks import DualDecoderUNet, other_family
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer


class DualCLTwoNetTrainer(DualCLTrainer):
    """As :class:`DualCLTrainer`, but B is a network of its own, with a residual encoder where that of A is plain.

    Takes more time and memory than a shared encoder. Both are networks that nnU-Net builds, so both can be exported.
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
        configuration = configuration_manager.configuration
        other = ConfigurationManager({**configuration, "architecture": other_family(configuration["architecture"])})
        unet, second = (
            nnUNetTrainer.build_network_architecture(
                plans_manager, manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
            for manager in (configuration_manager, other)
        )
        return DualDecoderUNet(unet, second=second)
