from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunet_dualcl.dataset_conversion.dicom.grid import (
    Slice,
    check_no_localizer,
    one_of_each,
    plane_axes,
    regular_grid,
    sharing_an_instance,
    volumes,
)
from nnunet_dualcl.errors import DualCLError

ROW, COLUMN, NORMAL = (0.8, 0.0, -0.6), (0.0, 1.0, 0.0), (0.6, 0.0, 0.8)


def slices(*heights: float, sideways: float = 0.0, marks: tuple[str, ...] = ()) -> list[Slice]:
    """At these heights in mm along the normal, and so many mm a mm height along the column."""
    return [
        Slice(
            path=Path(f"{index}"),
            frame=None,
            uid=f"{index}{marks}",
            position=(5 + 0.6 * height, 7.0 + sideways * height, 9 + 0.8 * height),
            along_row=ROW,
            along_column=COLUMN,
            spacing_xy=(0.5, 0.75),
            size_xy=(7, 5),
            marks=marks,
        )
        for index, height in enumerate(heights)
    ]


def test_slices_in_any_order_give_the_grid_of_their_positions() -> None:
    ordered, grid = regular_grid(slices(6, 0, 9, 3))
    assert [each.path.name for each in ordered] == ["1", "3", "0", "2"]
    assert grid.spacing == pytest.approx((0.5, 0.75, 3.0))
    assert grid.origin == (5.0, 7.0, 9.0)
    assert grid.axes[2] == pytest.approx(NORMAL)
    assert grid.size == (7, 5, 4)


def test_indices_undo_the_image_geometry() -> None:
    _, grid = regular_grid(slices(0, 3, 6))
    image = grid.image(np.zeros((3, 5, 7), np.uint8))
    points = np.array([image.TransformIndexToPhysicalPoint(index) for index in ((0, 0, 0), (6, 1, 2))])
    assert grid.indices(points) == pytest.approx(np.array([[0, 0, 0], [6, 1, 2]]), abs=1e-9)


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ((0,), "a single slice"),
        ((0, 3, 9, 12, 15), r"^1 slice is missing, after slice 2 of 5 \(a gap of 6 mm"),
        ((0, 3, 6, 10, 14), "3 to 4 mm apart"),
        ((0, 3, 3, 6), "^1 slice lies at the position of another"),
    ],
)
def test_irregular_slices_are_refused(heights: tuple[float, ...], message: str) -> None:
    with pytest.raises(DualCLError, match=message):
        regular_grid(slices(*heights))


def test_gantry_tilt_is_refused_with_its_angle_and_rounding_is_not() -> None:
    with pytest.raises(DualCLError, match=r"15\.0 degrees.*gantry tilt"):
        regular_grid(slices(0, 3, 6, 9, sideways=np.tan(np.radians(15))))
    regular_grid(slices(0, 3.2, 6, 9, sideways=0.01))


def test_axes_are_made_orthonormal_within_rounding() -> None:
    row, column = plane_axes(["0.8", "0.001", "-0.6", "0", "0.9999", "0"])
    assert np.dot(row, column) == pytest.approx(0, abs=1e-12)
    assert [np.linalg.norm(row), np.linalg.norm(column)] == pytest.approx([1, 1])


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0.5, 0.8, 0), (0, 0, 0, 0, 1, 0), (1, 0, 0), (1, 0, 0, 0, np.nan, 0)]
)
def test_axes_that_are_none(orientation: tuple[float, ...]) -> None:
    with pytest.raises(DualCLError, match="its header states"):
        plane_axes(orientation)


def test_the_same_instance_twice_is_taken_once() -> None:
    files = slices(0, 3)
    copy = replace(files[1], path=Path("z"))
    assert one_of_each([copy, *files]) == (files, 1)


def test_one_instance_uid_at_several_positions_is_several_slices() -> None:
    files = [replace(each, uid="same") for each in slices(0, 3, 6)]
    rounded = replace(files[1], path=Path("z"), position=tuple(number + 1e-4 for number in files[1].position))
    assert one_of_each([rounded, *files]) == (files, 1)
    turned = replace(files[0], path=Path("turned"), along_column=NORMAL)
    assert one_of_each([*files, turned]) == ([*files, turned], 0)
    assert [sharing_an_instance(each) for each in (files, files[:1], slices(0, 3))] == [3, 0, 0]


def test_orientations_and_phases_are_volumes_of_their_own() -> None:
    turned = [replace(each, along_column=NORMAL, along_row=ROW) for each in slices(0, 3)]
    phases = slices(0, 3, 6, marks=("", "phase=1")) + slices(0, 3, 6, marks=("", "phase=2"))
    parts = volumes([*phases[::2], *turned, *phases[1::2]])
    axial = "Plane=axial 7x5"
    assert [(marks, len(part)) for marks, part in parts] == [
        ((axial, "phase=1"), 3), ((axial, "phase=2"), 3), (("Plane=coronal 7x5",), 2),
    ]  # fmt: skip
    assert all(len({each.marks for each in part}) == 1 for _, part in parts)


def test_marks_that_number_slices_do_not_split() -> None:
    numbered = [replace(each, marks=(str(index),)) for index, each in enumerate(slices(0, 0, 3, 3))]
    assert len(volumes(numbered)) == 1


def test_marks_do_not_split_what_lies_apart() -> None:
    assert len(volumes(slices(0, 3, marks=("a",)) + slices(6, 9, marks=("b",)))) == 1


def test_few_slices_in_each_of_several_orientations_are_a_localizer() -> None:
    turned = [replace(each, along_column=NORMAL) for each in slices(0, 3)]
    with pytest.raises(DualCLError, match=r"^5 slices in 2 orientations, at most 3 in each: a localizer"):
        check_no_localizer([*slices(0, 3, 6), *turned])
    check_no_localizer([*slices(*range(10)), *turned])
    check_no_localizer(slices(0, 3))
    drifting = [replace(each, along_column=(0.1 * 0.6, 0.995, 0.1 * 0.8)) for each in slices(0, 3)]
    check_no_localizer([*slices(6, 9), *drifting])
