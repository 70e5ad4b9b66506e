"""Copy-paste between labeled and unlabeled patches, so that truth and pseudo-labels meet in one image."""

from __future__ import annotations

import numpy as np
import torch

from nnunet_dualcl.training.pseudo_labels import PseudoLabels


def copy_paste(
    images: torch.Tensor,
    labels: PseudoLabels,
    labeled_images: torch.Tensor,
    known: PseudoLabels,
    *,
    fraction: float,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, PseudoLabels]:
    """Exchange a cuboid between each unlabeled patch and a labeled one.

    Every other patch gets the cuboid of its labeled partner, the rest keep theirs and get the partner's surroundings;
    which come first is drawn, because nnU-Net forces the last patches of a batch onto foreground.

    Args:
        images: (B_u, channels, *) unlabeled patches.
        labels: (B_u, P, *) of ``images``.
        labeled_images: (B, channels, *); patch i of the unlabeled half meets patch i modulo B.
        known: (B, P, *) of ``labeled_images``.
        fraction: edge length of the cuboid as a share of the patch's, for each axis; at least one voxel.
        generator: draws the cuboids' places on the host.

    Returns:
        New images and labels of the same shapes; the arguments are left as they are.

    Source: bidirectional copy-paste, BCP (CVPR 2023, arXiv 2305.00673).
    """
    shape = images.shape[2:]
    first = int(generator.integers(2))
    pasted = torch.zeros((images.shape[0], 1, *shape), dtype=torch.bool, device=images.device)
    for index in range(images.shape[0]):
        pasted[index, 0][_cuboid(shape, fraction, generator)] = True
        if (index + first) % 2 == 1:
            pasted[index] = ~pasted[index]
    partner = torch.arange(images.shape[0], device=images.device) % labeled_images.shape[0]
    mixed = PseudoLabels(*(torch.where(pasted, new[partner], old) for new, old in zip(known, labels, strict=True)))
    return torch.where(pasted, labeled_images[partner], images), mixed


def _cuboid(shape: torch.Size, fraction: float, generator: np.random.Generator) -> tuple[slice, ...]:
    edges = [max(1, round(fraction * size)) for size in shape]
    starts = [int(generator.integers(0, size - edge + 1)) for size, edge in zip(shape, edges, strict=True)]
    return tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))
