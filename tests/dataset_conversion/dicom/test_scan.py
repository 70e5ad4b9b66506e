from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from synthetic_dicom import COLUMN, ROW, as_other_instances, at, base, box, save, write_rtstruct, write_series

from nnunet_dualcl.dataset_conversion.dicom.belonging import owner
from nnunet_dualcl.dataset_conversion.dicom.scan import scan
from nnunet_dualcl.errors import DualCLError

TURNED = (*ROW, 0.0, 0.0, 1.0)


def reasons(folder: Path) -> str:
    export = scan(folder)
    return "\n".join(f"{where}: {reason}" for where, reason in (*export.refused, *export.damaged))


def test_an_unsorted_export_with_foreign_files(tmp_path: Path) -> None:
    write_series(tmp_path, "CT", series="one", patient="b")
    write_series(tmp_path, "MR", series="two", patient="a", heights=range(6))
    write_series(tmp_path / "deeper", "PT", series="three", patient="b")
    write_rtstruct(tmp_path / "plan", {"Leber": []}, patient="b")
    (tmp_path / "readme.txt").write_text("no DICOM")
    (tmp_path / "empty").touch()
    (tmp_path / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM\x02\x00")
    export = scan(tmp_path)
    assert sorted((each.modality, export.patients[each.patient], len(each.slices)) for each in export.series) == [
        ("CT", 2, 4), ("MR", 1, 6), ("PT", 2, 4),
    ]  # fmt: skip
    assert [each.structures for each in export.segmentations] == [{1: ("Leber",)}]
    assert export.notes == ["2 files are not DICOM and were passed over"]
    assert export.refused == []
    assert export.damaged_files == [tmp_path / "cut.dcm"]
    assert "1 DICOM file(s) that cannot be read" in export.damaged[0][1]


def test_what_lies_in_an_archive_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "p2.ZIP").write_bytes(b"PK")
    with pytest.raises(DualCLError, match=r"none of 1 files is DICOM\. Unpack 1 archive\(s\) \(\.ZIP\)\."):
        scan(tmp_path)
    write_series(tmp_path, "CT")
    export = scan(tmp_path)
    assert export.damaged == [
        ("the export", "1 archive(s) (.ZIP): what they hold is missing here. Unpack them; --dry-run names them")
    ]
    assert export.archives == [tmp_path / "p2.ZIP"]
    assert export.notes == []


def test_a_series_that_is_left_out_can_be_found(tmp_path: Path) -> None:
    write_series(tmp_path / "whole", "CT", series="one", patient="a")
    write_series(tmp_path / "some where", "CT", series="two", patient="b", heights=[0, 1, 2, 4, 5])
    export = scan(tmp_path)
    assert len(export.refused) == 1
    assert export.refused_in == {"series 1 of patient 2": tmp_path / "some where"}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_structure_set_that_is_cut_off_never_passes_for_none(tmp_path: Path, share: float) -> None:
    """Its patient would silently become an unlabeled one."""
    write_series(tmp_path)
    square = [[[-5, -5, 0], [5, -5, 0], [5, 5, 0], [-5, 5, 0]]]
    path = write_rtstruct(tmp_path / "plan", {"Leber": square, "Milz": square})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    export = scan(tmp_path)
    assert export.damaged or export.segmentations or export.refused


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "a"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[132:])
    shutil.rmtree(tmp_path / "a")
    assert len(scan(tmp_path).series[0].slices) == 4


def test_a_repeated_instance_is_noted(tmp_path: Path) -> None:
    path = write_series(tmp_path)[1]
    shutil.copyfile(path, tmp_path / "copy")
    (series,) = scan(tmp_path).series
    assert len(series.slices) == 4
    assert "1 slices were there twice" in series.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heights": (0, 1, 3, 4)}, ": 1 slice is missing, after slice 2 of 4"),
        ({"tilt_mm": 1.0}, "14.0 degrees"),
        ({"heights": (0, 0, 1, 1)}, "2 slices lie at the position of another one"),
        ({"tags": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}}, "4 x CT: a localizer"),
        ({"tags": {"SamplesPerPixel": 3}}, "4 x CT: a color image"),
        ({"tags": {"ImagePositionPatient": None}}, "4 x CT: its header lacks position"),
        ({"tags": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}}, "4 x Secondary Capture Image Storage"),
        ({"tags": {"ImageOrientationPatient": [0, 0, 0, 0, 1, 0]}}, "4 x CT: its header states directions"),
        ({"tags": {"PixelSpacing": "1.5"}}, "4 x CT: its header is damaged"),
        ({"tags": {"NumberOfFrames": 3}}, "several frames in a class for one"),
    ],
)
def test_what_is_no_volume_is_named_and_the_rest_goes_on(tmp_path: Path, options: dict, message: str) -> None:
    write_series(tmp_path, series="good", heights=(0, 1))
    write_series(tmp_path, series="odd", **options)
    assert message in reasons(tmp_path)
    assert [len(each.slices) for each in scan(tmp_path).series] == [2]


def test_orientations_in_one_series_are_volumes_of_their_own(tmp_path: Path) -> None:
    write_series(tmp_path / "a", heights=range(10))
    as_other_instances(write_series(tmp_path / "b", heights=(0, 1), orientation=TURNED), "turned")
    export = scan(tmp_path)
    assert sorted(len(each.slices) for each in export.series) == [2, 10]
    assert all("2 volumes" in each.notes[0] for each in export.series)


def test_a_localizer_that_does_not_say_so(tmp_path: Path) -> None:
    write_series(tmp_path, "MR", series="t1", heights=(0, 1, 2))
    write_series(tmp_path / "a", "MR", series="survey", heights=(0, 1, 2))
    as_other_instances(write_series(tmp_path / "b", "MR", series="survey", heights=(0, 1), orientation=TURNED), "b")
    export = scan(tmp_path)
    assert [each.description.split()[0] for each in export.series] == ["t1"]
    ((where, reason),) = export.refused
    assert where.endswith("of patient 1: MR")
    assert reason.startswith("5 slices in 2 orientations, at most 3 in each: a localizer")


def test_phases_in_one_series_are_told_apart_by_their_tag(tmp_path: Path) -> None:
    for phase in (1, 2):
        paths = write_series(tmp_path / str(phase), tags={"TemporalPositionIdentifier": phase})
        as_other_instances(paths, str(phase))
    assert [len(each.slices) for each in scan(tmp_path).series] == [4, 4]


def multi_frame(folder: Path, heights: tuple[float, ...]) -> np.ndarray:
    """An enhanced CT, its frames in the given order; returns its stored pixels."""
    pixels = np.arange(len(heights) * 35, dtype=np.uint16).reshape(len(heights), 5, 7)
    item = base("1.2.840.10008.5.1.4.1.1.2.1", "enhanced")
    item.Rows, item.Columns, item.NumberOfFrames = 5, 7, len(heights)
    item.SamplesPerPixel, item.PhotometricInterpretation, item.PixelRepresentation = 1, "MONOCHROME2", 0
    item.BitsAllocated = item.BitsStored = 16
    item.HighBit = 15
    shared, orientation, measures, values = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [*ROW, *COLUMN]
    measures.PixelSpacing = [2.0, 1.5]
    values.RescaleSlope, values.RescaleIntercept = 2, -5
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([values])
    frames = []
    for height in heights:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = at(0, 0, height)
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    item.SharedFunctionalGroupsSequence = Sequence([shared])
    item.PerFrameFunctionalGroupsSequence = Sequence(frames)
    item.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    save(item, folder, "enhanced")
    return pixels


def test_frames_of_one_file_are_slices_by_their_positions(tmp_path: Path) -> None:
    from SimpleITK import GetArrayFromImage

    from nnunet_dualcl.dataset_conversion.dicom.series import read_series

    stored = multi_frame(tmp_path, (2, 0, 1))
    (series,) = scan(tmp_path).series
    assert [each.frame for each in series.slices] == [1, 2, 0]
    image, notes = read_series(series.slices, series.grid, series.modality)
    np.testing.assert_array_equal(GetArrayFromImage(image), stored[[1, 2, 0]].astype(int) * 2 - 5)
    assert image.GetSpacing() == pytest.approx((1.5, 2.0, 4.0))
    assert notes == []


def test_patients_without_an_id_are_told_apart_by_name_and_birth(tmp_path: Path) -> None:
    write_series(tmp_path, patient="", study="1")
    write_series(tmp_path, patient="", study="2", series="other", tags={"PatientBirthDate": "19400101"})
    export = scan(tmp_path)
    assert len({each.patient for each in export.series}) == 2
    assert "2 patients have no patient ID" in export.notes[0]


def test_an_export_that_is_there_twice(tmp_path: Path) -> None:
    write_rtstruct(tmp_path / "one" / "rs", {"Leber": []}, refers_to=write_series(tmp_path / "one")[0])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    export = scan(tmp_path)
    assert [len(export.series), len(export.segmentations)] == [1, 1]


def test_structure_sets_of_one_instance_uid_that_differ_are_two(tmp_path: Path) -> None:
    """One that was edited and kept its UID; the first by path may be the older one."""
    images = write_series(tmp_path)
    first = write_rtstruct(tmp_path / "rs", {"Leber": []}, refers_to=images[0])
    item = pydicom.dcmread(first)
    item.StructureSetDate, item.StructureSetROISequence[0].ROIName = "20010101", "Milz"
    save(item, tmp_path, "rs 2")
    shutil.copyfile(tmp_path / "rs 2", tmp_path / "rs 3")
    assert [(each.path.name, each.structures[1]) for each in scan(tmp_path).segmentations] == [
        ("rs", ("Leber",)), ("rs 2", ("Milz",)),
    ]  # fmt: skip


@pytest.mark.parametrize(("shared", "number"), [((1, 2), "2"), ((0, 1, 2, 3), "4")])
def test_slices_of_one_instance_uid_are_told_apart_by_position(
    tmp_path: Path, shared: tuple[int, ...], number: str
) -> None:
    paths = write_series(tmp_path)
    for index in shared:
        item = pydicom.dcmread(paths[index])
        item.SOPInstanceUID = "1.2.3"
        save(item, tmp_path, paths[index].name)
    shutil.copyfile(paths[1], tmp_path / "copy")
    write_rtstruct(tmp_path / "rs", {"Leber": [box((1, 1), (4, 3), 2)]}, drawn_on=paths)
    export = scan(tmp_path)
    (series,) = export.series
    assert [each.path.name for each in series.slices] == [path.name for path in paths]
    assert series.notes == (
        "1 slices were there twice (same instance); one of each was taken",
        f"{number} slices share an instance UID (changed by an anonymization?) and were told apart by position",
    )
    assert owner(export.segmentations[0], export)[0] is series


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_a_damaged_number_that_is_not_needed(tmp_path: Path) -> None:
    for path in write_series(tmp_path, tags={"SeriesNumber": 1234567}):
        path.write_bytes(path.read_bytes().replace(b"1234567", b"123x567"))
    assert len(scan(tmp_path).series) == 1


def test_a_damaged_structure_set_is_named(tmp_path: Path) -> None:
    write_series(tmp_path)
    item = pydicom.dcmread(write_rtstruct(tmp_path / "rs", {"Leber": []}))
    del item.StructureSetROISequence[0].ROINumber
    item.save_as(tmp_path / "rs")
    assert "1 x RTSTRUCT without structures, or damaged" in reasons(tmp_path)


def test_a_folder_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DualCLError, match="none of 1 files is DICOM"):
        scan(tmp_path)
