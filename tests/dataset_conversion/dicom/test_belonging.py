from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_dicom import as_other_instances, box, write_rtstruct, write_series

from nnunet_dualcl.dataset_conversion.dicom.belonging import owner
from nnunet_dualcl.dataset_conversion.dicom.scan import scan
from nnunet_dualcl.errors import DualCLError

ORGAN = {"organ": [box((1, 1), (4, 3), height) for height in (1, 2)]}
LOST = "belongs nowhere"


def description(folder: Path) -> str:
    """Of the series that the only segmentation below a folder belongs to."""
    export = scan(folder)
    (segmentation,) = export.segmentations
    return owner(segmentation, export).description.split(" of ")[0]


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
    assert len(owner(export.segmentations[0], export).slices) == 10


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
