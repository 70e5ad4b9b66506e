"""Label images: whole numbers of known meaning, and one label image out of several structures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import SimpleITK as sitk

from nnunet_dualcl.errors import DualCLError, first_few

_ROUNDING = 1e-3
"""Off a whole number: labels that were stored with a scale factor, as nibabel does under an int16 header."""


def whole_numbers(label: sitk.Image) -> np.ndarray:
    """Values (z, y, x) of a label image as integers.

    Raises:
        DualCLError: a value is no whole number, up to rounding.
    """
    array = np.asarray(sitk.GetArrayViewFromImage(label))
    if np.issubdtype(array.dtype, np.integer) and array.dtype.itemsize <= 4:
        return np.array(array)
    whole = np.empty(array.shape, np.int32)
    odd: list[np.ndarray] = []
    for index, plane in enumerate(array):  # one at a time: no second volume of floating point numbers
        nearest = np.round(plane)
        wrong = ~np.isclose(plane, nearest, rtol=0, atol=_ROUNDING) | (np.abs(plane) >= 2**31)
        odd.append(plane[wrong])
        whole[index] = np.where(wrong, 0, nearest)
    if sum(part.size for part in odd):
        some = np.concatenate(odd)
        raise DualCLError(
            f"the label holds values that are no whole numbers, such as {some[0]:.6g} ({some.size} voxels). Is it a "
            "probability map, or was it interpolated? Threshold it, or export it again with nearest neighbor."
        )
    return whole


def mapped_values(
    values: np.ndarray, value_map: Mapping[int, int], allowed: Iterable[int], *, others_are_background: bool = False
) -> tuple[np.ndarray, list[int]]:
    """``values`` with ``value_map`` applied, in the smallest unsigned type.

    Args:
        values: of the source.
        value_map: value of the source -> value to write; empty: values stay as they are, and must be ``allowed``.
        allowed: values that may be written.
        others_are_background: write 0 for values that are not known.

    Returns:
        The mapped values, and those that were not known.

    Raises:
        DualCLError: a value is not known, without ``others_are_background``.
    """
    present = np.unique(values).tolist()
    target = {0: 0, **value_map} if value_map else {value: value for value in allowed}
    unknown = [value for value in present if value not in target]
    if unknown and not others_are_background:
        raise DualCLError(
            f"the label holds {first_few([str(value) for value in unknown])}, which stand for nothing. Known: "
            f"{', '.join(str(value) for value in sorted(target))}. Name them as labels, or repeat with --other-values "
            "background."
        )
    mapped = np.zeros(values.shape, np.uint8 if max(target.values()) < 256 else np.uint16)
    for value in present:
        if target.get(value, 0) != 0:
            mapped[values == value] = target[value]
    return mapped, unknown


def merge_structures(masks: Iterable[tuple[int, np.ndarray]], shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """One label array out of masks of structures; where they overlap, the first one keeps the voxel.

    Args:
        masks: value and boolean mask (z, y, x), in order of precedence.
        shape: of the result, for no mask at all.

    Returns:
        The labels, uint16, and the number of voxels that more than one structure of different value claimed.
    """
    merged = np.zeros(shape, np.uint16)
    overlaps = np.zeros(shape, bool)
    for value, mask in masks:
        overlaps |= mask & (merged != 0) & (merged != value)
        merged[mask & (merged == 0)] = value
    return merged, int(overlaps.sum())


def merge_labels(label: np.ndarray, other: np.ndarray) -> list[str]:
    """Put ``other`` into ``label`` (both z, y, x), smaller values first; slice by slice, as whole volumes are large."""
    contested = 0
    for own, added in zip(label, other, strict=True):
        values = np.union1d(own[own != 0], added[added != 0])
        masks = ((int(value), each == value) for value in values for each in (own, added))
        merged, overlapping = merge_structures(masks, own.shape)
        own[:] = merged
        contested += overlapping
    return [f"{contested} voxels are of several objects; the label named first has them"] if contested else []
