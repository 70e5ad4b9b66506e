from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence
from synthetic_dicom import as_other_instances, box, image_item, save, write_rtstruct, write_seg, write_series

from nnunet_dualcl.dataset_conversion.dicom.belonging import owner
from nnunet_dualcl.dataset_conversion.dicom.scan import scan
from nnunet_dualcl.errors import DualCLError

ORGAN = {"organ": [box((1, 1), (4, 3), height) for height in (1, 2)]}
LOST = "belongs nowhere"


def echoes(folder: Path, heights: tuple[float, ...] = (0, 1, 2, 3)) -> list[list[Path]]:
    """Two volumes at one place in one series, the second at these heights."""
    first = write_series(folder / "1", "MR", series="echoes", tags={"EchoTime": 10})
    second = write_series(folder / "2", "MR", series="echoes", tags={"EchoTime": 20}, heights=heights)
    return [first, as_other_instances(second, "2")]


def description(folder: Path) -> str:
    """Of the series that the only segmentation below a folder belongs to."""
    export = scan(folder)
    (segmentation,) = export.segmentations
    return owner(segmentation, export)[0].description.split(" of ")[0]


def test_the_named_series_among_several_of_one_frame(tmp_path: Path) -> None:
    write_series(tmp_path, series="first")
    named = write_series(tmp_path, series="second")
    write_rtstruct(tmp_path / "rs", ORGAN, refers_to=named[0])
    assert description(tmp_path) == "second"


def test_without_a_reference_the_frame_of_reference_decides(tmp_path: Path) -> None:
    write_series(tmp_path, series="other", frame=LOST)
    write_series(tmp_path, series="own")
    write_rtstruct(tmp_path / "rs", ORGAN)
    assert description(tmp_path) == "own"


def test_then_position_does(tmp_path: Path) -> None:
    """Nothing matches but the study; the contours lie on the slices of one series alone."""
    write_series(tmp_path, series="between", heights=(0.5, 1.5, 2.5))
    write_series(tmp_path, series="short", heights=(-2, -1, 0, 1))
    write_series(tmp_path, series="fitting")
    write_rtstruct(tmp_path / "rs", ORGAN, frame=LOST)
    assert description(tmp_path) == "fitting"


@pytest.mark.parametrize("height", [3.4, 30])
@pytest.mark.parametrize(("kind", "corners"), [("POINT", 1), ("OPEN_PLANAR", 4), ("CLOSED_PLANAR", 2)])
def test_what_encloses_nothing_may_lie_anywhere(tmp_path: Path, kind: str, corners: int, height: float) -> None:
    """An isocenter between slices or off the volume, for one."""
    write_series(tmp_path, series="other", heights=(0.5, 1.5, 2.5))
    write_series(tmp_path, series="own")
    path = write_rtstruct(tmp_path / "rs", {**ORGAN, "mark": [box((1, 1), (4, 3), height)[:corners]]}, frame=LOST)
    item = pydicom.dcmread(path)
    item.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = kind
    item.save_as(path)
    assert description(tmp_path) == "own"


def test_a_tie_is_refused(tmp_path: Path) -> None:
    for series in ("one", "two"):
        write_series(tmp_path, series=series)
    write_rtstruct(tmp_path / "rs", ORGAN)
    with pytest.raises(DualCLError, match="by position 2 of 2 come into question"):
        description(tmp_path)


def test_the_part_of_a_series_that_the_contours_lie_on(tmp_path: Path) -> None:
    named = write_series(tmp_path / "a", heights=range(10))
    turned = write_series(tmp_path / "b", heights=(0, 1, 2), orientation=(0.8, 0.6, 0, 0, 0, 1))
    as_other_instances(turned, "turned")
    write_rtstruct(tmp_path / "rs", ORGAN, refers_to=named[0])
    export = scan(tmp_path)
    assert len(owner(export.segmentations[0], export)[0].slices) == 10


def test_parts_of_a_series_of_which_all_slices_have_one_instance_uid(tmp_path: Path) -> None:
    images = write_series(tmp_path / "a", heights=range(10))
    images += write_series(tmp_path / "b", heights=(0, 1, 2), orientation=(0.8, 0.6, 0, 0, 0, 1))
    for path in images:
        item = pydicom.dcmread(path)
        item.SOPInstanceUID = "1.2.3"
        save(item, path.parent, path.name)
    write_rtstruct(tmp_path / "rs", ORGAN, refers_to=images[0], drawn_on=images)
    export = scan(tmp_path)
    assert sorted(len(each.slices) for each in export.series) == [3, 10]
    assert len(owner(export.segmentations[0], export)[0].slices) == 10


def test_a_series_that_was_left_out_takes_its_segmentation_along(tmp_path: Path) -> None:
    write_series(tmp_path, series="good")
    tilted = write_series(tmp_path, series="tilted", tilt_mm=1)
    write_rtstruct(tmp_path / "rs", ORGAN, refers_to=tilted[0])
    with pytest.raises(DualCLError, match="that was left out"):
        description(tmp_path)


def test_another_patients_series_is_out_of_the_question(tmp_path: Path) -> None:
    write_series(tmp_path, patient="somebody else")
    write_rtstruct(tmp_path / "rs", ORGAN)
    with pytest.raises(DualCLError, match="not among the files"):
        description(tmp_path)


@pytest.mark.parametrize("kind", ["contours", "list", "SEG"])
@pytest.mark.parametrize("echo", [0, 1])
def test_the_volume_of_a_series_of_which_the_images_are_named(tmp_path: Path, kind: str, echo: int) -> None:
    images = echoes(tmp_path)[echo]
    if kind == "SEG":
        write_seg(tmp_path / "seg", images, np.ones((4, 5, 7), np.uint8))
    else:
        drawn_on = images if kind == "contours" else []
        path = write_rtstruct(tmp_path / "rs", ORGAN, refers_to=images[0], drawn_on=drawn_on)
        item = pydicom.dcmread(path)
        (study,) = item.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
        study.RTReferencedSeriesSequence[0].ContourImageSequence = Sequence(
            [image_item(each) for each in (images if kind == "list" else [*images, *tmp_path.glob("?/*")])]
        )
        item.save_as(path)
    export = scan(tmp_path)
    series, doubt = owner(export.segmentations[0], export)
    assert series.marks == (("EchoTime=10",), ("EchoTime=20",))[echo]
    assert doubt == ""


def test_volumes_of_a_series_that_nothing_tells_apart(tmp_path: Path) -> None:
    write_rtstruct(tmp_path / "rs", ORGAN, refers_to=echoes(tmp_path)[1][0])
    export = scan(tmp_path)
    (segmentation,) = export.segmentations
    with pytest.raises(DualCLError, match=r"a series of 2 volumes, which differ in EchoTime; 2 .*='EchoTime=VALUE\$'"):
        owner(segmentation, export)
    with pytest.raises(DualCLError, match="2 of them come into question"):
        owner(segmentation, export, dict.fromkeys(export.series, 0))
    first, second = export.series
    assert owner(segmentation, export, {first: None, second: 0})[0] is second
    series, doubt = owner(segmentation, export, {first: 1, second: 0})
    assert series is second
    assert doubt == "names a series of 2 volumes, which differ in EchoTime"


def test_a_volume_that_was_left_out_does_not_give_its_segmentation_to_another_one(tmp_path: Path) -> None:
    images = echoes(tmp_path, heights=(0, 1, 2, 4))[1]
    write_rtstruct(tmp_path / "rs", ORGAN, refers_to=images[0], drawn_on=images)
    with pytest.raises(DualCLError, match="belongs to a part of a series that was left out"):
        description(tmp_path)


def test_a_damaged_object_is_a_fault_of_its_own(tmp_path: Path) -> None:
    path = write_rtstruct(tmp_path / "rs", ORGAN, refers_to=echoes(tmp_path)[1][0])
    item = pydicom.dcmread(path)
    item.ROIContourSequence[0].ContourSequence[0].ContourData = [1, 2]
    item.save_as(path)
    with pytest.raises(DualCLError, match="contour coordinates are damaged"):
        description(tmp_path)
