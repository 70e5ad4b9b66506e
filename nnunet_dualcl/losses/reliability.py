"""Which voxels are confident enough to teach: the low end of the entropy distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnunet_dualcl.losses._checks import check_labels, check_unit_interval
from nnunet_dualcl.losses._numerics import full_precision, is_class
from nnunet_dualcl.losses._ranks import gathered

MAX_SAMPLES = 2**16
"""Voxels from which a quantile is estimated: a standard error of at most 0.2 percentage points in rank."""


def reliable_mask(
    entropy: Tensor,
    *,
    unreliable_fraction: float | Tensor,
    labels: Tensor | None = None,
    num_classes: int | None = None,
    max_samples: int = MAX_SAMPLES,
) -> Tensor:
    r"""Voxels whose entropy is at or below the (1 - alpha) quantile.

    .. math:: \text{reliable}_i = [\, h_i \le Q_{1-\alpha}(h) \,]

    Q is the order statistic that leaves ``floor(alpha n)`` of n voxels above it. With ``labels`` each class
    has its own Q: volumes are mostly background, and a single quantile calls nearly every foreground boundary
    unreliable. Up to ``max_samples`` voxels Q is exact; beyond, it is estimated on a regular sample of at
    most that many, as the order statistic that a further voxel lies above with a chance of ``floor(alpha n) / (n + 1)``
    where n voxels of the class are in the sample. So of a small class no more than alpha is called unreliable on
    average, of one that the sample misses nothing.

    Args:
        entropy: (B, *), any scale; detached.
        unreliable_fraction: alpha in [0, 1], the share called unreliable. At 0 everything is reliable; at 1
            only the voxels of least entropy are. In code that torch.compile traces, a tensor (): a number that
            changes would be compiled anew. It is not checked, which would wait for the device.
        labels: integer (B, *), the predicted classes. Voxels outside 0..num_classes-1 are not reliable.
        num_classes: C, needed with ``labels``.
        max_samples: most voxels from which a quantile is estimated.

    Returns:
        bool (B, *), without gradient. Ties at the quantile are reliable, NaN never is, and an empty input
        gives an empty mask.

    Raises:
        ValueError: wrong shapes or dtypes, ``labels`` without ``num_classes``, or a fraction outside [0, 1].

    Source: the entropy percentile of U2PL (CVPR 2022), whose alpha also falls; one quantile a class is ours.
    """
    if entropy.ndim < 2 or not entropy.is_floating_point():
        raise ValueError(
            "entropy must be a floating tensor of shape (B, *) with at least one spatial axis, "
            f"got {entropy.dtype} of shape {tuple(entropy.shape)}."
        )
    if not isinstance(unreliable_fraction, Tensor):
        check_unit_interval("unreliable_fraction", unreliable_fraction)
    if max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, got {max_samples}.")
    h = full_precision(entropy.detach())
    eligible = ~h.isnan()
    if labels is not None:
        if num_classes is None or num_classes < 1:
            raise ValueError(f"labels need num_classes, at least 1, got {num_classes}.")
        check_labels("labels", labels, tuple(h.shape))
        eligible = eligible & is_class(labels, num_classes)
    if h.numel() == 0 or (not isinstance(unreliable_fraction, Tensor) and unreliable_fraction == 0):
        return eligible
    if isinstance(unreliable_fraction, Tensor):  # at 0 also voxels above all of the sample are reliable
        h = torch.where(unreliable_fraction > 0, h, 0.0)

    stride = _sampling_stride(tuple(h.shape), max_samples)
    sample = gathered(h.flatten()[::stride], length=max_samples, fill=math.nan)
    ranked, order = sample.sort()  # NaN come last
    if labels is None or num_classes is None:
        start = torch.zeros((), device=h.device)
        threshold = _quantile(ranked, start, (~ranked.isnan()).sum(), unreliable_fraction, estimated=stride > 1)
        return eligible & (h <= threshold)
    sampled = labels.flatten()[::stride].long()
    members = torch.where(eligible.flatten()[::stride], sampled, num_classes)
    members = gathered(members, length=max_samples, fill=num_classes)
    # Two sorts, whatever the number of classes: by entropy, then by class, which keeps the order within each.
    grouped, within = members[order].sort(stable=True)
    bounds = torch.searchsorted(grouped, torch.arange(num_classes + 1, device=h.device))
    starts, counts = bounds[:-1], bounds.diff()
    thresholds = _quantile(ranked[within], starts, counts, unreliable_fraction, estimated=stride > 1)
    return eligible & (h <= thresholds[labels.long().clamp(0, num_classes - 1)])


def _quantile(
    ranked: Tensor, start: Tensor, count: Tensor, unreliable_fraction: float | Tensor, *, estimated: bool
) -> Tensor:
    """(1 - alpha) quantile of the ``count`` rising values that begin at ``start``, of their own or ``estimated``.

    Of their own it leaves ``floor(alpha count)`` of them above it. Estimated from them for others it is the next value,
    infinity after the last: the largest of n values leaves 1 / (n + 1) of all above it, however small alpha is.
    """
    # The slack keeps float32 rounding from turning alpha n = 7 into 6.9999 and hence into 6.
    unreliable = (count * (unreliable_fraction * (1 + 1e-6))).floor()
    place = (start + (count - unreliable - (0 if estimated else 1)).clamp(min=0)).long().clamp(max=ranked.numel() - 1)
    quantile = ranked.gather(0, place.reshape(-1)).reshape(place.shape)
    return torch.where(unreliable > 0, quantile, torch.inf) if estimated else quantile


def _sampling_stride(shape: tuple[int, ...], max_samples: int) -> int:
    """Least stride over the flat (B, *) volume that keeps the sample small and is coprime to every axis.

    A stride that shares a factor with the length of an axis would skip the same positions on every line.
    """
    stride = math.ceil(math.prod(shape) / max_samples)
    while any(math.gcd(stride, length) > 1 for length in shape[1:]):
        stride += 1
    return stride
