"""Copy-paste between labeled and unlabeled patches, so that truth and pseudo-labels meet in one image."""

from __future__ import annotations

import functools

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
        labeled_images: (B, channels, *); patch i of the unlabeled half meets patch i modulo B, or, where there are more
            labeled ones, those from a drawn one on, so that each has its turn.
        known: (B, P, *) of ``labeled_images``.
        fraction: edge length of the cuboid as a share of the patch's, for each axis; at least one voxel.
        generator: draws the cuboids' places, and that one, on the host.

    Returns:
        New images and labels of the same shapes; the arguments are left as they are.

    Source: bidirectional copy-paste, BCP (CVPR 2023, arXiv 2305.00673).
    """
    pasted = _pasted(images, fraction, generator)
    times = -(-len(images) // len(labeled_images))
    first = int(generator.integers(len(labeled_images))) if len(images) < len(labeled_images) else 0

    def partners(of_labeled: torch.Tensor) -> torch.Tensor:
        turned = of_labeled.roll(-first, 0) if first else of_labeled
        return (turned if times == 1 else torch.cat([turned] * times))[: len(images)]

    mixed = (torch.where(pasted, partners(new), old) for new, old in zip(known, labels, strict=True))
    return torch.where(pasted, partners(labeled_images), images), PseudoLabels(*mixed)


def _pasted(images: torch.Tensor, fraction: float, generator: np.random.Generator) -> torch.Tensor:
    """Where each patch shows its labeled partner, bool (B_u, 1, *)."""
    shape = images.shape[2:]
    first = int(generator.integers(2))
    # a row for each patch, whether it keeps its cuboid and then the axes one after the other: one copy to the device
    drawn = np.zeros((len(images), 1 + sum(shape)), dtype=bool)
    for index, row in enumerate(drawn):
        row[0] = (index + first) % 2 == 1
        begin = 1
        for size in shape:
            edge = max(1, round(fraction * size))
            start = begin + int(generator.integers(0, size - edge + 1))
            row[start : start + edge] = True
            begin += size
    keeps, *axes = torch.from_numpy(drawn).to(images.device).split([1, *shape], dim=1)

    def spread(along: torch.Tensor, axis: int) -> torch.Tensor:
        return along.view(-1, *(along.shape[1] if axis == other else 1 for other in range(-1, len(shape))))

    inside = functools.reduce(torch.logical_and, (spread(along, axis) for axis, along in enumerate(axes)))
    return inside ^ spread(keeps, -1)
