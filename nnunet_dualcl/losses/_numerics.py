"""Small numerical pieces that several losses share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nnunet_dualcl.losses._ranks import mean_over_ranks

FEW_CLASSES = 4
"""Up to here it costs more time than it saves memory to compute probabilities twice."""

SHORTEST = 1e-6
"""Vectors at or below this length have no usable direction."""


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Context in which autocast leaves dtypes alone on the device of ``like``."""
    device = like.device.type
    # nnU-Net does not autocast on Apple's devices, and older torch refuses the name.
    return nullcontext() if device == "mps" else torch.autocast(device_type=device, enabled=False)


def full_precision(values: Tensor) -> Tensor:
    """``values`` in float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` over ``mask``; exactly 0, with a graph, where the mask is empty.

    Between ranks each divides by the mean count, so that the mean of their results, which is what distributed training
    takes of gradients, is the mean over all voxels.
    """
    # a mean count between 0 and 1 stands: some rank has a voxel then
    count = mean_over_ranks(mask.sum()).clamp(min=1e-6)
    return torch.where(mask, values, 0.0).sum() / count


def inverse_length(vectors: Tensor, dim: int) -> Tensor:
    """1 / length along ``dim`` (kept, size 1); 0 without gradient for vectors too short to have a direction.

    The usual ``x / max(length, eps)`` has a gradient of 1 / eps at the zero vector, enough to drown a step.
    """
    # not torch.linalg.vector_norm, which is several times slower along a strided axis on CPUs
    squared = vectors.square().sum(dim=dim, keepdim=True)
    return torch.where(squared <= SHORTEST**2, 0.0, squared.clamp(min=SHORTEST**2).rsqrt())


def is_class(labels: Tensor, num_classes: int) -> Tensor:
    """Where ``labels`` names one of the classes 0..num_classes-1, rather than, say, the ignore label."""
    return (labels >= 0) & (labels < num_classes)


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, whose volumes of C probabilities are computed again in the backward pass, not kept.

    The first tensor is (B, C, *). Volumes of few classes are kept: they weigh little beside the decoders' features.
    """
    if tensors[0].shape[1] <= FEW_CLASSES:
        return function(*tensors)
    result: Tensor = checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return result
