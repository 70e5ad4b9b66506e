"""Uncertainty-aware Mean Teacher in the same loaders, network and step as DualCL."""

from __future__ import annotations

import torch

from nnunet_dualcl.losses import normalized_entropy
from nnunet_dualcl.trainers.MeanTeacherTrainer import MeanTeacherTrainer
from nnunet_dualcl.training.pseudo_labels import PseudoLabels

_PASSES = 8
_NOISE, _LARGEST = 0.1, 0.2
"""Standard deviation of the noise on the (normalized) image, and where it is cut off."""
_FIRST_THRESHOLD = 0.75
"""Share of the largest entropy below which a voxel counts as certain at step 0; it rises to 1."""


class UAMTTrainer(MeanTeacherTrainer):
    """Mean Teacher whose labels count where several noisy looks agree: little entropy of their mean probability.

    Source: uncertainty-aware self-ensembling (MICCAI 2019, arXiv 1907.07034), with noise on the input alone (nnU-Net's
    networks have no dropout) and hard labels in the place of a squared error.
    """

    def teacher_labels(self, images: torch.Tensor) -> PseudoLabels:
        """Labels of the mean of the looks, trusted where its entropy is low; all with ``pseudo_label_on: all``."""
        problems = self.loss.problems
        with torch.no_grad():
            means = [torch.zeros((), device=images.device)] * problems.count
            for _ in range(_PASSES):
                noise = (torch.randn_like(images) * _NOISE).clamp(-_LARGEST, _LARGEST)
                looks = problems.logits(self.teacher_logits(images + noise).float())
                means = [mean + look.softmax(1) / _PASSES for mean, look in zip(means, looks, strict=True)]
            threshold = _FIRST_THRESHOLD + (1 - _FIRST_THRESHOLD) * self.loss.ramp
            labels = torch.stack([mean.max(1).indices for mean in means], 1)
            if self.config.pseudo_label_on == "all":
                return PseudoLabels(labels, torch.ones_like(labels, dtype=torch.bool))
            return PseudoLabels(labels, torch.stack([normalized_entropy(mean) < threshold for mean in means], 1))
