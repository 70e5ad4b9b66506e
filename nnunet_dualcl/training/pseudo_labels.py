"""Labels that a predictor gives, and where it is sure of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import grid_sample

from nnunet_dualcl.losses import normalized_entropy, reliable_mask
from nnunet_dualcl.training.problems import UNKNOWN


class PseudoLabels(NamedTuple):
    """``labels``: classes, long (B, *), or (B, P, *) for P problems, ``UNKNOWN`` where nothing was said; ``reliable``:
    bool. Neither carries a gradient."""

    labels: torch.Tensor
    reliable: torch.Tensor


@torch.no_grad()
def pseudo_labels_of(logits: torch.Tensor, *, unreliable_fraction: float, per_class: bool) -> PseudoLabels:
    """Most probable class of each voxel, reliable below an entropy quantile of all voxels or of its class.

    Args:
        logits: (B, C, *), any floating dtype; NaN where nothing was said.
        unreliable_fraction: share of voxels called unreliable.
        per_class: one quantile for each predicted class.
    """
    probs = torch.softmax(logits.detach().float(), 1)
    labels = most_probable(probs)
    reliable = reliable_mask(
        normalized_entropy(probs),
        unreliable_fraction=unreliable_fraction,
        labels=labels if per_class else None,
        num_classes=logits.shape[1] if per_class else None,
    )
    return PseudoLabels(labels, reliable)


def most_probable(probs: torch.Tensor) -> torch.Tensor:
    """Class (B, *) of (B, C, *) probabilities, ``UNKNOWN`` where they are NaN."""
    largest, labels = probs.max(1)  # argmax of a strided axis is slow on CPUs
    return torch.where(largest.isnan(), UNKNOWN, labels)


@torch.no_grad()
def carried_over(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Logits of one view of a patch where the voxels of another view lie.

    Args:
        logits: (B, heads, *) of the view that was predicted.
        places: (B, d, *) coordinates of the other view's voxels in it, as :class:`~nnunet_dualcl.data.PlainView` gives.

    Returns:
        (B, heads, *), interpolated; NaN where the predicted view does not reach.
    """
    carried = torch.empty_like(logits)
    for patch, place, result in zip(logits, places, carried, strict=True):  # one by one: float32 of all is large
        grid = place.movedim(0, -1)[None].float()
        result.copy_(grid_sample(patch[None].float(), grid, padding_mode="border", align_corners=False)[0])
        result.masked_fill_((place.abs() > 1).any(0), torch.nan)
    return carried
