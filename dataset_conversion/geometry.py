"""Do two images share a voxel grid, and bringing one onto another's grid."""

from __future__ import annotations

from itertools import product

import numpy as np
import SimpleITK as sitk

TOLERANCE = 0.01
"""Corners of two grids may lie this share of the smallest voxel edge apart: rounding in a header stays far below."""


def corners(image: sitk.Image) -> np.ndarray:
    """Positions (8, 3) in mm of the centers of a 3D image's corner voxels, in patient coordinates (x, y, z)."""
    ends = [(0, size - 1) for size in image.GetSize()]
    return np.array([image.TransformIndexToPhysicalPoint(index) for index in product(*ends)])


def grid_difference(image: sitk.Image, reference: sitk.Image) -> str | None:
    """How the grid of ``image`` differs from that of ``reference`` in words, or None where they are the same.

    Size, spacing, origin and direction are judged by one measure: how far apart the corner voxels lie.
    """
    if image.GetSize() != reference.GetSize():
        return f"size {_text(image.GetSize())} voxels, not {_text(reference.GetSize())}"
    apart = float(np.linalg.norm(corners(image) - corners(reference), axis=1).max())
    allowed = TOLERANCE * min(reference.GetSpacing())
    if apart <= allowed:
        return None
    parts = [
        f"{name} {_text(mine)}, not {_text(its)}"
        for name, mine, its in (
            ("spacing", image.GetSpacing(), reference.GetSpacing()),
            ("origin", image.GetOrigin(), reference.GetOrigin()),
            ("direction", image.GetDirection(), reference.GetDirection()),
        )
        if not np.allclose(mine, its, rtol=1e-4, atol=1e-3 * min(reference.GetSpacing()))
    ]
    return f"corners up to {apart:.3g} mm apart, {allowed:.3g} mm allowed ({'; '.join(parts) or 'rounding adds up'})"


def onto(image: sitk.Image, reference: sitk.Image, *, nearest: bool) -> sitk.Image:
    """``image`` on the grid of ``reference``: nearest neighbor, or linear with the image's minimum outside of it."""
    if nearest:
        return sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0, image.GetPixelID())
    floating = sitk.Cast(image, sitk.sitkFloat32)
    outside = float(sitk.GetArrayViewFromImage(floating).min())
    return sitk.Resample(floating, reference, sitk.Transform(), sitk.sitkLinear, outside, sitk.sitkFloat32)


def share_outside(label: sitk.Image, image: sitk.Image) -> float:
    """Share of the voxels of ``label`` above 0 whose centers lie outside of ``image``; 0 for an empty label."""
    indices = np.argwhere(sitk.GetArrayViewFromImage(label) != 0)[:, ::-1]
    if len(indices) == 0:
        return 0.0
    ours, its = (_axes(each) for each in (label, image))
    points = indices @ ours.T + np.array(label.GetOrigin())
    places = (points - np.array(image.GetOrigin())) @ np.linalg.inv(its).T
    inside = ((places > -0.5) & (places < np.array(image.GetSize()) - 0.5)).all(axis=1)
    return float(1 - inside.mean())


def orientation(image: sitk.Image) -> str:
    """Where the axes of a 3D image point to, such as LPS: first the columns, then rows and slices."""
    code: str = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    return code


def _axes(image: sitk.Image) -> np.ndarray:
    """Columns are the steps in mm from one voxel to the next along x, y and z."""
    return np.asarray(np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing()))


def _text(numbers: tuple[float, ...]) -> str:
    return "x".join(f"{number:.6g}" for number in numbers)
