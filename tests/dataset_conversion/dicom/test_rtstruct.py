from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_dicom import at, box, write_rtstruct, write_series

from nnunet_dualcl.dataset_conversion.dicom.rtstruct import contour_labels, contour_points, drawn_rois, inside_polygons
from nnunet_dualcl.dataset_conversion.dicom.scan import scan
from nnunet_dualcl.errors import DualCLError

Contours = list[list[list[float]]]


def labels(
    folder: Path, rois: dict[str, Contours], *, heights: int = 5, kind: str = "CLOSED_PLANAR"
) -> tuple[np.ndarray, list[str]]:
    """ROIs as labels 1, 2, ... on an oblique series."""
    write_series(folder, heights=range(heights))
    path = write_rtstruct(folder / "structures", rois, kind=kind)
    (series,) = scan(folder).series
    return contour_labels(path, {number: number for number in range(1, len(rois) + 1)}, series.grid)


def winding_free_reference(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Even-odd by a ray to the left from every pixel center, one at a time."""
    mask = np.zeros(shape, bool)
    for row in range(shape[0]):
        for column in range(shape[1]):
            for polygon in polygons:
                for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                    if (y0 <= row) != (y1 <= row) and x0 + (row - y0) * (x1 - x0) / (y1 - y0) < column:
                        mask[row, column] ^= True
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_filling_equals_a_ray_from_every_center(seed: int) -> None:
    """Stars with crossing edges, partly outside; no corner is at a center."""
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(-4, 16, (corners, 2)) for corners in (3, 9, 20)]
    expected = winding_free_reference(polygons, (11, 13))
    assert expected.any()
    np.testing.assert_array_equal(inside_polygons(polygons, (11, 13)), expected)


def test_a_border_through_centers_has_one_side() -> None:
    """Neighbors that share a border share no pixel, and leave none out."""
    square = np.array([[1.0, 1], [4, 1], [4, 3], [1, 3]])
    left, right = (inside_polygons([square + shift], (5, 9)) for shift in ([0, 0], [3, 0]))
    assert not (left & right).any()
    np.testing.assert_array_equal(left | right, inside_polygons([square * [2, 1] - [1, 0]], (5, 9)))
    np.testing.assert_array_equal(np.argwhere(left), [[y, x] for y in (1, 2) for x in (1, 2, 3)])


def test_an_oblique_roi_with_a_hole_and_a_keyhole(tmp_path: Path) -> None:
    outer, hole = box((0.5, -0.5), (6.5, 4.5), 1), box((2.5, 1.5), (3.5, 2.5), 1)
    slit = [[x, y, 3] for x, y in ((0.5, -0.5), (6.5, -0.5), (6.5, 4.5), (0.5, 4.5), (0.5, 2.2),
            (2.5, 2.2), (2.5, 2.5), (3.5, 2.5), (3.5, 1.5), (2.5, 1.5), (2.5, 2.2), (0.5, 2.2))]  # fmt: skip
    array, notes = labels(tmp_path, {"ring": [outer, hole, box((0.5, -0.5), (6.5, 4.5), 2), slit]})
    ring = np.ones((5, 7), int)
    ring[:, 0] = 0
    full = ring.copy()
    ring[2, 3] = 0
    np.testing.assert_array_equal(array, [0 * ring, ring, full, ring, 0 * ring])
    assert notes == []


def test_the_structure_named_first_keeps_contested_voxels(tmp_path: Path) -> None:
    rois = {"small": [box((2.5, 0.5), (4.5, 2.5), 2)], "large": [box((0.5, 0.5), (5.5, 3.5), 2)]}
    array, notes = labels(tmp_path, rois)
    assert [int((array == value).sum()) for value in (1, 2)] == [4, 11]
    assert notes == ["4 voxels are of several structures; the one named first has them"]


def test_planes_go_to_the_nearest_slice_and_the_closest_wins(tmp_path: Path) -> None:
    """Contours twice as close as slices, and moved: an even-odd sum of two planes would cancel out."""
    planes = [box((0.5, 0.5), (3.5, 2.5), height) for height in (0.9, 1.4, 1.9, 2.4)]
    planes[1] = box((0.5, 0.5), (5.5, 2.5), 1.4)
    array, notes = labels(tmp_path, {"organ": planes})
    assert array.sum(axis=(1, 2)).tolist() == [0, 6, 6, 0, 0]
    assert "2 planes of contours lie between slices" in notes[0]


def test_planes_halfway_between_slices_all_go_the_same_way(tmp_path: Path) -> None:
    """Rounded coordinates put them a little above and a little below."""
    planes = [box((0.5, 0.5), (3.5, 2.5), height) for height in (0.496, 1.504, 2.5, 3.504, 4.496)]
    array, notes = labels(tmp_path, {"organ": planes}, heights=6)
    assert array.sum(axis=(1, 2)).tolist() == [6, 6, 6, 6, 6, 0]
    assert notes == ["ROI 1 (label 1): contours lie up to 0.50 slices off theirs and were moved onto them"]


def test_contours_off_their_slices_are_noted(tmp_path: Path) -> None:
    array, notes = labels(tmp_path, {"organ": [box((0.5, 0.5), (3.5, 2.5), height) for height in (1.3, 2.3)]})
    assert array.sum(axis=(1, 2)).tolist() == [0, 6, 6, 0, 0]
    assert "up to 0.30 slices off" in notes[0]


def test_contours_beyond_the_volume_and_gaps_are_noted(tmp_path: Path) -> None:
    heights = (-2, -1, 0, 1, 4, 5)
    array, notes = labels(tmp_path, {"organ": [box((0.5, 0.5), (3.5, 2.5), height) for height in heights]})
    assert array.sum(axis=(1, 2)).tolist() == [6, 6, 0, 0, 6]
    assert "3 contours are off the volume" in notes[0]
    assert "2 slices between its first and last have no contour" in notes[1]


@pytest.mark.parametrize("left_out", [[1], [1, 2, 3], [3, 7]])
def test_few_slices_that_are_left_out_stay_empty(tmp_path: Path, left_out: list[int]) -> None:
    planes = [box((0.5, 0.5), (3.5, 2.5), height) for height in range(11) if height not in left_out]
    array, notes = labels(tmp_path, {"organ": planes}, heights=11)
    assert [index for index, each in enumerate(array) if not each.any()] == left_out
    assert notes == [
        f"ROI 1 (label 1): {len(left_out)} slices between its first and last have no contour and stay empty"
    ]


@pytest.mark.parametrize("heights", [(0, 4, 9), (0, 2, 4)])
def test_slices_between_separate_lesions_are_empty_with_reason(tmp_path: Path, heights: tuple[float, ...]) -> None:
    """Each on one slice, in line with neither neighbor, though with the two of them together."""
    first, middle, last = heights
    lesions = [box((0.5, 0.5), (2.5, 2.5), first), box((4.5, 0.5), (5.5, 2.5), first)]
    lesions += [box((2.7, 0.5), (4.3, 2.5), middle), box((0.5, 0.5), (2.5, 2.5), last)]
    array, notes = labels(tmp_path, {"lesions": lesions}, heights=10)
    assert {index: int(each.sum()) for index, each in enumerate(array) if each.any()} == {first: 6, middle: 4, last: 4}
    assert notes == [
        f"ROI 1 (label 1): {last - first - 2} slices between its first and last have no contour and stay empty"
    ]


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR"])
def test_what_encloses_nothing_is_passed_over(tmp_path: Path, kind: str) -> None:
    array, notes = labels(tmp_path, {"marker": [box((0.5, 0.5), (3.5, 2.5), 1)]}, kind=kind)
    assert not array.any()
    assert "taken as absent" in notes[0]
    assert f"1 contours {kind} enclose nothing" in notes[1]


@pytest.mark.parametrize(
    ("contours", "message"),
    [
        ([box((0.5, 0.5), (3.5, 2.5), height) for height in (0, 2, 4)], "leave slices out: 2 of the 5"),
        ([box((0.5, 0.5), (3.5, 2.5), height) for height in (0, 1, 3, 5, 7, 9)], "4 of the 10"),
        ([box((shift, 0.5), (3.5 + shift, 2.5), 2 * shift) for shift in range(4)], "3 of the 7"),
        ([box((0.5, 0.5), (3.5, 2.5), 1.5 * number) for number in range(6)], "2 of the 8"),
        ([box((0.5, 0.5), (3.5, 2.5), 11)], "off the volume: they belong to another series"),
        ([[[1, 1, 0], [1, 3, 0], [1, 3, 4], [1, 1, 4]]], "lie across the slices"),
    ],
)
def test_contours_that_would_teach_nonsense_are_refused(tmp_path: Path, contours: Contours, message: str) -> None:
    with pytest.raises(DualCLError, match=message):
        labels(tmp_path, {"organ": contours}, heights=10)


def test_the_first_points_tell_where_contours_are(tmp_path: Path) -> None:
    path = write_rtstruct(tmp_path / "s", {"a": [box((1, 2), (3, 4), 0)], "b": [box((2, 2), (3, 4), 3)]})
    assert contour_points(path) == pytest.approx(np.array([at(1, 2, 0), at(2, 2, 3)]), abs=1e-5)


@pytest.mark.parametrize(("kind", "drawn"), [("CLOSED_PLANAR", {1}), ("CLOSEDPLANAR_XOR", {1}), ("OPEN_PLANAR", set())])
def test_rois_that_enclose_something(tmp_path: Path, kind: str, drawn: set[int]) -> None:
    line = box((1, 2), (3, 4), 0)[:2]
    rois = {"organ": [line, box((1, 2), (3, 4), 0)], "line": [line], "nothing": []}
    assert drawn_rois(write_rtstruct(tmp_path / "s", rois, kind=kind)) == drawn


@pytest.mark.parametrize("again", ["the same", "from another corner", "backwards", "closed"])
def test_a_contour_that_is_there_twice_is_no_hole(tmp_path: Path, again: str) -> None:
    square = [*box((1, 1), (5, 3), 2), [0.5, 2, 2]]
    drawn = {
        "the same": square,
        "from another corner": square[2:] + square[:2],
        "backwards": square[::-1],
        "closed": square + square[:1],
    }
    once, _ = labels(tmp_path / "1", {"a": [square]})
    twice, notes = labels(tmp_path / "2", {"a": [square, drawn[again]]})
    assert once.any()
    np.testing.assert_array_equal(once, twice)
    assert any("1 contours are there twice" in note for note in notes)


def test_contours_with_the_same_corners_and_other_edges_are_two(tmp_path: Path) -> None:
    square = box((0.5, 0.5), (4.5, 3.5), 2)
    array, notes = labels(tmp_path, {"a": [square, [square[index] for index in (0, 2, 1, 3)]]})
    assert notes == []
    assert 0 < array.astype(bool).sum() < 12


def test_order_of_labels_and_not_of_rois_decides_who_keeps_a_voxel(tmp_path: Path) -> None:
    write_series(tmp_path, heights=range(4))
    path = write_rtstruct(tmp_path / "rs", {"a": [box((1, 1), (5, 3), 2)], "b": [box((1, 1), (5, 3), 2)]})
    (series,) = scan(tmp_path).series
    for values in ({1: 1, 2: 2}, {1: 2, 2: 1}):
        assert set(np.unique(contour_labels(path, values, series.grid)[0])) == {0, 1}
