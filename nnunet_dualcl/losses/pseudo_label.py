"""The cross-entropy part of L_u: a decoder learns the classes that whoever teaches is sure of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nnunet_dualcl.losses._checks import check_class_maps, check_labels, check_mask, voxel_shape
from nnunet_dualcl.losses._numerics import full_precision, is_class, masked_mean, recomputed, without_autocast


def pseudo_label_loss(student_logits: Tensor, teacher_logits: Tensor, reliable: Tensor) -> Tensor:
    r"""Cross-entropy of the student against the teacher's class, mean over the teacher's reliable voxels R.

    .. math:: L_u = -\frac{1}{|R|} \sum_{i \in R} \log \mathrm{softmax}(z^s_i)_{\hat y_i},
              \qquad \hat y_i = \arg\max_k z^t_{i,k}

    Args:
        student_logits: logits (B, C, *), C >= 2, not probabilities. Gradient flows here.
        teacher_logits: logits (B, C, *), or anything with the same argmax. No gradient.
        reliable: bool (B, *), the set R.

    Returns:
        Scalar, float32 (float64 for float64). Without reliable voxels exactly 0, with a graph and zero
        gradients.

    Raises:
        ValueError: shapes or dtypes differ from the above.

    Source: pseudo-labels of DualCL (arXiv 2311.12617) with the filter of U2PL (CVPR 2022).
    """
    check_class_maps(student_logits=student_logits, teacher_logits=teacher_logits)
    pseudo_labels = teacher_logits.detach().max(dim=1).indices  # argmax of a strided axis is slow on CPUs
    return class_label_loss(student_logits, pseudo_labels, reliable)


def class_label_loss(student_logits: Tensor, labels: Tensor, reliable: Tensor) -> Tensor:
    r"""Cross-entropy against given classes, mean over the reliable voxels R: L_u for labels that are there already.

    Args:
        student_logits: logits (B, C, *), C >= 2, not probabilities. Gradient flows here.
        labels: integer (B, *). Voxels outside 0..C-1 do not count.
        reliable: bool (B, *), the set R.

    Returns:
        Scalar, float32 (float64 for float64). Without a voxel that counts exactly 0, with a graph and zero
        gradients.

    Raises:
        ValueError: shapes or dtypes differ from the above.

    Source: as :func:`pseudo_label_loss`.
    """
    check_class_maps(student_logits=student_logits)
    check_labels("labels", labels, voxel_shape(student_logits))
    check_mask("reliable", reliable, voxel_shape(student_logits))
    with without_autocast(student_logits):
        named = is_class(labels, student_logits.shape[1])
        classes = torch.where(named, labels, 0).long()
        return masked_mean(recomputed(_cross_entropy, student_logits, classes), reliable & named)


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return cross_entropy(full_precision(logits), classes, reduction="none")
