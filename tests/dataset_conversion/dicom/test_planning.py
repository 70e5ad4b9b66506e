from __future__ import annotations

import argparse
import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from synthetic_dicom import (
    DATE,
    NAME,
    PATIENT,
    SPACING_YX,
    as_other_instances,
    box,
    values,
    write_rtstruct,
    write_seg,
    write_series,
)  # fmt: skip

from nnunet_dualcl.dataset_conversion import dicom
from nnunet_dualcl.dataset_conversion.plan import Options, Role
from nnunet_dualcl.errors import DualCLError

LABELS = {"liver": "leber|liver", "tumor": "läsion.*"}


def organ(*heights: float) -> list[list[list[float]]]:
    return [box((0.5, 0.5), (4.5, 2.5), height) for height in heights]


def ct_with_contours(folder: Path, rois: dict[str, Any] | None = None, **belongs_to: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, str(belongs_to)))
    images = write_series(folder, pixels=values(4, seed), **belongs_to)
    rois = rois or {"Leber": organ(1, 2), "Läsion 1": [box((1.5, 0.5), (2.5, 1.5), 1)]}
    write_rtstruct(folder / "rs", rois, refers_to=images[0], **belongs_to)
    return images


def test_a_dataset_that_names_nobody(tmp_path: Path) -> None:
    """Two labeled patients, an unlabeled one, and cases that fail; nothing planted is in any output, unzipped."""
    export = tmp_path / f"{PATIENT} {NAME}"
    for number in (1, 2):
        ct_with_contours(export / str(number), patient=f"{PATIENT}-{number}")
    write_series(export / "3", patient=f"{PATIENT}-3", pixels=values(4, 9))
    damaged = ct_with_contours(export / "4", patient=f"{PATIENT}-4")
    damaged[0].write_bytes(damaged[0].read_bytes()[:-40])
    write_series(export / "5", patient=f"{PATIENT}-5", tilt_mm=1)
    target = tmp_path / "Dataset007_Liver"
    report = dicom.convert(export, target, labels=LABELS, options=Options(processes=1, folds=2))
    assert [(each.name, each.role) for each in report.records] == [
        ("case_0001", Role.LABELED), ("case_0002", Role.LABELED), ("case_0003", Role.UNLABELED),
    ]  # fmt: skip
    assert [each.reason.split(":")[0] for each in report.failed] == ["pixel data cannot be read"]
    assert ["gantry tilt" in each.reason for each in report.plan.refused] == [True]
    label = sitk.GetArrayFromImage(sitk.ReadImage(target / "labelsTr" / "case_0001.nii.gz"))
    assert np.bincount(label.ravel()).tolist() == [4 * 35 - 16, 16]  # the lesion lies in the liver, named first
    header = pydicom.dcmread(damaged[1])
    planted = [PATIENT, NAME, DATE, "Größenwahn", "Leber", "A-4711", str(export)]
    planted += [str(header[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")]
    planted += ["1.2.826.0.1.3680043.8.498"]  # pydicom's root of UIDs: of all of them
    files = [path for path in target.rglob("*") if path.is_file()]
    assert len(files) > 12
    for path in files:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for word in planted:
            for encoding in ("utf-8", "latin-1"):
                assert word.encode(encoding) not in content, (path, word)
            assert json.dumps(word)[1:-1].encode() not in content, (path, word)
        assert not any(word in str(path.relative_to(target)) for word in planted)


def test_the_same_files_in_another_order_give_the_same_plan(tmp_path: Path) -> None:
    for patient in ("b", "a"):
        ct_with_contours(tmp_path / "one" / patient, patient=patient)
        for number, path in enumerate(sorted((tmp_path / "one" / patient).iterdir(), reverse=True)):
            (tmp_path / "two" / patient).mkdir(parents=True, exist_ok=True)
            (tmp_path / "two" / patient / f"{number}").write_bytes(path.read_bytes())
    plans = [dicom.plan(tmp_path / name, labels=LABELS) for name in ("one", "two")]
    described = [[(case.name, case.patient, case.key["patient_id"]) for case in plan.cases] for plan in plans]
    assert described[0] == described[1]
    assert [case[2] for case in described[0]] == ["a", "b"]
    scans = [[sitk.GetArrayFromImage(case.load().label) for case in plan.cases] for plan in plans]
    np.testing.assert_array_equal(scans[0], scans[1])


def test_labels_without_a_structure(tmp_path: Path) -> None:
    ct_with_contours(tmp_path / "1", {"Leber": organ(1)}, patient="1")
    ct_with_contours(tmp_path / "2", patient="2")
    ct_with_contours(tmp_path / "3", {"Herz": organ(1)}, patient="3")
    cases = dicom.plan(tmp_path, labels=LABELS).cases
    assert [case.role for case in cases] == [Role.LABELED, Role.LABELED, Role.UNLABELED]
    assert "no structure for tumor: taken as absent" in cases[0].load().notes
    cases = dicom.plan(tmp_path, labels=LABELS, require_all_labels=True).cases
    assert [case.role for case in cases] == [Role.UNLABELED, Role.LABELED, Role.UNLABELED]
    scan = cases[0].load()
    assert scan.label is None
    assert "unlabeled: no structure for tumor" in scan.notes


@pytest.mark.parametrize("pattern", ["^site-b", "held/b"])
def test_test_patients_by_identifier_or_folder(tmp_path: Path, pattern: str) -> None:
    ct_with_contours(tmp_path / "in" / "kept" / "a", patient="Site-A-1")
    ct_with_contours(tmp_path / "in" / "Held" / "b", patient="Site-B-1")
    write_series(tmp_path / "in" / "more", patient="Site-B-1", series="thin", pixels=values(4, 5))
    target = tmp_path / "Dataset007_Liver"
    report = dicom.convert(tmp_path / "in", target, labels=LABELS, test=pattern)
    assert [(each.patient, each.role.value) for each in report.records] == [
        ("patient_0001", "labeled"), ("patient_0002", "test"), ("patient_0002", "test"),
    ]  # fmt: skip
    written = {folder: len(list((target / folder).glob("*"))) for folder in ("imagesTr", "imagesTs", "labelsTs")}
    assert written == {"imagesTr": 1, "imagesTs": 2, "labelsTs": 1}


def test_a_test_pattern_that_meets_nobody_or_everybody(tmp_path: Path) -> None:
    ct_with_contours(tmp_path / "a", patient="Site-A-1")
    ct_with_contours(tmp_path / "b", {"Leber": organ(1)}, patient="Site-B-1")
    with pytest.raises(DualCLError, match="--test 'site-c' occurs in no patient ID and in no path"):
        dicom.plan(tmp_path, labels=LABELS, test="site-c")
    # and not: no case has all labels
    with pytest.raises(DualCLError, match=r"No labeled case for training .* 1 case\(s\) are for testing"):
        dicom.convert(tmp_path, tmp_path / "Dataset007_Liver", labels=LABELS, test="site-a", require_all_labels=True)


def test_a_structure_that_was_named_and_never_drawn(tmp_path: Path) -> None:
    ct_with_contours(tmp_path, {"Leber": organ(1, 2), "Läsion": []})
    (lenient,) = dicom.plan(tmp_path, labels=LABELS).cases
    assert lenient.load().notes == ("ROI 2 (label 2) has no closed contour: taken as absent",)
    (strict,) = dicom.plan(tmp_path, labels=LABELS, require_all_labels=True).cases
    with pytest.raises(DualCLError, match="no voxel has the label 2: named and never drawn"):
        strict.load()


def test_a_segmentation_that_matches_nothing_is_noted(tmp_path: Path) -> None:
    ct_with_contours(tmp_path / "1", patient="1")
    ct_with_contours(tmp_path / "2", {"Herz": organ(1)}, patient="2")
    notes = dicom.plan(tmp_path, labels=LABELS).cases[1].load().notes
    assert notes == ("unlabeled: 1 segmentation objects, none with a structure for these labels",)


def test_objects_for_one_label_each_make_one_label_image(tmp_path: Path) -> None:
    images = write_series(tmp_path)
    liver, tumor = np.zeros((2, 4, 5, 7), np.uint8)
    liver[1:3, 1:4, 1:5], tumor[2, 3:5, 4:7] = 1, 1
    write_seg(tmp_path / "a", images, tumor, names=("Läsion",))
    write_seg(tmp_path / "b", images, liver, names=("Liver",))
    (case,) = dicom.plan(tmp_path, labels=LABELS).cases
    scan = case.load()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(scan.label), np.where(liver, 1, 2 * tumor))
    assert scan.notes == ("1 voxels are of several objects; the label named first has them",)


def test_channels_of_one_frame_of_reference(tmp_path: Path) -> None:
    for patient, frame in (("1", ""), ("2", "moved")):
        ct_with_contours(tmp_path / patient, patient=patient)
        write_series(tmp_path / patient, "PT", heights=(0, 2), series="pet ct", patient=patient, frame=frame)
    plan = dicom.plan(tmp_path, labels=LABELS, channels={"CT": "CT", "PET": "PT"})
    assert plan.channels == ("CT", "PET")
    (case,) = plan.cases
    assert case.patient == "patient_0001"
    assert len(pickle.loads(pickle.dumps(case.load))().channels) == 2  # as it travels to a worker
    (unlabeled,), (labeled,) = plan.refused, plan.damaged
    assert unlabeled.reason.startswith("no series for the channel CT in")
    assert labeled.reason.startswith("no series for the channel PET in")  # its contours are lost, so it counts


def test_channels_that_state_no_frame_of_reference_are_noted(tmp_path: Path) -> None:
    for patient in ("1", "2"):
        images = write_series(tmp_path / patient, pixels=values(4, int(patient)), patient=patient)
        images += write_series(tmp_path / patient, "PT", series="pet ct", patient=patient)
        for path in images if patient == "1" else ():
            item = pydicom.dcmread(path)
            del item.FrameOfReferenceUID
            item.save_as(path)
    note = "its series state no frame of reference and were taken to lie in one: check in the picture that they do"
    pairs = dicom.plan(tmp_path, labels={}, channels={"CT": "CT", "PET": "PT"}).cases
    assert [note in case.load().notes for case in pairs] == [True, False]
    singles = dicom.plan(tmp_path, labels={}, channels={"CT": "CT"}).cases
    assert [note in case.load().notes for case in singles] == [False, False]


def test_a_channel_on_another_grid_is_resampled_when_asked(tmp_path: Path) -> None:
    ct_with_contours(tmp_path / "dicom")
    write_series(tmp_path / "dicom", "PT", heights=(0, 1.5, 3), series="pet")
    channels = {"CT": "CT", "PET": "PT"}
    found_by = {"labels": LABELS, "channels": channels}
    report = dicom.convert(tmp_path / "dicom", tmp_path / "Dataset001_A", options=Options(processes=1), **found_by)
    assert "--resample-channels" in report.failed[0].reason
    options = Options(processes=1, resample_channels=True)
    target = tmp_path / "Dataset002_B"
    assert not dicom.convert(tmp_path / "dicom", target, options=options, **found_by).failed
    sizes = {sitk.ReadImage(target / "imagesTr" / f"case_0001_000{index}.nii.gz").GetSize() for index in (0, 1)}
    assert sizes == {(7, 5, 4)}


def test_contours_stay_on_the_grid_they_were_drawn_on(tmp_path: Path) -> None:
    ct_with_contours(tmp_path)
    write_series(tmp_path, "PT", heights=(0, 3), series="pet")
    (case,) = dicom.plan(tmp_path, labels=LABELS, channels={"PET": "PT", "CT": "CT"}).cases
    scan = case.load()
    assert [image.GetSize()[2] for image in (*scan.channels, scan.label)] == [2, 4, 4]


def test_what_is_for_no_channel_is_said(tmp_path: Path) -> None:
    ct_with_contours(tmp_path)
    write_series(tmp_path, "MR", series="t1")
    write_rtstruct(tmp_path / "by position", {"Leber": organ(1, 2)}, patient="2", frame="lost")
    write_series(tmp_path / "2", "MR", series="t1", patient="2")
    plan = dicom.plan(tmp_path, labels={"liver": "leber"}, channels={"T1": "MR"})
    assert [(case.patient, case.role) for case in plan.cases] == [
        ("patient_0001", Role.LABELED), ("patient_0002", Role.UNLABELED),
    ]  # fmt: skip
    assert [each.reason for each in plan.refused] == ["drawn on a series that is no channel"]
    assert "taken to be drawn on series" in plan.notes[0]
    assert plan.notes[1] == "1 series are for no channel and were passed over"


def test_two_series_for_one_channel_of_several(tmp_path: Path) -> None:
    ct_with_contours(tmp_path)
    for series in ("t1 a", "t1 b"):
        write_series(tmp_path, "MR", series=series)
    with pytest.raises(DualCLError, match="several series for the channel T1"):
        dicom.plan(tmp_path, labels=LABELS, channels={"CT": "CT", "T1": "^t1"})


def test_a_volume_of_a_series_is_chosen_by_what_it_differs_by(tmp_path: Path) -> None:
    for patient in ("1", "2"):
        for echo in (10, 20):
            tags = {"EchoTime": echo}
            folder = tmp_path / f"{patient} {echo}"
            images = write_series(folder, "MR", tags=tags, pixels=values(4, echo), patient=patient)
            as_other_instances(images, str(echo))
        write_rtstruct(tmp_path / patient, {"Leber": organ(1)}, refers_to=images[0], patient=patient)
    labels = {"liver": "leber"}
    plan = dicom.plan(tmp_path, labels=labels)
    assert [each.reason.split(";")[0] for each in plan.damaged] == [
        "names a series of 2 volumes, which differ in EchoTime"
    ] * 2
    parts = [line.partition(" part 2: 'axial")[2] for line in plan.screen if " part 2: 'axial" in line]
    assert [" EchoTime=20 in " in line for line in parts] == [True, True]
    plan = dicom.plan(tmp_path, labels=labels, channels={"E2": "^axial.*EchoTime=20$"})
    assert [case.role for case in plan.cases] == [Role.LABELED] * 2
    assert "which differ in EchoTime; taken to be drawn on series" in plan.notes[0]
    expected = values(4, 20).astype(int) - 1000
    for case in plan.cases:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(case.load().channels[0]), expected)
    both = {"E2": "EchoTime=20", "E1": "EchoTime=10"}
    assert [case.role for case in dicom.plan(tmp_path, labels=labels, channels=both).cases] == [Role.LABELED] * 2
    with pytest.raises(DualCLError, match="EchoTime=10, 2 x MR 'axial"):
        dicom.plan(tmp_path, labels=labels, channels={"E3": "EchoTime=30"})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"labels": {"spleen": "milz"}}, r"label spleen. There are: Leber, Läsion 1"),
        ({"labels": LABELS, "channels": {"T2": ""}}, r"channel T2. There are: 1 x CT 'axial of"),
        ({"labels": LABELS, "structure_set": "another"}, "none of 1 segmentation objects is taken"),
        ({"labels": LABELS, "channels": {"CT": "("}}, "no regular expression"),
        ({"labels": LABELS, "threshold": 0.0}, "--threshold"),
    ],
)
def test_faults_of_the_whole(tmp_path: Path, keywords: dict[str, Any], message: str) -> None:
    ct_with_contours(tmp_path)
    with pytest.raises(DualCLError, match=message):
        dicom.plan(tmp_path, **keywords)


def test_several_modalities_ask_for_channels(tmp_path: Path) -> None:
    ct_with_contours(tmp_path)
    write_series(tmp_path, "MR", series="t1")
    with pytest.raises(DualCLError, match=r"1 x MR 't1 of .*--channel"):
        dicom.plan(tmp_path, labels=LABELS)


def test_a_structure_set_is_chosen_by_its_title(tmp_path: Path) -> None:
    images = ct_with_contours(tmp_path)
    write_rtstruct(tmp_path / "rs2", {"Leber": organ(2)}, refers_to=images[0], when="20050505", title="Automatic")
    (newest,) = dicom.plan(tmp_path, labels={"liver": "leber"}).cases
    (chosen,) = dicom.plan(tmp_path, labels={"liver": "leber"}, structure_set="^plan").cases
    slices = [sitk.GetArrayFromImage(case.load().label).any(axis=(1, 2)).tolist() for case in (newest, chosen)]
    assert slices == [[False, False, True, False], [False, True, True, False]]


@pytest.mark.parametrize("older", [False, True])
def test_a_damaged_structure_set_fails_its_case_without_names(tmp_path: Path, older: bool) -> None:
    """Nor does an older one that is whole take its place."""
    images = ct_with_contours(tmp_path) if older else write_series(tmp_path)
    path = write_rtstruct(tmp_path / "rs2", {"Leber": []}, refers_to=images[0], when="20010101")
    item = pydicom.dcmread(path)
    item.ROIContourSequence[0].ReferencedROINumber = None
    item.save_as(path)
    (case,) = dicom.plan(tmp_path, labels={"liver": "leber"}).cases
    with pytest.raises(DualCLError, match="RTSTRUCT cannot be read"):
        case.load()


def test_the_options_are_keywords_of_the_plan(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    dicom.add_arguments(parser)
    words = "--label liver=leber|liver --label spleen --channel CT=CT --threshold 0.3 --require-all-labels --test x"
    assert dicom.keywords(parser.parse_args(words.split())) == {
        "labels": {"liver": "leber|liver", "spleen": ""},
        "channels": {"CT": "CT"},
        "structure_set": None,
        "threshold": 0.3,
        "require_all_labels": True,
        "test": "x",
    }
    ct_with_contours(tmp_path)
    (case,) = dicom.plan(tmp_path, **dicom.keywords(parser.parse_args(["--label", "Leber"]))).cases
    assert case.load().label.GetSpacing()[:2] == SPACING_YX[::-1]


@pytest.mark.parametrize("heights", [(0, 1, 2, 3), (0, 1.5, 3)])
def test_labels_drawn_on_several_channels_are_put_together(tmp_path: Path, heights: tuple[float, ...]) -> None:
    ct_with_contours(tmp_path / "dicom", {"Leber": organ(1, 2)})
    pet = write_series(tmp_path / "dicom", "PT", heights=heights, pixels=values(len(heights), 5), series="pet")
    lesion = [box((3.5, 0.5), (6.5, 3.5), height) for height in heights[:2]]
    write_rtstruct(tmp_path / "dicom/rs2", {"Läsion": lesion, "leber": lesion}, refers_to=pet[0])
    found_by = {"labels": LABELS, "channels": {"CT": "CT", "PET": "PT"}}
    options = Options(processes=1, resample_channels=True, resample_labels=True)
    report = dicom.convert(tmp_path / "dicom", tmp_path / "Dataset001_A", options=options, **found_by)
    (record,) = report.records
    assert "label liver: drawn on several series, that of the channel named first was taken" in record.notes
    assert any("voxels are of several objects" in note for note in record.notes)
    assert record.voxels["liver"] == 16  # named first, so it keeps what both claim
    assert record.voxels["tumor"] >= 9
    strict = Options(processes=1, resample_channels=True)
    report = dicom.convert(tmp_path / "dicom", tmp_path / "Dataset002_B", options=strict, **found_by)
    reasons = [each.reason for each in report.failed]
    assert ["drawn on channel PET is on another grid" in reason for reason in reasons] == [True] * (len(heights) < 4)


def test_a_label_comes_from_the_channel_that_has_it_drawn(tmp_path: Path) -> None:
    ct_with_contours(tmp_path, {"Leber": [], "Läsion": organ(3)})
    pet = write_series(tmp_path, "PT", pixels=values(4, 5), series="pet")
    write_rtstruct(tmp_path / "rs2", {"Leber": organ(1, 2), "Läsion": []}, refers_to=pet[0])
    (case,) = dicom.plan(tmp_path, labels=LABELS, channels={"CT": "CT", "PET": "PT"}).cases
    scan = case.load()
    assert np.unique(sitk.GetArrayFromImage(scan.label)).tolist() == [0, 1, 2]
    assert "label liver: only named on one series, that of another channel was taken" in scan.notes


@pytest.mark.parametrize("reference", ["no channel", "left out"])
def test_a_label_that_lies_on_a_series_without_a_case_is_not_taken_as_absent(tmp_path: Path, reference: str) -> None:
    for patient in ("1", "2"):
        ct_with_contours(tmp_path / patient, {"Leber": organ(1, 2)}, patient=patient)
    other = {"modality": "MR"} if reference == "no channel" else {"tilt_mm": 1}
    images = write_series(tmp_path / "1", series="other", patient="1", **other)
    write_rtstruct(tmp_path / "1/rs2", {"Läsion": organ(1)}, refers_to=images[0], patient="1")
    plan = dicom.plan(tmp_path, labels=LABELS, channels={"CT": "CT"})
    assert [case.key["patient_id"] for case in plan.cases] == ["2"]
    reasons = [each.reason for each in plan.damaged if each.reason.startswith("lacks tumor, and series")]
    assert ["RTSTRUCT has some of it, but is drawn on none of its series" in reason for reason in reasons] == [True]
    lenient = dicom.plan(tmp_path, labels={"liver": "leber"}, channels={"CT": "CT"})
    assert [case.key["patient_id"] for case in lenient.cases] == ["1", "2"]


def test_an_export_without_segmentations_becomes_unlabeled(tmp_path: Path) -> None:
    for patient in ("1", "2"):
        write_series(tmp_path / "dicom", patient=patient, series=patient, pixels=values(4, int(patient)))
    target = tmp_path / "Dataset001_A"
    report = dicom.convert(tmp_path / "dicom", target, labels={}, options=Options(processes=1))
    assert report.exit_code == 0
    assert sorted(path.name for path in (target / "imagesUnlabeled").iterdir()) == [
        "case_0001_0000.nii.gz", "case_0002_0000.nii.gz",
    ]  # fmt: skip
    assert not (target / "dataset.json").exists()
    with pytest.raises(DualCLError, match=r"There is no RTSTRUCT or DICOM-SEG\."):
        dicom.plan(tmp_path / "dicom", labels=LABELS)


def test_without_labels_structures_are_listed_with_their_series(tmp_path: Path) -> None:
    for patient in ("1", "2"):
        images = ct_with_contours(tmp_path / patient, patient=patient)
    write_rtstruct(tmp_path / "rs2", {"Leber": organ(1), "Milz": organ(1)}, refers_to=images[0], patient="2")
    write_rtstruct(tmp_path / "rs3", {"Milz": organ(1)}, patient="3")
    with pytest.raises(DualCLError, match="Name the labels, as in --label NAME=REGEX, or take RTSTRUCT") as caught:
        dicom.plan(tmp_path, labels={})
    assert str(caught.value).splitlines()[1:] == [
        "  'Leber': 2 series",
        "  'Läsion 1': 2 series",
        "  'Milz': 1 series, and 1 x on one that is not here, left out or not to be told",
    ]


def test_a_case_whose_files_are_cut_off_is_named_before_it_is_read(tmp_path: Path) -> None:
    ct_with_contours(tmp_path / "1", patient="1")
    cut = ct_with_contours(tmp_path / "2", patient="2")[2]
    cut.write_bytes(cut.read_bytes()[:-40])
    plan = dicom.plan(tmp_path, labels=LABELS)
    assert plan.screen[-2:] == ("case_0002 would fail: 1 of 5 files cut off", f"file cut off: {cut}")
    assert [case.name for case in plan.cases] == ["case_0001", "case_0002"]


def test_labels_that_no_series_has_together_are_said_to_be_so(tmp_path: Path) -> None:
    for patient, roi in (("1", "Leber"), ("2", "Leber"), ("3", "Läsion")):
        ct_with_contours(tmp_path / patient, {roi: organ(1)}, patient=patient)
    write_rtstruct(tmp_path / "lost", {"Leber": organ(1)}, patient="4")
    with pytest.raises(DualCLError) as caught:
        dicom.plan(tmp_path, labels=LABELS, require_all_labels=True)
    assert str(caught.value).startswith(
        "--require-all-labels leaves no labeled case: it made 3 case(s) unlabeled. Not drawn there: liver in 1, tumor "
        "in 2; liver drawn on series that are no channel or left out. Without"
    )


@pytest.mark.parametrize(
    ("belongs", "reason"),
    [("missing", "its series is not among the files"), ("left out", "belongs to a series that was left out")],
)
def test_labels_that_reach_no_case_count_as_failed(tmp_path: Path, belongs: str, reason: str) -> None:
    """Their patient would silently be lost; structures that nobody asked for, and chosen channels, are no failure."""
    ct_with_contours(tmp_path / "1", patient="1")
    heights = (0, 1, 2, 4) if belongs == "left out" else (0, 1, 2, 3)
    lost = write_series(tmp_path / "2", patient="2", heights=heights)
    write_rtstruct(tmp_path / "2/rs", {"Leber": organ(1)}, refers_to=lost[0], patient="2")
    write_rtstruct(tmp_path / "2/rs2", {"Herz": organ(1)}, refers_to=lost[0], patient="2")
    if belongs == "missing":
        for path in lost:
            path.unlink()
    plan = dicom.plan(tmp_path, labels=LABELS)
    (failed,) = plan.damaged
    assert failed.where.endswith("of patient 2: RTSTRUCT")
    assert failed.reason.startswith(reason)
    assert sum(each.reason.startswith(reason) for each in plan.refused) == 1
    assert f"{failed.where} lies on no channel: {tmp_path / '2/rs'}" in plan.screen
    assert [case.key["patient_id"] for case in plan.cases] == ["1"]


def test_a_label_of_two_objects_of_one_time_counts_as_failed(tmp_path: Path) -> None:
    for patient in ("1", "2"):
        images = ct_with_contours(tmp_path / patient, patient=patient)
    write_rtstruct(tmp_path / "rs2", {"Leber": organ(1)}, refers_to=images[0], patient="2")
    plan = dicom.plan(tmp_path, labels=LABELS)
    assert ["--structure-set REGEX" in each.reason for each in plan.damaged] == [True]
    assert plan.refused == ()


def test_patients_with_a_second_series_are_told_how_to_be_validated_on(tmp_path: Path) -> None:
    for number in (1, 2):
        ct_with_contours(tmp_path / "dicom" / str(number), patient=str(number))
        write_series(tmp_path / "dicom" / str(number), series="thin", patient=str(number), pixels=values(4, number))
    found_by = {"labels": LABELS, "options": Options(processes=1)}
    report = dicom.convert(tmp_path / "dicom", tmp_path / "Dataset001_A", **found_by)
    (note,) = (note for note in report.warnings() if "val repeats train" in note)
    assert "2 of 2 labeled patients have unlabeled scans as well" in note
    assert "--channel CT=REGEX" in note
    report = dicom.convert(tmp_path / "dicom", tmp_path / "Dataset002_B", channels={"CT": "axial"}, **found_by)
    assert [len(fold["val"]) for fold in report.folds] == [1, 1]
    assert not any("unlabeled scans" in note for note in report.warnings())


@pytest.mark.parametrize(
    ("liver", "tumor", "found"),
    [("own", "other", {0, 1}), ("", "other", {0, 1, 2}), ("own", "own", {0, 1, 2}), ("other", "own", {0, 2})],
)
def test_an_roi_of_another_frame_of_reference(tmp_path: Path, liver: str, tumor: str, found: set[int]) -> None:
    """Of several frames the series' own counts; a single one is believed, be it another by its UID."""
    images = write_series(tmp_path)
    uids = {"own": str(pydicom.dcmread(images[0]).FrameOfReferenceUID), "other": "1.2.3", "": ""}
    rois = {"Leber": organ(1, 2), "Läsion": organ(3)}
    frames = {"Leber": uids[liver], "Läsion": uids[tumor]}
    write_rtstruct(tmp_path / "rs", rois, refers_to=images[0], frames=frames)
    lacking = [name for value, name in enumerate(LABELS, 1) if value not in found]
    there = {name: expression for name, expression in LABELS.items() if name not in lacking}
    plan = dicom.plan(tmp_path, labels=there)
    (case,) = plan.cases
    values = np.unique(sitk.GetArrayFromImage(case.load().label))
    assert len(values) == 1 + len(there)
    other = "structures drawn in another frame of reference than that of the series"
    assert [each.reason for each in plan.refused] == [other] * len(lacking)
    assert not plan.damaged
    if lacking:  # whether it is there, nobody can tell
        ct_with_contours(tmp_path / "2", patient="2")
        plan = dicom.plan(tmp_path, labels=LABELS)
        assert len(plan.cases) == 1
        (failed,) = plan.damaged
        assert failed.reason.startswith(f"lacks {lacking[0]}, and ")


def test_an_object_of_which_no_frame_of_reference_is_that_of_its_series(tmp_path: Path) -> None:
    images = ct_with_contours(tmp_path, patient="1")
    rois = {"Leber": organ(1, 2), "Läsion": organ(3)}
    for name, series in (("rs", images), ("rs2", write_series(tmp_path, "MR", series="t1", patient="1"))):
        frames = {"Leber": "1.2.3", "Läsion": "1.2.4"}
        write_rtstruct(tmp_path / name, rois, refers_to=series[0], frames=frames, patient="1")
    ct_with_contours(tmp_path / "2", patient="2")
    plan = dicom.plan(tmp_path, labels=LABELS, channels={"CT": "CT"})
    assert [case.role for case in plan.cases] == [Role.UNLABELED, Role.LABELED]
    assert [each.reason for each in plan.refused] == ["drawn on a series that is no channel"]
    (failed,) = plan.damaged
    assert failed.reason.startswith("its structures were drawn in 2 frames of reference, none of them that of its")
    with pytest.raises(DualCLError, match="Name the labels") as caught:
        dicom.plan(tmp_path, labels={})
    assert "'Leber': 1 series, and 2 x on one that is not here" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "when", "found", "note"),
    [
        (
            [1, 2],
            [],
            "20010101",
            [1, 2],
            "with contours was taken; a newer one has the structure without contours",
        ),
        ([1, 2], [], "20000101", [1, 2], "with contours was taken; one of the same time has the structure without"),
        ([], [3], "20000101", [3], "with contours was taken; one of the same time has the structure without contours"),
        ([], [3], "20010101", [3], "2 segmentation objects have it, the newest was taken"),
        ([1, 2], [3], "20010101", [3], "2 segmentation objects have it, the newest was taken"),
        ([], [], "20010101", [], "2 segmentation objects have it, the newest was taken"),
    ],
)
def test_an_object_that_names_a_structure_without_contours(
    tmp_path: Path, old: list[int], new: list[int], when: str, found: list[int], note: str
) -> None:
    """One that has it drawn comes first, whatever their dates."""
    images = write_series(tmp_path)
    for name, heights, date in (("rs", old, "20000101"), ("rs2", new, when)):
        rois = {"Leber": organ(*heights), "Läsion": organ(0)} if name == "rs2" else {"Leber": organ(*heights)}
        write_rtstruct(tmp_path / name, rois, refers_to=images[0], when=date)
    (case,) = dicom.plan(tmp_path, labels=LABELS).cases
    scan = case.load()
    label = sitk.GetArrayFromImage(scan.label)
    assert np.flatnonzero((label == 1).any(axis=(1, 2))).tolist() == found
    assert np.flatnonzero((label == 2).any(axis=(1, 2))).tolist() == [0]
    assert note in scan.notes[0]


@pytest.mark.parametrize("heights", [[], [1]])
def test_objects_of_one_time_that_are_drawn_alike_are_not_chosen_between(tmp_path: Path, heights: list[int]) -> None:
    images = ct_with_contours(tmp_path / "1", patient="1")
    for name in ("rs2", "rs3"):
        rois = {"Leber": organ(*heights)}
        write_rtstruct(tmp_path / name, rois, refers_to=images[0], when="20010101", patient="1")
    ct_with_contours(tmp_path / "2", patient="2")
    plan = dicom.plan(tmp_path, labels=LABELS)
    assert [case.patient for case in plan.cases] == ["patient_0001", "patient_0002"][len(heights) :]
    tie = "3 segmentation objects have the label liver, the newest two at one time"
    assert [each.reason.startswith(tie) for each in plan.damaged] == [True] * len(heights)


def test_a_segment_counts_as_drawn(tmp_path: Path) -> None:
    images = write_series(tmp_path)
    write_rtstruct(tmp_path / "rs", {"Leber": []}, refers_to=images[0], when="20990101")
    write_seg(tmp_path / "seg", images, np.ones((4, 5, 7), np.uint8))
    (case,) = dicom.plan(tmp_path, labels={"liver": "leber|liver"}).cases
    assert sitk.GetArrayFromImage(case.load().label).all()
