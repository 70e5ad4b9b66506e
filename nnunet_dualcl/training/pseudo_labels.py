"""Labels that a predictor gives, and where it is sure of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from nnunet_dualcl.losses import normalized_entropy, reliable_mask
from nnunet_dualcl.losses.reliability import MAX_SAMPLES


class PseudoLabels(NamedTuple):
    """``labels``: classes, long (B, *), or (B, P, *) for P problems; ``reliable``: bool. Neither carries a gradient."""

    labels: torch.Tensor
    reliable: torch.Tensor


def pseudo_labels_of(
    logits: torch.Tensor, *, unreliable_fraction: float | torch.Tensor, per_class: bool, groups: int = 1
) -> PseudoLabels:
    """Most probable class of each voxel, reliable below an entropy quantile of all voxels or of its class.

    Args:
        logits: (B, C, *), any floating dtype.
        unreliable_fraction: share of voxels called unreliable; a number, or a tensor () in compiled code.
        per_class: one quantile for each predicted class.
        groups: parts of equal length, in a row on axis 0, each of which has quantiles of its own. Where they are
            estimated (more than ``MAX_SAMPLES`` voxels a group), a class that the sample misses takes that of all.
    """
    with torch.no_grad():
        probs = torch.softmax(logits.detach().float(), 1)
        labels = probs.max(1).indices
        sets, count = (labels, logits.shape[1]) if per_class else (torch.zeros_like(labels), 1)
        if groups > 1:  # the classes of each group are classes of their own
            group = torch.arange(groups, device=labels.device).view(-1, *[1] * labels.ndim)
            sets = (sets.unflatten(0, (groups, -1)) + count * group).flatten(0, 1)
        reliable = reliable_mask(
            normalized_entropy(probs),
            unreliable_fraction=unreliable_fraction,
            labels=sets if groups * count > 1 else None,
            num_classes=groups * count,
            max_samples=groups * MAX_SAMPLES,
        )
        return PseudoLabels(labels, reliable)
