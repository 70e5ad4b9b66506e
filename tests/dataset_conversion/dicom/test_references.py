from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pydicom
from synthetic_dicom import box, write_rtstruct, write_series

from nnunet_dualcl.dataset_conversion.dicom.references import is_named, named_images
from nnunet_dualcl.dataset_conversion.dicom.scan import scan


def test_frames_of_one_file_are_told_apart(tmp_path: Path) -> None:
    images = write_series(tmp_path)
    contours = {"organ": [box((1, 1), (4, 3), height) for height in (1, 2)]}
    path = write_rtstruct(tmp_path / "rs", contours, drawn_on=images)
    item = pydicom.dcmread(path)
    first, second = item.ROIContourSequence[0].ContourSequence
    first.ContourImageSequence[0].ReferencedFrameNumber = 3
    second.ContourImageSequence[0].ReferencedFrameNumber = [1, 2]
    item.save_as(path)
    export = scan(tmp_path)
    named = named_images(export.segmentations[0])
    slices = export.series[0].slices
    frames = [[frame for frame in (None, 0, 1, 2, 3) if is_named(replace(each, frame=frame), named)] for each in slices]
    assert frames == [[], [2], [0, 1], []]


def test_a_segmentation_that_names_no_image(tmp_path: Path) -> None:
    write_rtstruct(tmp_path / "rs", {"organ": [box((1, 1), (4, 3), 1)]}, refers_to=write_series(tmp_path)[0])
    assert named_images(scan(tmp_path).segmentations[0]) == frozenset()
