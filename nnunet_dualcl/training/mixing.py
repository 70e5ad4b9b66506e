"""Copy-paste between labeled and unlabeled patches, so that truth and pseudo-labels meet in one image."""

from __future__ import annotations

import numpy as np
import torch

from nnunet_dualcl.losses import is_class
from nnunet_dualcl.training.pseudo_labels import PseudoLabels


def copy_paste(
    images: torch.Tensor,
    pseudo_labels: PseudoLabels,
    labeled_images: torch.Tensor,
    truth: torch.Tensor,
    *,
    num_classes: int,
    fraction: float,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, PseudoLabels]:
    """Exchange a cuboid between each unlabeled patch and a labeled one.

    Every other patch gets the cuboid of its labeled partner, the rest keep theirs and get the partner's surroundings;
    which come first is drawn, because nnU-Net forces the last patches of a batch onto foreground. Pasted voxels carry
    the truth and are reliable where it is one of the classes.

    Args:
        images: (B_u, channels, *) unlabeled patches.
        pseudo_labels: of ``images``.
        labeled_images: (B, channels, *); patch i of the unlabeled half meets patch i modulo B.
        truth: integer (B, *) of the labeled patches.
        num_classes: C; other labels, such as the ignore label, are unreliable.
        fraction: edge length of the cuboid as a share of the patch's, for each axis; at least one voxel.
        generator: draws the cuboids' places on the host.

    Returns:
        New images and pseudo-labels of the same shapes; the arguments are left as they are.

    Source: bidirectional copy-paste, BCP (CVPR 2023, arXiv 2305.00673).
    """
    images, labels, reliable = images.clone(), pseudo_labels.labels.clone(), pseudo_labels.reliable.clone()
    shape = images.shape[2:]
    first = int(generator.integers(2))
    for index in range(images.shape[0]):
        partner = index % labeled_images.shape[0]
        pasted = torch.zeros(shape, dtype=torch.bool, device=images.device)
        pasted[_cuboid(shape, fraction, generator)] = True
        if (index + first) % 2 == 1:
            pasted = ~pasted
        known = truth[partner].long()
        images[index] = torch.where(pasted, labeled_images[partner], images[index])
        labels[index] = torch.where(pasted, known, labels[index])
        reliable[index] = torch.where(pasted, is_class(known, num_classes), reliable[index])
    return images, PseudoLabels(labels, reliable)


def _cuboid(shape: torch.Size, fraction: float, generator: np.random.Generator) -> tuple[slice, ...]:
    edges = [max(1, round(fraction * size)) for size in shape]
    starts = [int(generator.integers(0, size - edge + 1)) for size, edge in zip(shape, edges, strict=True)]
    return tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))
