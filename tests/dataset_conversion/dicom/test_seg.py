from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from synthetic_dicom import COLUMN, GAP, ROW, at, write_seg, write_series

from nnunet_dualcl.dataset_conversion.dicom.scan import Series, scan
from nnunet_dualcl.dataset_conversion.dicom.seg import segment_labels
from nnunet_dualcl.errors import DualCLError


def overlapping() -> np.ndarray:
    """Two segments (z, y, x, segment) on 4 slices of 5 x 7, a width that is no multiple of 8; they share 2 voxels."""
    mask = np.zeros((4, 5, 7, 2), np.uint8)
    mask[1:3, 1:3, 1:4, 0] = 1
    mask[2, 2:4, 2:6, 1] = 1
    return mask


def write_case(folder: Path, mask: np.ndarray, **options: Any) -> tuple[Path, Series]:
    images = write_series(folder)
    path = write_seg(folder / "seg", images, mask, **options)
    (series,) = scan(folder).series
    return path, series


def test_the_label_named_first_keeps_contested_voxels(tmp_path: Path) -> None:
    mask = overlapping()
    path, series = write_case(tmp_path, mask, names=("liver", "tumor"))
    labels, grid, notes = segment_labels(path, {1: 2, 2: 1}, series.grid, threshold=0.5)
    np.testing.assert_array_equal(labels, np.where(mask[..., 1], 1, 2 * mask[..., 0]))
    assert grid == series.grid
    assert notes == ["2 voxels are of several segments; the one named first has them"]
    alone, _, notes = segment_labels(path, {1: 1}, series.grid, threshold=0.5)
    np.testing.assert_array_equal(alone, mask[..., 0])
    assert notes == []


def test_fractions_are_cut_at_the_threshold(tmp_path: Path) -> None:
    mask = np.zeros((4, 5, 7), np.float32)
    mask[1, 2, 1:5] = 0.2, 0.4, 0.6, 1
    path, series = write_case(tmp_path, mask, kind="FRACTIONAL")
    for threshold, count in ((0.5, 2), (0.3, 3), (1, 1)):
        labels, _, notes = segment_labels(path, {1: 1}, series.grid, threshold=threshold)
        assert int(labels.sum()) == count
        assert f"cut at {threshold:g}" in notes[0]


def test_a_labelmap(tmp_path: Path) -> None:
    mask = np.zeros((4, 5, 7), np.uint8)
    mask[1, 1:3, 1:4], mask[2, 2, 5] = 1, 2
    path, series = write_case(tmp_path, mask, kind="LABELMAP", names=("liver", "tumor"))
    assert [each.structures for each in scan(tmp_path).segmentations] == [
        {1: ("liver", "Organ"), 2: ("tumor", "Organ")}
    ]
    labels, _, _ = segment_labels(path, {1: 2, 2: 1}, series.grid, threshold=0.5)
    np.testing.assert_array_equal(labels, np.array([0, 2, 1])[mask])


def test_frames_in_any_order_are_placed_by_position(tmp_path: Path) -> None:
    mask = np.zeros((4, 5, 7), np.uint8)
    mask[0, 0, 0], mask[1, 1, :3], mask[3, 2:4, 5:] = 1, 1, 1
    images = write_series(tmp_path)
    path = write_seg(tmp_path / "seg", images[::-1], mask[::-1])
    (series,) = scan(tmp_path).series
    np.testing.assert_array_equal(segment_labels(path, {1: 1}, series.grid, threshold=0.5)[0], mask)


def test_a_cropped_segmentation_is_placed_where_it_was(tmp_path: Path) -> None:
    mask = overlapping()[..., 0]
    path, series = write_case(tmp_path, mask)
    moved = pydicom.dcmread(path)
    for frame, height in zip(moved.PerFrameFunctionalGroupsSequence, (1, 2), strict=True):
        frame.PlanePositionSequence[0].ImagePositionPatient = at(-1, 0, height)
    moved.save_as(path)
    labels, grid, _ = segment_labels(path, {1: 1}, series.grid, threshold=0.5)
    assert grid != series.grid  # sticks out to the left, so it stays on a grid of its own
    assert grid.size == (7, 5, 2)
    np.testing.assert_array_equal(labels, mask[1:3])
    assert grid.origin == pytest.approx(at(-1, 0, 1), abs=1e-4)


def test_another_grid_stays_its_own(tmp_path: Path) -> None:
    path, series = write_case(tmp_path, overlapping()[..., 0])
    coarse = pydicom.dcmread(path)
    coarse.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [3.0, 3.0]
    coarse.save_as(path)
    _, grid, _ = segment_labels(path, {1: 1}, series.grid, threshold=0.5)
    assert grid.spacing == pytest.approx((3, 3, GAP))
    assert grid.axes[:2] == (pytest.approx(ROW), pytest.approx(COLUMN))


def test_without_positions_it_is_refused(tmp_path: Path) -> None:
    path, series = write_case(tmp_path, overlapping()[..., 0])
    bare = pydicom.dcmread(path)
    for frame in bare.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    bare.save_as(path)
    with pytest.raises(DualCLError, match="states no position"):
        segment_labels(path, {1: 1}, series.grid, threshold=0.5)


def test_a_square_that_is_transposed_is_not_pasted_as_it_stands(tmp_path: Path) -> None:
    """Its corners lie on the series' grid; rows and columns change places."""
    mask = np.zeros((4, 6, 6), np.uint8)
    mask[1, 1, 2:5] = 1
    images = write_series(tmp_path / "ct", pixels=np.ones((4, 6, 6), int), tags={"PixelSpacing": [2.0, 2.0]})
    path = write_seg(tmp_path / "seg", images, mask)
    item = pydicom.dcmread(path)
    plane = item.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    plane.ImageOrientationPatient = [*COLUMN, *ROW]
    item.save_as(path)
    (series,) = scan(tmp_path / "ct").series
    labels, grid, _ = segment_labels(path, {1: 1}, series.grid, threshold=0.5)
    assert grid != series.grid
    assert int(labels.sum()) == 3


def test_thicker_slices_do_not_become_stripes(tmp_path: Path) -> None:
    mask = np.zeros((4, 5, 7), np.uint8)
    mask[0:3:2, 1, 2:5] = 1
    path, series = write_case(tmp_path, mask)
    item = pydicom.dcmread(path)
    item.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 2 * GAP
    item.save_as(path)
    labels, grid, _ = segment_labels(path, {1: 1}, series.grid, threshold=0.5)
    assert (grid.spacing[2], labels.shape[0]) == (2 * GAP, 2)


def sparse(folder: Path, slices: list[int]) -> tuple[Path, Series, np.ndarray]:
    """Frames on some of 10 slices, and no word of how far apart they are."""
    mask = np.zeros((10, 5, 7), np.uint8)
    mask[slices, 1, 2:5] = 1
    images = write_series(folder, heights=range(10))
    path = write_seg(folder / "seg", images, mask)
    item = pydicom.dcmread(path)
    del item.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    item.save_as(path)
    (series,) = scan(folder).series
    return path, series, mask


@pytest.mark.parametrize(("slices", "step"), [([2, 4, 6], 2), ([0, 3, 9], 3)])
def test_thicker_slices_are_known_by_their_distances_too(tmp_path: Path, slices: list[int], step: int) -> None:
    path, series, mask = sparse(tmp_path, slices)
    labels, grid, notes = segment_labels(path, {1: 1}, series.grid, threshold=0.5)
    assert grid.spacing[2] == pytest.approx(step * GAP)
    np.testing.assert_array_equal(labels, mask[slices[0] : slices[-1] + 1 : step])
    assert notes == [f"frames state no SpacingBetweenSlices and were taken for slices of {step * GAP:g} mm"]


@pytest.mark.parametrize("slices", [[4], [2, 4], [2, 4, 7], [1, 2, 4, 6]])
def test_frames_on_some_slices_stay_sparse(tmp_path: Path, slices: list[int]) -> None:
    path, series, mask = sparse(tmp_path, slices)
    labels, grid, notes = segment_labels(path, {1: 1}, series.grid, threshold=0.5)
    assert grid == series.grid
    np.testing.assert_array_equal(labels, mask)
    assert notes == []
