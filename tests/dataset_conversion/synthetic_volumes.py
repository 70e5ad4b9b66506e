"""Small lopsided volumes, made in the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SIZE_ZYX = (7, 9, 11)
SPACING = (1.0, 1.5, 3.0)
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def volume(
    values: np.ndarray | int = 0, dtype: Any = np.int16, *, spacing: Any = SPACING, origin: Any = (5, -7, 11)
) -> sitk.Image:
    """An oblique anisotropic image: the given array, or noise of that seed."""
    if isinstance(values, int):
        values = np.random.default_rng(values).normal(40, 100, SIZE_ZYX)
    image = sitk.GetImageFromArray(values.astype(dtype))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(OBLIQUE)
    return image


def slabs(*values: int, dtype: Any = np.uint8) -> np.ndarray:
    """Labels: for each value a slab of 3 by 5 voxels in a slice of its own."""
    array = np.zeros(SIZE_ZYX, dtype)
    for index, value in enumerate(values):
        array[1 + index, 2:5, 3:8] = value
    return array


def write(path: Path, image: sitk.Image, *, compress: bool = True) -> Path:
    """Write an image, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=compress)
    return path
