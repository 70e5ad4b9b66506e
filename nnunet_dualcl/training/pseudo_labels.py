"""Labels that a predictor gives, and where it is sure of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from nnunet_dualcl.losses import normalized_entropy, reliable_mask


class PseudoLabels(NamedTuple):
    """``labels``: classes, long (B, *), or (B, P, *) for P problems; ``reliable``: bool. Neither carries a gradient."""

    labels: torch.Tensor
    reliable: torch.Tensor


def pseudo_labels_of(
    logits: torch.Tensor, *, unreliable_fraction: float | torch.Tensor, per_class: bool
) -> PseudoLabels:
    """Most probable class of each voxel, reliable below an entropy quantile of all voxels or of its class.

    Args:
        logits: (B, C, *), any floating dtype.
        unreliable_fraction: share of voxels called unreliable; a number, or a tensor () in compiled code.
        per_class: one quantile for each predicted class.
    """
    with torch.no_grad():
        probs = torch.softmax(logits.detach().float(), 1)
        labels = probs.max(1).indices
        reliable = reliable_mask(
            normalized_entropy(probs),
            unreliable_fraction=unreliable_fraction,
            labels=labels if per_class else None,
            num_classes=logits.shape[1] if per_class else None,
        )
        return PseudoLabels(labels, reliable)
