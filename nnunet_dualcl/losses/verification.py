"""L_reg: where the two decoders' assertions differ, at least one of them has something to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_dualcl.losses._checks import check_class_maps, check_labels, check_mask, check_unit_interval, voxel_shape
from nnunet_dualcl.losses._numerics import full_precision, is_class, masked_mean, recomputed, without_autocast

_ABSTAINS = -1


def assertion_disagreement(logits_a: Tensor, logits_b: Tensor, *, confidence: float) -> Tensor:
    r"""The set M of voxels where the decoders assert different things.

    A decoder asserts its most probable class when that probability reaches ``confidence``, else it abstains.
    One asserting while the other abstains is a disagreement; both abstaining is not.

    Args:
        logits_a: logits (B, C, *), C >= 2, of decoder A; no gradient.
        logits_b: logits (B, C, *) of decoder B; no gradient.
        confidence: T in [0, 1], the least probability of an assertion.

    Returns:
        bool (B, *).

    Raises:
        ValueError: shapes or dtypes differ from the above, or ``confidence`` lies outside [0, 1].

    Source: mutual verification of DualCL (arXiv 2311.12617); its parent is MCF (CVPR 2023).
    """
    check_class_maps(logits_a=logits_a, logits_b=logits_b)
    check_unit_interval("confidence", confidence)
    with torch.no_grad(), without_autocast(logits_a):
        _, asserted_a = _assertion(logits_a, confidence)
        _, asserted_b = _assertion(logits_b, confidence)
        return asserted_a != asserted_b


def mutual_verification_loss(
    logits_a: Tensor,
    logits_b: Tensor,
    *,
    confidence: float,
    target: Tensor | None = None,
    where: Tensor | None = None,
) -> Tensor:
    r"""Squared error of the probabilities, mean over the voxels M where the assertions differ.

    With truth, both decoders are drawn to it, y being its one-hot vector:

    .. math:: L_{reg} = \frac12 \sum_{s \in \{a, b\}} \frac{1}{|M|} \sum_{i \in M} \lVert p^s_i - y_i \rVert^2

    Without, the decoder with the greater top probability at a voxel (A on a tie) is the teacher t of the
    other, s:

    .. math:: L_{reg} = \frac{1}{|M|} \sum_{i \in M} \lVert p^s_i - \mathrm{stopgrad}(p^t_i) \rVert^2

    Args:
        logits_a: logits (B, C, *), C >= 2, of decoder A, not probabilities.
        logits_b: logits (B, C, *) of decoder B.
        confidence: T in [0, 1], see :func:`assertion_disagreement`.
        target: integer truth (B, *). Voxels outside 0..C-1, such as the ignore label, are left out of M.
        where: bool (B, *), voxels outside it are left out of M; None leaves none out.

    Returns:
        Scalar, float32 (float64 for float64). With ``target`` gradient reaches both decoders, without it only
        the less confident one at each voxel of M. M empty: exactly 0, with a graph and zero gradients.

    Raises:
        ValueError: shapes or dtypes differ from the above, or ``confidence`` lies outside [0, 1].

    Source: mutual verification of DualCL (arXiv 2311.12617); its parent is MCF (CVPR 2023).
    """
    check_class_maps(logits_a=logits_a, logits_b=logits_b)
    check_unit_interval("confidence", confidence)
    if target is not None:
        check_labels("target", target, voxel_shape(logits_a))
    if where is not None:
        check_mask("where", where, voxel_shape(logits_a))
    with without_autocast(logits_a):
        top_a, asserted_a = _assertion(logits_a, confidence)
        top_b, asserted_b = _assertion(logits_b, confidence)
        counts = asserted_a != asserted_b
        if where is not None:
            counts = counts & where
        if target is None:
            return masked_mean(recomputed(_error_of_less_confident, logits_a, logits_b, top_a >= top_b), counts)
        labeled = is_class(target, logits_a.shape[1])
        truth = torch.where(labeled, target, 0).long().unsqueeze(1)
        error = 0.5 * (recomputed(_error_to_class, logits_a, truth) + recomputed(_error_to_class, logits_b, truth))
        return masked_mean(error, counts & labeled)


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(full_precision(logits), dim=1)


@torch.no_grad()
def _assertion(logits: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Top probability (B, *) and the class asserted with it (B, *), ``_ABSTAINS`` below ``confidence``."""
    top, winner = _softmax(logits).max(dim=1)
    return top, torch.where(top >= confidence, winner, _ABSTAINS)


def _error_of_less_confident(logits_a: Tensor, logits_b: Tensor, a_teaches: Tensor) -> Tensor:
    """|p_a - p_b|^2 (B, *), with the gradient on the student's side only."""
    p_a, p_b = _softmax(logits_a), _softmax(logits_b)
    a_teaches = a_teaches.unsqueeze(1)
    side_a = torch.where(a_teaches, p_a.detach(), p_a)
    side_b = torch.where(a_teaches, p_b, p_b.detach())
    return (side_a - side_b).square().sum(dim=1)


def _error_to_class(logits: Tensor, truth: Tensor) -> Tensor:
    """|p - onehot(y)|^2 = sum p^2 - 2 p_y + 1 (B, *), free of a one-hot volume; ``truth`` is (B, 1, *)."""
    probs = _softmax(logits)
    return probs.square().sum(dim=1) - 2.0 * probs.gather(1, truth).squeeze(1) + 1.0
