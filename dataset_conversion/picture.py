"""A look at a case: its three planes side by side, the label drawn over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from PIL import Image

HEIGHT = 160
"""Pixels of each plane."""
_WIDEST = 3 * HEIGHT
_GAP = 4
_COLORS = np.array(
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66)], float
)
"""Okabe and Ito's colors, which the color blind tell apart; labels take turns."""
_OPACITY = 0.45


def overlay(channels: Sequence[sitk.Image], label: sitk.Image | None) -> Image.Image:
    """A row for each channel, all on one grid; see :func:`_row`."""
    rows = [_row(channel, label) for channel in channels]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + _GAP for row in rows) - _GAP))
    for index, row in enumerate(rows):
        sheet.paste(row, (0, index * (HEIGHT + _GAP)))
    return sheet


def _row(image: sitk.Image, label: sitk.Image | None) -> Image.Image:
    """Axial, coronal and sagittal slice through the label's center of mass, or the volume's without one.

    The patient's anterior and superior side are up, the right one on the left, in the spacing's proportions; gray
    values from the 1st to the 99th percentile.
    """
    image = sitk.DICOMOrient(image, "LPS")
    values = sitk.GetArrayViewFromImage(image)
    labels = None if label is None else sitk.GetArrayFromImage(sitk.DICOMOrient(label, "LPS"))
    low, high = np.percentile(values[tuple(slice(None, None, 1 + size // 64) for size in values.shape)], (1, 99))
    x, y, z = image.GetSpacing()
    planes = []
    for axis, height_mm, width_mm in ((0, y, x), (1, z, x), (2, z, y)):
        at = _center(labels, axis) if labels is not None and labels.any() else values.shape[axis] // 2
        gray = np.clip((values.take(at, axis) - low) / max(float(high - low), 1e-6), 0, 1) * 255
        plane = np.repeat(gray[..., None], 3, axis=2)
        if labels is not None:
            plane = _colored(plane, labels.take(at, axis))
        if axis != 0:
            plane = plane[::-1]  # superior up
        high_mm, wide_mm = plane.shape[0] * height_mm, plane.shape[1] * width_mm
        scale = min(HEIGHT / high_mm, _WIDEST / wide_mm)  # pixels a mm, so that a flat volume looks flat
        size = (max(1, round(wide_mm * scale)), max(1, round(high_mm * scale)))
        planes.append(Image.fromarray(plane.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR))
    sheet = Image.new("RGB", (sum(plane.width + _GAP for plane in planes) - _GAP, HEIGHT))
    left = 0
    for plane_image in planes:
        sheet.paste(plane_image, (left, (HEIGHT - plane_image.height) // 2))
        left += plane_image.width + _GAP
    return sheet


def color_of(value: int) -> str:
    """Of a label value, as a web page writes it."""
    return "#{:02x}{:02x}{:02x}".format(*(int(part) for part in _COLORS[(value - 1) % len(_COLORS)]))


def _colored(plane: np.ndarray, labels: np.ndarray) -> np.ndarray:
    inside = labels > 0
    plane = plane.copy()
    plane[inside] += _OPACITY * (_COLORS[(labels[inside].astype(int) - 1) % len(_COLORS)] - plane[inside])
    return plane


def _center(labels: np.ndarray, axis: int) -> int:
    others = tuple(other for other in range(3) if other != axis)
    weight = (labels > 0).sum(axis=others)
    return int(np.searchsorted(np.cumsum(weight), weight.sum() / 2))
