"""Segments of a DICOM-SEG as labels: on the grid of the series where the frames lie on it, on their own otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels.utils import iter_pixels

from nnunet_dualcl.dataset_conversion.dicom.frames import frame_groups, functional_group, read_groups
from nnunet_dualcl.dataset_conversion.dicom.grid import OFF_GRID, Grid, Vector, plane_axes, same_direction
from nnunet_dualcl.dataset_conversion.labels import merge_structures
from nnunet_dualcl.errors import DualCLError


def segment_labels(
    path: Path, values: Mapping[int, int], grid: Grid, *, threshold: float
) -> tuple[np.ndarray, Grid, list[str]]:
    """Labels (z, y, x), uint16, the grid they are on, and notes for the report.

    Args:
        path: of the DICOM-SEG: binary, fractional or labelmap.
        values: segment number -> label value; of overlapping segments the one with the smaller value keeps the voxel.
        grid: of the series.
        threshold: of fractional segments; this share of the maximum and more is inside.

    Raises:
        DualCLError: frames without position or in several planes, pixel data that cannot be read.
    """
    header = read_groups(path)
    groups = frame_groups(header)
    positions = frame_positions(header)
    if len(positions) != len(groups) or not groups:
        raise DualCLError("the DICOM-SEG states no position for its frames. Export it again from another program.")
    target, corners = _target(header, groups, positions, grid)
    labelmap = str(header.get("SegmentationType")) == "LABELMAP"
    frames: list[tuple[int, int, int]] = []
    for index, group in enumerate(groups):
        number = functional_group(group, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        if labelmap or number in values:
            frames.append((int(corners[index][2]), 0 if labelmap else values[int(number)], index))
    frames.sort()
    level = threshold * float(header.get("MaximumFractionalValue") or 1)
    fractional = str(header.get("SegmentationType")) == "FRACTIONAL"
    labels = np.zeros(target.size[::-1], np.uint16)
    overlapping = 0
    pixels = _decoded(path, header, [index for _, _, index in frames])

    def masks(wanted: Iterable[tuple[int, int, int]], shape: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
        for _, value, index in wanted:
            frame = next(pixels)
            column, row = (int(number) for number in corners[index][:2])
            place = slice(row, row + frame.shape[0]), slice(column, column + frame.shape[1])
            numbers = values.items() if labelmap else [(0, value)]
            for number, each in sorted(numbers, key=lambda pair: pair[1]):
                mask = np.zeros(shape, bool)
                mask[place] = frame == number if labelmap else frame >= level if fractional else frame != 0
                yield each, mask

    for index, wanted in groupby(frames, key=lambda frame: frame[0]):
        labels[index], contested = merge_structures(masks(wanted, labels[index].shape), labels[index].shape)
        overlapping += contested
    notes = [f"fractional segments were cut at {threshold:g} of their maximum"] if fractional else []
    if target != grid and _stated_gap(groups) is None:
        notes.append(f"frames state no SpacingBetweenSlices and were taken for slices of {target.spacing[2]:.3g} mm")
    if overlapping:
        notes.append(f"{overlapping} voxels are of several segments; the one named first has them")
    return labels, target, notes


def frame_positions(header: Any) -> np.ndarray:
    """Centers (n, 3) in mm of the frames' first pixels, of those frames that state one."""
    found = [functional_group(group, "PlanePositionSequence", "ImagePositionPatient") for group in frame_groups(header)]
    return np.array([[float(number) for number in each] for each in found if each]).reshape(-1, 3)


def _target(header: Any, groups: list[tuple[Any, ...]], positions: np.ndarray, grid: Grid) -> tuple[Grid, np.ndarray]:
    """The grid for the labels, and the voxel (x, y, z) on it of each frame's first pixel.

    It is that of the series where all frames lie on it, be they cropped, sparse or in reversed order; otherwise, and
    where they are of thicker slices, the one that the frames themselves are on, and the writer says how it differs.
    """
    along_row, along_column, (dx, dy) = _plane(groups)
    rows, columns = int(header.Rows), int(header.Columns)
    far = np.array(along_row) * dx * (columns - 1) + np.array(along_column) * dy * (rows - 1)
    starts, ends = grid.indices(positions), grid.indices(positions + far)
    corners = np.round(starts).astype(int)
    wanted_ends = corners + np.array([columns - 1, rows - 1, 0])
    # corners alone would take a transposed square, and frames of thicker slices for a sparse segmentation
    stated = _stated_gap(groups)
    as_thick = _as_thick(corners[:, 2]) if stated is None else abs(stated / grid.spacing[2] - 1) <= OFF_GRID
    parallel = same_direction(along_row, grid.axes[0]) and same_direction(along_column, grid.axes[1])
    exact = max(np.abs(starts - corners).max(), np.abs(ends - wanted_ends).max()) <= OFF_GRID
    aligned = as_thick and parallel and exact
    if aligned and (corners >= 0).all() and (wanted_ends < np.array(grid.size)).all():
        return grid, corners
    own = _own_grid(header, groups, positions, along_row, along_column, (dx, dy))
    return own, np.round(own.indices(positions)).astype(int)


def _stated_gap(groups: list[tuple[Any, ...]]) -> float | None:
    """Slice distance in mm that the frames state."""
    stated = functional_group(groups[0], "PixelMeasuresSequence", "SpacingBetweenSlices")
    return None if stated is None else float(stated)


def _as_thick(slices: np.ndarray) -> bool:
    """Are frames on these slices of a series, of which no distance is stated, as thick as those?

    Three or more that are whole multiples of some slices apart are taken for thicker ones: pasted onto single slices,
    they would be stripes.
    """
    gaps = np.diff(np.unique(slices))
    return len(gaps) < 2 or bool(gaps.min() == 1 or (gaps % gaps.min()).any())


def _plane(groups: list[tuple[Any, ...]]) -> tuple[Vector, Vector, tuple[float, float]]:
    """Directions and pixel edges (x, y) in mm that all frames share.

    Raises:
        DualCLError: they are missing, or differ between frames.
    """
    planes = []
    for group in groups:
        orientation = functional_group(group, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = functional_group(group, "PixelMeasuresSequence", "PixelSpacing")
        if not orientation or not spacing:
            raise DualCLError("the DICOM-SEG states no orientation or pixel spacing. Export it from another program.")
        planes.append((*plane_axes(orientation), (float(spacing[1]), float(spacing[0]))))
    first = planes[0]
    if not all(same_direction(each[0], first[0]) and same_direction(each[1], first[1]) for each in planes):
        raise DualCLError("the frames of the DICOM-SEG are in several planes. Export one object for each.")
    return first


def _own_grid(
    header: Any,
    groups: list[tuple[Any, ...]],
    positions: np.ndarray,
    along_row: Vector,
    along_column: Vector,
    spacing_xy: tuple[float, float],
) -> Grid:
    normal = np.cross(along_row, along_column)
    heights = positions @ normal
    lowest = positions[int(np.argmin(heights))]
    gaps = np.diff(np.unique(heights.round(3)))
    # frames without a segment are often left out, so the smallest gap may be several slices
    step = float(_stated_gap(groups) or (gaps.min() if gaps.size else 0))
    layers = (heights - heights.min()) / step if step > 0 else np.full(len(heights), np.nan)
    sideways = positions - lowest - np.outer(heights - heights.min(), normal)
    if not np.abs(layers - layers.round()).max() <= OFF_GRID or (
        np.linalg.norm(sideways, axis=1).max() > OFF_GRID * min(spacing_xy)
    ):
        raise DualCLError("the frames of the DICOM-SEG form no regular grid, neither the series' nor one of their own.")
    origin, axis = ((float(each[0]), float(each[1]), float(each[2])) for each in (lowest, normal))
    size = int(header.Columns), int(header.Rows), int(layers.round().max()) + 1
    return Grid(origin, (along_row, along_column, axis), (*spacing_xy, step), size)


def _decoded(path: Path, header: Any, indices: list[int]) -> Iterator[np.ndarray]:
    """Frames (y, x) in the order of ``indices``, one in memory at a time."""
    if not indices:
        return
    try:
        if header.get("BitsAllocated") == 1 and not header.file_meta.TransferSyntaxUID.is_encapsulated:
            yield from _unpacked(pydicom.dcmread(path, force=True), indices)
        else:
            yield from iter_pixels(path, indices=indices, raw=True)
    except (RuntimeError, ValueError, AttributeError, NotImplementedError, OSError) as error:
        raise DualCLError(
            f"pixel data of the DICOM-SEG cannot be read ({type(error).__name__}): damaged, or in an uncommon "
            "compression."
        ) from None


def _unpacked(dataset: Any, indices: list[int]) -> Iterator[np.ndarray]:
    """Frames of single bits, which follow one another without padding: most begin and end within a byte.

    pydicom 3.0.2 and highdicom 0.28 read a byte too few for some sizes.
    """
    stored = np.frombuffer(dataset.PixelData, np.uint8)
    shape = int(dataset.Rows), int(dataset.Columns)
    count = shape[0] * shape[1]
    for index in indices:
        first, last = index * count, (index + 1) * count
        bits = np.unpackbits(stored[first // 8 : -(-last // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + count].reshape(shape)
