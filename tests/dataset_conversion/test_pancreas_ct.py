"""NIH Pancreas-CT: DICOM series with labels that tools turn over, and copies of one scan in the usual list."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import write

from nnunet_dualcl.dataset_conversion import pancreas_ct
from nnunet_dualcl.dataset_conversion.plan import Plan
from nnunet_dualcl.errors import DualCLError

SIZE_ZYX = (9, 12, 15)
SPACING = (0.8, 0.8, 1.5)
UPSIDE_DOWN = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0)
"""The archive's series: rows run to the front, slices from top to bottom."""


def pancreas() -> np.ndarray:
    """A mask in a corner of its own in y and z."""
    mask = np.zeros(SIZE_ZYX, np.uint8)
    mask[1:3, 2:5, 4:9] = 1
    return mask


def scan(seed: int = 0) -> np.ndarray:
    """Hounsfield units: fat with bone and air in it, and soft tissue where the pancreas is."""
    random = np.random.default_rng(seed)
    values = random.choice([-110, 400, -900], SIZE_ZYX)
    return np.where(pancreas() == 1, random.normal(90, 20, SIZE_ZYX), values).astype(np.int16)


def write_case(
    root: Path,
    number: str,
    label: np.ndarray | None,
    *,
    seed: int = 0,
    left_out: int | None = None,
    columns: str = "0\\-1\\0",
) -> Path:
    """A series as the archive has it, with file names in reverse order, and a label whose header is not its scan's.

    ``columns``: where they point to; with ``0\\1\\0`` the slices' numbers go down along their normal.
    """
    folder = root / f"Pancreas-CT/PANCREAS_{number}/11-24-2015/Pancreas-63502"
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, plane in enumerate(scan(seed)):
        if index == left_out:
            continue
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing(SPACING[:2])
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.{int(number)}.{index + 1}",
            "0008|0060": "CT",
            "0010|0020": f"PANCREAS_{number}",
            "0020|000d": f"1.2.3.{int(number)}",
            "0020|000e": f"1.2.3.{int(number)}.0",
            "0020|0013": str(index + 1),
            "0020|0032": f"-100\\150\\{500 - SPACING[2] * index}",
            "0020|0037": f"1\\0\\0\\{columns}",
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"1-{99 - index:03d}.dcm"))
        writer.Execute(image)
    if label is not None:
        mask = sitk.GetImageFromArray(label)
        mask.SetSpacing(SPACING)  # origin and direction are not those of the series
        write(root / f"TCIA_pancreas_labels-02-05-2017/label{number}.nii.gz", mask)
    return folder


def roles(plan: Plan) -> dict[str, str]:
    return {case.name: case.role.value for case in plan.cases}


def test_series_and_label_belong_together_voxel_by_voxel_whatever_the_headers_say(tmp_path: Path) -> None:
    write_case(tmp_path, "0057", pancreas())
    (case,) = pancreas_ct.plan(tmp_path).cases
    loaded = case.load()
    (image,) = loaded.channels
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan())
    assert image.GetDirection() == UPSIDE_DOWN
    assert image.GetSpacing() == pytest.approx(SPACING)
    assert loaded.label is not None
    np.testing.assert_array_equal(sitk.GetArrayFromImage(loaded.label), pancreas())
    assert loaded.label.GetOrigin() == image.GetOrigin()
    assert loaded.notes[0].startswith("label turned: none; label voxels from -50 to 200 HU by turn: none 100%")


def test_labels_follow_the_numbers_of_the_slices(tmp_path: Path) -> None:
    """As in code that pairs them by InstanceNumber, whichever way slices are sorted by position."""
    write_case(tmp_path, "0057", pancreas(), columns="0\\1\\0")
    (case,) = pancreas_ct.plan(tmp_path).cases
    loaded = case.load()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(loaded.channels[0]), scan()[::-1])
    assert loaded.label is not None
    np.testing.assert_array_equal(sitk.GetArrayFromImage(loaded.label), pancreas()[::-1])


@pytest.mark.parametrize(("axes", "turn"), [((1,), "y"), ((0,), "z"), ((0, 1), "yz")])
def test_a_label_that_was_turned_over_is_noticed_and_turned_back_on_demand(
    tmp_path: Path, axes: tuple[int, ...], turn: str
) -> None:
    write_case(tmp_path, "0057", np.flip(pancreas(), axes))
    (case,) = pancreas_ct.plan(tmp_path).cases
    with pytest.raises(DualCLError, match=rf"fits better turned over .* {turn} 100%.*--turn-labels {turn};"):
        case.load()
    (case,) = pancreas_ct.plan(tmp_path, turn_labels=turn).cases
    label = case.load().label
    assert label is not None
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), pancreas())


def test_a_label_stays_as_it_is_where_the_scan_does_not_tell() -> None:
    label = sitk.GetImageFromArray(pancreas())
    tissue = sitk.GetImageFromArray(np.full(SIZE_ZYX, 60, np.int16))
    fitted, note = pancreas_ct._fitted(label, tissue, None)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(fitted), pancreas())
    assert "none 100%, y 100%, z 100%, yz 100%" in note


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.roll(pancreas(), 7, axis=2), "lies on no pancreas"),
        (pancreas()[:-1], r"the label has \(15, 12, 8\) voxels, its scan \(15, 12, 9\)"),
        (pancreas() * 0, "background in every voxel"),
    ],
)
def test_labels_of_another_scan_are_refused(tmp_path: Path, label: np.ndarray, message: str) -> None:
    write_case(tmp_path, "0057", label)
    (case,) = pancreas_ct.plan(tmp_path).cases
    with pytest.raises(DualCLError, match=message):
        case.load()


def test_copies_of_one_scan_count_once_and_never_on_both_sides(tmp_path: Path) -> None:
    """The usual list trains on 0070 and 0002 and tests on 0025: one scan."""
    for seed, number in enumerate(("0002", "0025", "0050", "0057", "0070")):
        write_case(tmp_path, number, pancreas(), seed=seed)
    plan = pancreas_ct.plan(tmp_path, labeled=12)
    assert roles(plan) == {"PANCREAS_0002": "labeled", "PANCREAS_0050": "test", "PANCREAS_0057": "labeled"}
    assert [each.where for each in plan.refused] == ["PANCREAS_0025", "PANCREAS_0070"]
    assert "61/19 of the list's 62/20 are left" in plan.notes[0]
    assert roles(pancreas_ct.plan(tmp_path, labeled=1)) == {
        "PANCREAS_0002": "unlabeled",
        "PANCREAS_0050": "test",
        "PANCREAS_0057": "labeled",
    }


def test_the_list_without_copies(tmp_path: Path) -> None:
    for seed, number in enumerate(("0001", "0013", "0064")):
        write_case(tmp_path, number, pancreas(), seed=seed)
    plan = pancreas_ct.plan(tmp_path, split="coranet", labeled=12)
    assert roles(plan) == {"PANCREAS_0001": "labeled", "PANCREAS_0013": "unlabeled", "PANCREAS_0064": "test"}
    assert not any("copies" in note for note in plan.notes)
    with pytest.raises(DualCLError, match="--split must be one of mcnet, coranet"):
        pancreas_ct.plan(tmp_path, split="other")
    with pytest.raises(DualCLError, match="--turn-labels must be one of none, y, z, yz"):
        pancreas_ct.plan(tmp_path, turn_labels="x")


def test_lists_of_the_user_are_freed_of_copies_too(tmp_path: Path) -> None:
    for seed, number in enumerate(("0002", "0003")):
        write_case(tmp_path / "in", number, pancreas(), seed=seed)
    (tmp_path / "train").write_text("image0003\nimage0070\n")
    (tmp_path / "test").write_text("image0002\nimage0005\n")
    lists: dict[str, Any] = {"train_list": tmp_path / "train", "test_list": tmp_path / "test"}
    assert roles(pancreas_ct.plan(tmp_path / "in", **lists)) == {
        "PANCREAS_0002": "labeled",
        "PANCREAS_0003": "labeled",
    }


def test_labels_of_unlabeled_cases_are_not_opened(tmp_path: Path) -> None:
    write_case(tmp_path, "0057", pancreas())
    write_case(tmp_path, "0018", None, seed=1)
    (tmp_path / "TCIA_pancreas_labels-02-05-2017/label0018.nii.gz").write_bytes(b"poison")
    by_name = {case.name: case for case in pancreas_ct.plan(tmp_path, labeled=1).cases}
    assert by_name["PANCREAS_0018"].load().label is None


def test_conversion(tmp_path: Path) -> None:
    for seed, number in enumerate(("0057", "0018", "0050")):
        write_case(tmp_path / "in", number, np.flip(pancreas(), 1), seed=seed)
    report = pancreas_ct.convert(tmp_path / "in", tmp_path / "Dataset082_Pancreas", labeled=1, turn_labels="y")
    assert report.exit_code == 0
    assert {record.name: record.role.value for record in report.records} == {
        "PANCREAS_0018": "unlabeled",
        "PANCREAS_0050": "test",
        "PANCREAS_0057": "labeled",
    }
    written = sitk.ReadImage(str(report.target / "labelsTs/PANCREAS_0050.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), pancreas())


def test_series_that_will_not_do(tmp_path: Path) -> None:
    write_case(tmp_path, "0057", pancreas(), left_out=4)
    folder = write_case(tmp_path, "0018", pancreas())
    (other,) = write_case(tmp_path / "other", "0062", None).glob("1-099.dcm")
    other.rename(folder / "other.dcm")
    by_name = {case.name: case for case in pancreas_ct.plan(tmp_path).cases}
    with pytest.raises(DualCLError, match=r"1\.5 to 3 mm apart"):
        by_name["PANCREAS_0057"].load()
    with pytest.raises(DualCLError, match="holds 2 DICOM series"):
        by_name["PANCREAS_0018"].load()


def test_what_makes_no_case_is_named(tmp_path: Path) -> None:
    write_case(tmp_path, "0057", pancreas())
    write_case(tmp_path, "0018", None)
    write_case(tmp_path, "0062", pancreas())
    write_case(tmp_path / "again", "0062", pancreas())
    write_case(tmp_path, "0099", pancreas())
    plan = pancreas_ct.plan(tmp_path)
    assert [(each.where, each.reason) for each in plan.damaged] == [
        ("PANCREAS_0018", f"no label0018.nii.gz below {tmp_path.name}")
    ]
    assert {each.where: each.reason for each in plan.refused} == {
        "PANCREAS_0062": "2 folders with DICOM files, one series is wanted",
        "PANCREAS_0099": "is in neither the training nor the test list",
        "again/TCIA_pancreas_labels-02-05-2017/label0062.nii.gz": "another label0062.nii.gz was found before it",
    }
    (tmp_path / "empty").mkdir()
    with pytest.raises(DualCLError, match="no DICOM file among 0"):
        pancreas_ct.plan(tmp_path / "empty")
