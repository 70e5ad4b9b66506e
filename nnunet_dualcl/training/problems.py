"""What the labels of a dataset ask of each voxel: one of C classes, or a yes or no for each of R regions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

UNKNOWN = -1
"""Truth of a voxel that nobody annotated (nnU-Net's ignore label)."""


@dataclass(frozen=True)
class Problems:
    """Splits heads and targets of nnU-Net into P classification problems of K exclusive classes each.

    Plain labels are one problem of C classes. Regions may overlap, so each is a problem of its own with two classes,
    outside and inside; a head z, which nnU-Net reads through a sigmoid, is the softmax of the logits (0, z).

    Attributes:
        num_heads: channels of the network's output.
        regions: whether each head stands for a region.
        has_ignore: whether some voxels of labeled patches may be unknown.
    """

    num_heads: int
    regions: bool = False
    has_ignore: bool = False

    @property
    def count(self) -> int:
        """P."""
        return self.num_heads if self.regions else 1

    @property
    def num_classes(self) -> int:
        """K."""
        return 2 if self.regions else self.num_heads

    def logits(self, heads: torch.Tensor) -> list[torch.Tensor]:
        """(B, heads, *) -> P tensors (B, K, *)."""
        if not self.regions:
            return [heads]
        return [torch.stack((torch.zeros_like(head), head), 1) for head in heads.unbind(1)]

    def truth(self, target: torch.Tensor) -> torch.Tensor:
        """nnU-Net's target, (B, 1, *) or (B, R, *) and the ignore mask behind it, -> long (B, P, *), ``UNKNOWN``
        where nothing is known."""
        truth = target[:, : self.count].long()
        if not self.has_ignore:
            return truth
        ignored = target[:, self.count :].bool() if self.regions else truth >= self.num_classes
        return torch.where(ignored, UNKNOWN, truth)
