"""Two views of one patch: one with nnU-Net's augmentation, one with less of it or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.cropping import center_crop
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

OUTSIDE = 2.0
"""Coordinate of a voxel that the plain view does not show."""
_ROUNDING = 1e-4


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


class PlainView(BasicTransform):
    """nnU-Net's training transforms, beside the middle of the patch as it was before all of them.

    (C, *) -> (2 C + d, *): the plain view's channels, the augmented view's, and for each voxel of the augmented view
    where it lies in the plain one: d coordinates as ``torch.nn.functional.grid_sample`` reads them (last axis first,
    -1 and 1 at the outer edges), :data:`OUTSIDE` where the plain view does not show it.

    nnU-Net rotates and scales patches far beyond what scans look like; what a network says of the plain view is the
    better label there, see ``docs/benchmarks.md``.
    """

    def __init__(self, transforms: ComposeTransforms, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.transforms: list[BasicTransform] = transforms.transforms
        self.patch_size = tuple(int(size) for size in patch_size)
        self._cached = torch.empty(0)

    def __call__(self, **sample: Any) -> dict[str, Any]:
        """Transform ``image`` and ``segmentation`` of one sample."""
        plain = {name: center_crop(sample[name], self.patch_size).clone() for name in ("image", "segmentation")}
        # whatever moves voxels moves and interpolates a target of regression too, whatever changes intensities does not
        sample["regression_target"] = self._places(tuple(sample["image"].shape[1:]))
        for transform in self.transforms:
            sample = transform(**sample)
            if isinstance(transform, MaskImageTransform):
                plain = transform(**plain)
        places, shown = sample.pop("regression_target").split((len(self.patch_size), 1))
        places = torch.where((shown > 1 - _ROUNDING) & (places.abs() <= 1).all(0), places, OUTSIDE)
        sample["image"] = torch.cat((plain["image"], sample["image"], places))
        return sample

    def _places(self, shape: tuple[int, ...]) -> torch.Tensor:
        """(d + 1, *) coordinates in the plain view, and a one that fades where interpolation leaves the patch."""
        if self._cached.shape[1:] != shape:
            axes = [
                (2 * (torch.arange(length) - (length // 2 - size // 2)) + 1) / size - 1
                for length, size in zip(shape, self.patch_size, strict=True)
            ]
            grid = torch.meshgrid(*axes, indexing="ij")[::-1]
            self._cached = torch.stack((*grid, torch.ones(shape)))
        return self._cached


def is_photometric(transform: BasicTransform) -> bool:
    """Whether a transform changes intensities and leaves every voxel where it is."""
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    return isinstance(inner, ImageOnlyTransform)
