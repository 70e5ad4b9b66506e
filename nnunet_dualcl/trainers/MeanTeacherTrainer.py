"""Mean Teacher in the same loaders, network and step as DualCL."""

from __future__ import annotations

from typing import ClassVar

from nnunet_dualcl.config import Preset
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer


class MeanTeacherTrainer(DualCLTrainer):
    """nnU-Net's network alone, taught on unlabeled patches by a moving average of itself that sees a weaker view.

    Source: Mean Teacher (NeurIPS 2017, arXiv 1703.01780), with hard labels on reliable voxels as in FixMatch
    (arXiv 2001.07685) in the place of a squared error.
    """

    preset: ClassVar[Preset] = "mean_teacher"
