"""Uncertainty of a prediction: entropy in units of its maximum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnunet_dualcl.losses._checks import check_class_maps
from nnunet_dualcl.losses._numerics import full_precision, without_autocast


def normalized_entropy(probs: Tensor) -> Tensor:
    r"""Entropy of each voxel's class probabilities, 0 for a certain and 1 for a uniform prediction.

    .. math:: h = -\frac{1}{\log C} \sum_k p_k \log p_k, \qquad 0 \log 0 = 0

    Args:
        probs: probabilities (B, C, *), C >= 2, summing to 1 over C (not logits).

    Returns:
        (B, *) in [0, 1], float32 (float64 for float64). Gradient reaches ``probs``, finite even at p = 0.

    Raises:
        ValueError: not (B, C, *), not floating, or C = 1, for which the entropy says nothing.

    Source: the uncertainty of U2PL (CVPR 2022), divided by log C so that it does not grow with C.
    """
    check_class_maps(probs=probs)
    with without_autocast(probs):
        p = full_precision(probs)
        # The clamp inside the logarithm keeps the gradient at p = 0 finite; the product is 0 there anyway.
        negative_entropy = torch.xlogy(p, p.clamp(min=torch.finfo(p.dtype).tiny)).sum(dim=1)
        return (negative_entropy * (-1.0 / math.log(p.shape[1]))).clamp(0.0, 1.0)
