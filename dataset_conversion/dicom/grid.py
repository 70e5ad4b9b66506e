"""Where slices lie: from positions in headers to one regular grid, or the reason why there is none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_dualcl.errors import DualCLError

OFF_GRID = 0.2
"""Slices may lie this share of a voxel edge off a regular grid: scanners and rounding move them by less."""
_PARALLEL = 1e-3
"""Unit vectors that differ by less point the same way; headers are rounded."""
_SAME_PLACE_MM = 1e-2
_TURNED = 0.98
"""Normals with a smaller cosine between them are of several orientations, not of one that drifts."""
_FEW_SLICES = 10
"""Localizers have fewer in each orientation."""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Slice:
    """One slice, as its header states it.

    Attributes:
        path: its file.
        frame: its index in a multi-frame file, from 0; None for a file of one slice.
        uid: SOP instance UID.
        position: center of the first pixel (x, y, z) in mm, patient coordinates.
        along_row: unit vector along which the column index (x) grows.
        along_column: unit vector along which the row index (y) grows.
        spacing_xy: pixel edges in mm.
        size_xy: pixels.
        rescale: slope and intercept from stored to real values.
        photometric: MONOCHROME2, or MONOCHROME1, where high values are shown dark.
        marks: tags by which several volumes in one series differ, such as ``EchoTime=20``, in the order of preference.
    """

    path: Path
    frame: int | None
    uid: str
    position: Vector
    along_row: Vector
    along_column: Vector
    spacing_xy: tuple[float, float]
    size_xy: tuple[int, int]
    rescale: tuple[float, float] = (1.0, 0.0)
    photometric: str = "MONOCHROME2"
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A regular voxel grid in patient coordinates.

    Attributes:
        origin: center of the first voxel (x, y, z) in mm.
        axes: unit vectors along growing x, y and z index.
        spacing: voxel edges (x, y, z) in mm.
        size: voxels (x, y, z).
    """

    origin: Vector
    axes: tuple[Vector, Vector, Vector]
    spacing: Vector
    size: tuple[int, int, int]

    def indices(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 3) in mm as continuous voxel indices (n, 3), in x, y, z."""
        return np.asarray((points - np.array(self.origin)) @ np.array(self.axes).T / np.array(self.spacing))

    def image(self, array: np.ndarray) -> sitk.Image:
        """An array (z, y, x) of this grid's size as an image."""
        image = sitk.GetImageFromArray(array)
        self.place(image)
        return image

    def place(self, image: sitk.Image) -> None:
        """Give an image of this grid's size its geometry."""
        image.SetOrigin(self.origin)
        image.SetSpacing(self.spacing)
        image.SetDirection(np.array(self.axes).T.ravel().tolist())


def one_of_each(slices: Iterable[Slice]) -> tuple[list[Slice], int]:
    """Slices without repeated instances (same UID, frame and place, in several files), and how many there were."""
    kept: list[Slice] = []
    by_instance: dict[tuple[str, int | None], list[Slice]] = {}
    repeated = 0
    for each in sorted(slices, key=lambda each: (str(each.path), each.frame or 0)):
        others = by_instance.setdefault(_instance(each), [])
        if any(_is_repeated(each, other) for other in others):
            repeated += 1
        else:
            others.append(each)
            kept.append(each)
    return kept, repeated


def sharing_an_instance(slices: Iterable[Slice]) -> int:
    """How many slices are not the only one of their instance UID and frame."""
    return sum(count for count in Counter(map(_instance, slices)).values() if count > 1)


def volumes(slices: Iterable[Slice]) -> list[tuple[tuple[str, ...], list[Slice]]]:
    """Slices of a series by orientation, size and pixel spacing, and by what tells volumes at one place apart.

    Each with what it differs by from the others, such as ``Plane=axial 512x512`` and ``EchoTime=20``.
    """
    groups: list[list[Slice]] = []
    for each in slices:
        for group in groups:
            if _same_plane(each, group[0]):
                group.append(each)
                break
        else:
            groups.append([each])
    parts: list[tuple[tuple[str, ...], list[Slice]]] = []
    for group in groups:
        plane = [_plane(group[0])] if len(groups) > 1 else []
        parts += [((*plane, *([mark] if mark else [])), part) for mark, part in _split_by_marks(group).items()]
    return parts


def mark_names(marks: Iterable[Iterable[str]]) -> list[str]:
    """The tags in the marks of volumes, without their values."""
    return list(dict.fromkeys(mark.split("=")[0] for each in marks for mark in each))


def check_no_localizer(slices: Iterable[Slice]) -> None:
    """Raise a :class:`DualCLError` for a series of several orientations with few slices in each."""
    normals: list[np.ndarray] = []
    counts: list[int] = []
    for each in slices:
        normal = np.cross(each.along_row, each.along_column)
        index = next((index for index, other in enumerate(normals) if abs(normal @ other) > _TURNED), len(normals))
        if index == len(normals):
            normals.append(normal)
            counts.append(0)
        counts[index] += 1
    if len(counts) > 1 and max(counts) < _FEW_SLICES:
        raise DualCLError(
            f"{sum(counts)} slices in {len(counts)} orientations, at most {max(counts)} in each: a localizer (scout), "
            "which is no volume"
        )


def regular_grid(slices: Sequence[Slice]) -> tuple[list[Slice], Grid]:
    """Slices of one orientation in the order of their positions along the normal, and the grid they form.

    Raises:
        DualCLError: there is a single slice, several at one position, one is missing, they are not equally far apart,
            or not above one another (gantry tilt).
    """
    first = slices[0]
    if len(slices) < 2:
        raise DualCLError("a single slice, which is no volume. Was the rest of the series exported?")
    normal = np.cross(first.along_row, first.along_column)
    positions = np.array([each.position for each in slices])
    order = np.argsort(positions @ normal, kind="stable")
    ordered, positions = [slices[index] for index in order], positions[order]
    heights = (positions - positions[0]) @ normal
    gaps = np.diff(heights)
    repeated = int((gaps < _SAME_PLACE_MM).sum())
    if repeated:
        lie = "1 slice lies" if repeated == 1 else f"{repeated} slices lie"
        raise DualCLError(
            f"{lie} at the position of another one, and no tag that is known here tells them apart: several phases, "
            "echoes or reconstructions in one series? Export them as one series each."
        )
    _check_gaps(gaps, heights)
    sideways = positions - positions[0] - np.outer(heights, normal)
    if np.linalg.norm(sideways, axis=1).max() > OFF_GRID * min(first.spacing_xy):
        angle = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), heights[-1]))
        raise DualCLError(
            f"the slices are not above one another ({angle:.1f} degrees): gantry tilt. A voxel grid has right angles; "
            "reformat the series without tilt on the scanner or workstation and export it again."
        )
    return ordered, Grid(
        origin=_vector(positions[0]),
        axes=(first.along_row, first.along_column, _vector(normal)),
        spacing=(*first.spacing_xy, float(heights[-1] / (len(ordered) - 1))),
        size=(*first.size_xy, len(ordered)),
    )


def plane_axes(orientation: Sequence[float]) -> tuple[Vector, Vector]:
    """Unit vectors along a row and along a column, at right angles, out of the six numbers of a header.

    Raises:
        DualCLError: they are no such numbers.
    """
    numbers = np.array([float(number) for number in orientation])
    if numbers.shape != (6,) or not np.isfinite(numbers).all():
        raise DualCLError("its header states no proper orientation")
    row, column = numbers[:3], numbers[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(row @ column) > 0.01:
        raise DualCLError("its header states directions that are not of length 1 or not at right angles")
    row = row / lengths[0]
    column = column - (column @ row) * row
    return _vector(row), _vector(column / np.linalg.norm(column))


def same_direction(first: Vector, second: Vector) -> bool:
    """Do two unit vectors point the same way?"""
    return bool(np.abs(np.subtract(first, second)).max() < _PARALLEL)


def _check_gaps(gaps: np.ndarray, heights: np.ndarray) -> None:
    usual = float(np.median(gaps))
    steps = np.round(gaps / usual)
    if np.abs(gaps / usual - steps).max() <= OFF_GRID and steps.max() > 1:
        at = int(np.argmax(steps))
        count = int(steps.sum()) - len(gaps)
        missing = "1 slice is missing," if count == 1 else f"{count} slices are missing, the first of them"
        raise DualCLError(
            f"{missing} after slice "
            f"{int(np.argmax(steps > 1)) + 1} of {len(heights)} (a gap of {gaps[at]:.4g} mm, the others are "
            f"{usual:.4g} mm). Export the whole series again."
        )
    expected = heights[-1] / len(gaps)
    if np.abs(heights - expected * np.arange(len(heights))).max() > OFF_GRID * expected:
        raise DualCLError(
            f"the slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart; a volume needs equal distances. Export a "
            "reconstruction with one slice distance, or resample the series on the workstation."
        )


def _instance(each: Slice) -> tuple[str, int | None]:
    return each.uid or str(each.path), each.frame


def _is_repeated(first: Slice, second: Slice) -> bool:
    return math.dist(first.position, second.position) < _SAME_PLACE_MM and _same_plane(first, second)


def _same_plane(first: Slice, second: Slice) -> bool:
    return (
        first.size_xy == second.size_xy
        and bool(np.allclose(first.spacing_xy, second.spacing_xy, rtol=1e-3))
        and same_direction(first.along_row, second.along_row)
        and same_direction(first.along_column, second.along_column)
    )


def _plane(each: Slice) -> str:
    across = np.abs(np.cross(each.along_row, each.along_column))
    return f"Plane={('sagittal', 'coronal', 'axial')[int(np.argmax(across))]} {each.size_xy[0]}x{each.size_xy[1]}"


def _split_by_marks(slices: list[Slice]) -> dict[str, list[Slice]]:
    """Where slices share positions: the parts by a mark that leaves no shared position within a part; else one, "".

    The one that gives the fewest parts, all of them regular grids; else the first. A mark that gives parts of one slice
    numbers slices, not volumes.
    """
    if not _share_a_place(slices):
        return {"": slices}
    found: list[dict[str, list[Slice]]] = []
    for index in range(len(slices[0].marks)):
        parts: dict[str, list[Slice]] = {}
        for each in slices:
            parts.setdefault(each.marks[index], []).append(each)
        if len(parts) > 1 and all(len(part) > 1 and not _share_a_place(part) for part in parts.values()):
            found.append(dict(sorted(parts.items())))
    whole = [parts for parts in found if all(_is_regular(part) for part in parts.values())]
    return min(whole, key=len) if whole else found[0] if found else {"": slices}


def _is_regular(slices: list[Slice]) -> bool:
    try:
        regular_grid(slices)
    except DualCLError:
        return False
    return True


def _share_a_place(slices: list[Slice]) -> bool:
    normal = np.cross(slices[0].along_row, slices[0].along_column)
    heights = np.sort([np.dot(each.position, normal) for each in slices])
    return bool((np.diff(heights) < _SAME_PLACE_MM).any())


def _vector(array: np.ndarray) -> Vector:
    return float(array[0]), float(array[1]), float(array[2])
