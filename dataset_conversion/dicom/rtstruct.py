"""Contours of an RTSTRUCT as labels on the grid of a series.

A voxel belongs to a structure when its center lies inside an odd number of the structure's contours on that slice, so
a contour inside another one is a hole, and a hole that is tied to the outside by a narrow channel works as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from nnunet_dualcl.dataset_conversion.dicom.grid import OFF_GRID, Grid
from nnunet_dualcl.dataset_conversion.labels import merge_structures
from nnunet_dualcl.errors import DualCLError

_FILLED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_CORNERS = 3
"""Contours of fewer enclose nothing."""
_CONTOUR_DATA = 0x30060050
_SAME_PLANE = 0.05
"""Contours of which the heights differ less, in slices, are on one plane."""
_SKIPPING = 0.25
"""The share of steps from contours to the next ones that may leave slices out; every second or third slice is more."""
_DECIMALS = 6
"""Of a pixel, that corners are rounded to: those at pixel centers come out there, whatever the arithmetic."""

Planes = dict[int, list[tuple[int, list[np.ndarray]]]]
"""Slice -> value and polygons (n, 2), in pixels (x, y), of each structure."""


def contour_labels(path: Path, values: Mapping[int, int], grid: Grid) -> tuple[np.ndarray, list[str]]:
    """Labels (z, y, x), uint16, and notes for the report.

    Args:
        path: of the RTSTRUCT.
        values: ROI number -> label value; of overlapping structures the one with the smaller value keeps the voxel.
        grid: of the series; contours are placed on it by position alone, whatever instances they name.

    Raises:
        DualCLError: contours that lie across the slices, off the volume altogether, or with slices left out throughout.
    """
    notes: list[str] = []
    planes: Planes = {}
    for value, number, contours in _contours(path, values, notes):
        for index, polygons in _on_slices(contours, grid, f"ROI {number} (label {value})", notes):
            planes.setdefault(index, []).append((value, polygons))
    labels = np.zeros(grid.size[::-1], np.uint16)
    overlapping = sum(_paint(labels[index], structures) for index, structures in planes.items())
    if overlapping:
        notes.append(f"{overlapping} voxels are of several structures; the one named first has them")
    return labels, notes


def contour_points(path: Path) -> np.ndarray:
    """The first point (n, 3) in mm of every closed contour, to find out which series they were drawn on."""
    header = pydicom.dcmread(path, force=True)
    items = [item for roi in header.get("ROIContourSequence") or [] for item in roi.get("ContourSequence") or []]
    closed = [points for item in items if _encloses(item, points := _points(item))]
    return np.array([points[0] for points in closed]).reshape(-1, 3)


def drawn_rois(path: Path) -> frozenset[int]:
    """Numbers of the ROIs that have a closed contour of three or more points."""
    contours = {
        number: item.get("ContourSequence") or [] for number, item in _rois(pydicom.dcmread(path, force=True)).items()
    }
    return frozenset(number for number, own in contours.items() if any(_encloses(each, _points(each)) for each in own))


def inside_polygons(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centers are inside an odd number of polygons, as a mask (y, x) of ``shape``.

    Each edge flips, in every column that it crosses, all pixels from the crossing down; a running exclusive or over the
    rows adds the flips up. Centers on a left or upper border count as inside, those on a right or lower one do not.

    Args:
        polygons: corners (n, 2) in pixels (x, y), each closed by itself.
        shape: rows and columns.
    """
    rows, columns = shape
    starts = np.concatenate(polygons).round(_DECIMALS)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons]).round(_DECIMALS)
    left = np.clip(np.ceil(np.minimum(starts[:, 0], ends[:, 0])), 0, columns).astype(np.intp)
    right = np.clip(np.ceil(np.maximum(starts[:, 0], ends[:, 0])), 0, columns).astype(np.intp)
    crossed = right - left
    edge = np.repeat(np.arange(len(starts)), crossed)
    column = left[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed)
    (x, y), (across, down) = starts[edge].T, (ends - starts)[edge].T
    # less the rounding of the division, so that a crossing at a center stays there
    row = np.clip(np.ceil(y + (column - x) * down / across - 1e-9), 0, rows).astype(np.intp)
    flips = np.zeros((rows + 1, -(-columns // 8) * 8), np.uint8)
    np.bitwise_xor.at(flips, (row, column), 1)
    # eight pixels at a time, which takes an eighth of the time
    inside = np.bitwise_xor.accumulate(flips[:rows].view(np.uint64), axis=0).view(bool)
    return np.asarray(inside[:, :columns])


def _contours(path: Path, values: Mapping[int, int], notes: list[str]) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """Value, ROI number and closed contours (n, 3) of each wanted ROI, smaller values first."""
    items = _rois(pydicom.dcmread(path, force=True))
    passed = Counter[str]()
    for number, value in sorted(values.items(), key=lambda pair: (pair[1], pair[0])):
        contours = []
        for contour in (items[number].get("ContourSequence") or []) if number in items else []:
            kind = _kind(contour)
            points = _points(contour)
            if _encloses(contour, points):
                contours.append(points)
            else:
                passed[kind if kind not in _FILLED else "of fewer than three points"] += 1
        if contours:
            yield value, number, contours
        else:
            notes.append(f"ROI {number} (label {value}) has no closed contour: taken as absent")
    for kind, count in sorted(passed.items()):
        notes.append(f"{count} contours {kind or 'without a type'} enclose nothing and were passed over")


def _rois(header: Any) -> dict[int, Any]:
    """ROI number -> what holds its contours."""
    return {int(item.ReferencedROINumber): item for item in header.get("ROIContourSequence") or []}


def _kind(contour: Any) -> str:
    return str(contour.get("ContourGeometricType") or "")


def _encloses(contour: Any, points: np.ndarray) -> bool:
    return _kind(contour) in _FILLED and len(points) >= _CORNERS


def _points(contour: Any) -> np.ndarray:
    """Corners (n, 3) in mm.

    Raises:
        DualCLError: the numbers are damaged.
    """
    if _CONTOUR_DATA not in contour:
        return np.empty((0, 3))
    # the bytes of the file: a Python object a number would take longer than all the rest
    value = contour.get_item(_CONTOUR_DATA).value
    if value is None or len(value) == 0:
        return np.empty((0, 3))
    try:
        return np.array(value.split(b"\\") if isinstance(value, bytes) else list(value)).astype(float).reshape(-1, 3)
    except ValueError:
        raise DualCLError("contour coordinates are damaged. Export the structure set again.") from None


def _on_slices(
    contours: list[np.ndarray], grid: Grid, what: str, notes: list[str]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Slice and polygons in pixels (x, y) of one ROI: each plane of contours goes to the slice it is nearest to.

    Several planes may be nearest to one slice where contours are closer than slices; then the closest has it. Planes
    halfway between two slices, up to rounding, all go to the lower one.
    """
    extents = [np.concatenate([points.min(axis=0), points.max(axis=0)]).tobytes() for points in contours]
    alike = Counter(extents)  # edges take longer, and are looked at where they may be the same
    distinct = {  # one drawn twice would be a hole in itself
        _edges(points) if alike[extent] > 1 else extent: points
        for extent, points in zip(extents, contours, strict=True)
    }
    if len(distinct) < len(contours):
        notes.append(f"{what}: {len(contours) - len(distinct)} contours are there twice; one of each was taken")
    contours = list(distinct.values())
    placed = [grid.indices(points) for points in contours]
    heights = np.array([points[:, 2].mean() for points in placed])
    if max(np.abs(points[:, 2] - height).max() for points, height in zip(placed, heights, strict=True)) > 0.5:
        raise DualCLError(
            f"contours of {what} lie across the slices: they were drawn in another plane than the series. Convert the "
            "structure to axial contours in the planning system, or export it as DICOM-SEG."
        )
    nearest: dict[int, tuple[float, list[np.ndarray]]] = {}
    outside = dropped = 0
    for plane in _planes(heights):
        height = float(heights[plane].mean())
        index = int(np.floor(height + 0.5 - _SAME_PLANE))
        if not 0 <= index < grid.size[2]:
            outside += len(plane)
            continue
        if index in nearest:
            dropped += 1
        if index not in nearest or abs(height - index) < abs(nearest[index][0] - index):
            nearest[index] = height, [placed[number][:, :2] for number in plane]
    if not nearest:
        raise DualCLError(f"all contours of {what} are off the volume: they belong to another series.")
    _check_skipped({index: polygons for index, (_, polygons) in nearest.items()}, what)
    off = max(abs(height - index) for index, (height, _) in nearest.items())
    empty = max(nearest) - min(nearest) + 1 - len(nearest)
    notes += [
        text
        for number, text in (
            (outside, f"{what}: {outside} contours are off the volume and were passed over"),
            (dropped, f"{what}: {dropped} planes of contours lie between slices and gave way to a closer one"),
            (empty, f"{what}: {empty} slices between its first and last have no contour and stay empty"),
            (off > OFF_GRID, f"{what}: contours lie up to {off:.2f} slices off theirs and were moved onto them"),
        )
        if number
    ]
    for index, (_, polygons) in nearest.items():
        yield index, polygons


def _edges(points: np.ndarray) -> bytes:
    """What decides how a contour is filled: its edges, from whatever corner and in whatever direction."""
    corners, numbers = np.unique(points, axis=0, return_inverse=True)
    ends = np.sort(np.stack([numbers.ravel(), np.roll(numbers, -1).ravel()]), axis=0)
    ends = ends[:, ends[0] != ends[1]]  # closed explicitly
    return corners.tobytes() + ends[:, np.lexsort(ends)].tobytes()


def _planes(heights: np.ndarray) -> list[np.ndarray]:
    """Numbers of the contours on each plane, from the lowest plane on."""
    order = np.argsort(heights, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(heights[order]) > _SAME_PLANE) + 1)


def _check_skipped(filled: Mapping[int, list[np.ndarray]], what: str) -> None:
    """Refuse contours that skip slices again and again: filled as they are, they would teach stripes.

    A slice and the next one with contours count where any of their contours overlap; others are of different objects,
    between which slices are empty with reason.
    """
    slices = sorted(filled)
    boxes = [np.array([[polygon.min(axis=0), polygon.max(axis=0)] for polygon in filled[index]]) for index in slices]
    overlapping = [_overlap(lower, upper) for lower, upper in pairwise(boxes)]
    steps = np.diff(slices)[np.array(overlapping, bool)]
    if (steps > 1).sum() > 1 and (steps > 1).mean() > _SKIPPING:
        raise DualCLError(
            f"contours of {what} leave slices out: {(steps - 1).sum()} of the {slices[-1] - slices[0] + 1} from the "
            "first to the last have none, though those before and behind overlap, which would teach stripes. "
            "Interpolate them in the planning system, or make separate lesions ROIs of their own, and export again."
        )


def _overlap(boxes: np.ndarray, others: np.ndarray) -> bool:
    """Does any box (n, 2, 2), its low and high corner in pixels (x, y), overlap any of the others?"""
    return bool(((boxes[:, None, 0] < others[:, 1]) & (others[:, 0] < boxes[:, None, 1])).all(axis=2).any())


def _paint(labels: np.ndarray, structures: list[tuple[int, list[np.ndarray]]]) -> int:
    """Fill the structures of one slice into ``labels`` (y, x), smaller values first; returns contested pixels."""
    corners = np.concatenate([polygon for _, polygons in structures for polygon in polygons])
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, labels.shape[::-1])
    if (high <= low).any():
        return 0
    window = labels[low[1] : high[1], low[0] : high[0]]

    def masks() -> Iterable[tuple[int, np.ndarray]]:
        for value, polygons in structures:
            yield value, inside_polygons([polygon - low for polygon in polygons], window.shape)

    contested: int
    window[:], contested = merge_structures(masks(), window.shape)
    return contested
