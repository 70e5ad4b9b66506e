"""Two views of one patch: the same place and shape, one as it is and one with nnU-Net's intensity augmentation."""

from __future__ import annotations

from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform


class TwoViews(BasicTransform):
    """nnU-Net's training transforms in their order; those that change intensities alone spare the first view.

    (C, *) -> (2 C, *): the weak view's channels, then the strong view's. Both see the same rotation, scaling and
    mirroring, so a prediction on one is a label for the other, voxel by voxel.

    Source: a weakly augmented view labels a strongly augmented one, FixMatch (arXiv 2001.07685).
    """

    def __init__(self, transforms: ComposeTransforms) -> None:
        super().__init__()
        self.transforms: list[BasicTransform] = transforms.transforms

    def __call__(self, **sample: Any) -> dict[str, Any]:
        """Transform ``image`` and ``segmentation`` of one sample."""
        views = [sample["image"]]  # one until they differ: resampling two would take twice the time
        for transform in self.transforms:
            if is_photometric(transform):
                weak, strong = views[0], views[-1].clone() if len(views) == 1 else views[-1]
                views = [weak, transform(image=strong)["image"]]
            elif isinstance(transform, MaskImageTransform):  # names channels of one view
                views = [transform(**{**sample, "image": view})["image"] for view in views]
            else:
                sample = transform(**{**sample, "image": torch.cat(views)})
                views = list(sample["image"].chunk(len(views)))
        sample["image"] = torch.cat((views[0], views[-1]))
        return sample


def is_photometric(transform: BasicTransform) -> bool:
    """Whether a transform changes intensities and leaves every voxel where it is."""
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    return isinstance(inner, ImageOnlyTransform)
