"""L_c: unreliable voxels move to the prototype of their class and away from the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nnunet_dualcl.losses._checks import (
    check_embeddings,
    check_labels,
    check_mask,
    check_prototypes,
    voxel_shape,
)
from nnunet_dualcl.losses._numerics import (
    full_precision,
    inverse_length,
    is_class,
    masked_mean,
    without_autocast,
)


def reliability_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    unreliable: Tensor,
    prototypes: Tensor,
    present: Tensor,
    *,
    temperature: float,
) -> Tensor:
    r"""Cross-entropy of unreliable voxels U over their cosines with the prototypes of the present classes P.

    .. math:: L_c = -\frac{1}{|U|} \sum_{i \in U} \log
              \frac{\exp(f_i \cdot c_{y_i} / \tau)}{\sum_{k \in P} \exp(f_i \cdot c_k / \tau)}

    Args:
        embeddings: features (B, D, *) of any length; made unit length here. Gradient flows here.
        labels: integer (B, *), the truth or pseudo-label y. Voxels whose class is not present do not count.
        unreliable: bool (B, *), the voxels that count.
        prototypes: (C, D) unit vectors, used as given; no gradient. Rows of absent classes are not read.
        present: bool (C,), the set P.
        temperature: tau > 0.

    Returns:
        Scalar, float32 (float64 for float64). Without a voxel that counts, or with fewer than two present
        classes, exactly 0, with a graph and zero gradients.

    Raises:
        ValueError: shapes or dtypes differ from the above, or ``temperature`` is not above 0.

    Source: contrastive reliability of DualCL (arXiv 2311.12617), written as the prototype classification of
    Snell et al. (NeurIPS 2017).
    """
    check_embeddings(embeddings)
    check_labels("labels", labels, voxel_shape(embeddings))
    check_mask("unreliable", unreliable, voxel_shape(embeddings))
    check_prototypes(prototypes, embeddings.shape[1])
    check_mask("present", present, (prototypes.shape[0],))
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    with without_autocast(embeddings):
        f = full_precision(embeddings).flatten(2)
        c = torch.where(present.unsqueeze(1), prototypes.detach(), 0.0).to(f.dtype)
        # Scaling the C cosines instead of the D features spares a pass over the larger tensor.
        logits = torch.matmul(c, f) * (inverse_length(f, dim=1) / temperature)
        # The finite minimum, not -inf, so that a softmax over no present class is still a number.
        logits = torch.where(present.view(1, -1, 1), logits, torch.finfo(f.dtype).min)
        y = labels.flatten(1).long()
        # Labels outside the classes stand in as class 0; the mean leaves their voxels out.
        y_is_class = is_class(y, prototypes.shape[0])
        y = torch.where(y_is_class, y, 0)
        # A lone present class needs no case of its own: its softmax is 1, its loss and gradient 0.
        counts = unreliable.flatten(1) & y_is_class & present[y]
        return masked_mean(cross_entropy(logits, y, reduction="none"), counts)
