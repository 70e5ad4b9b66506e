"""Cross pseudo supervision in the same loaders and step as DualCL."""

from __future__ import annotations

from typing import ClassVar

from nnunet_dualcl.config import Preset
from nnunet_dualcl.trainers.DualCLTwoNetTrainer import DualCLTwoNetTrainer


class CPSTrainer(DualCLTwoNetTrainer):
    """Two networks, each taught on unlabeled patches by the other's labels at every voxel.

    Source: cross pseudo supervision (CVPR 2021, arXiv 2106.01226). The two differ in architecture, not only in their
    first weights.
    """

    preset: ClassVar[Preset] = "cps"
