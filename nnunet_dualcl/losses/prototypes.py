"""One direction in embedding space for each class."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dualcl.losses._checks import check_embeddings, check_labels, check_mask, voxel_shape
from nnunet_dualcl.losses._numerics import SHORTEST, full_precision, inverse_length, without_autocast
from nnunet_dualcl.losses._ranks import total_over_ranks


def class_prototypes(embeddings: Tensor, labels: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    r"""Unit-length mean of the unit-length embeddings of each class.

    .. math:: \bar f_k = \frac{1}{|R_k|} \sum_{i \in R_k} \frac{f_i}{\lVert f_i \rVert}, \qquad
              c_k = \frac{\bar f_k}{\lVert \bar f_k \rVert}, \qquad R_k = \{ i \in \text{mask} : y_i = k \}

    Args:
        embeddings: features (B, D, *) of any length, zero for no direction; no gradient.
        labels: integer (B, *). Voxels outside 0..num_classes-1 do not count.
        mask: bool (B, *), the voxels that count.
        num_classes: C >= 1.

    Returns:
        ``prototypes`` (C, D), unit vectors in float32 (float64 for float64), without gradient, and
        ``present``, bool (C,). A class without voxels, or whose embeddings cancel out, has a zero row and is
        not present. Embeddings that are not finite add nothing: one overflow must not spoil a moving average.

    Raises:
        ValueError: shapes or dtypes differ from the above.

    Source: prototypes of Snell et al. (NeurIPS 2017), on unit vectors as in DualCL (arXiv 2311.12617).
    """
    check_embeddings(embeddings)
    check_labels("labels", labels, voxel_shape(embeddings))
    check_mask("mask", mask, voxel_shape(embeddings))
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
    with torch.no_grad(), without_autocast(embeddings):
        f = full_precision(embeddings).flatten(2)
        unit = (f * inverse_length(f, dim=1)).nan_to_num(nan=0.0)
        classes = torch.arange(num_classes, device=f.device).view(1, -1, 1)
        # A product with the one-hot volume: index_add would queue millions of voxels on C rows.
        members = (labels.flatten(1).unsqueeze(1) == classes) & mask.flatten(1).unsqueeze(1)
        total = torch.matmul(members.to(unit.dtype), unit.transpose(1, 2)).sum(dim=0)
        count = members.sum(dim=(0, 2))
        mean = total_over_ranks(total) / total_over_ranks(count).clamp(min=1).unsqueeze(1)
        length = torch.linalg.vector_norm(mean, dim=1)
        return mean * inverse_length(mean, dim=1), length > SHORTEST
