"""BraTS by its two ways of naming: channels, label values, sessions, regions."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import slabs, volume, write

from nnunet_dualcl.dataset_conversion import brats
from nnunet_dualcl.dataset_conversion.labels import mapped_values, whole_numbers
from nnunet_dualcl.errors import DualCLError

OLD = ("_t1", "_t1ce", "_t2", "_flair")
NEW = ("-t1n", "-t1c", "-t2w", "-t2f")


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


def case(folder: Path, name: str, label: int | None, *, ending: str = ".nii.gz") -> None:
    """Channels of seeds that tell them apart; ``label``: the value of enhancing tumor, None for no label."""
    parts = NEW if "-" in name else OLD
    for index, part in enumerate(parts):
        write(folder / name / f"{name}{part}{ending}", volume(seed_of(name) + index))
    if label is not None:
        write(folder / name / f"{name}{parts[0][0]}seg{ending}", volume(slabs(1, 2, label), np.uint8))


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (("BraTS20_Training_001", "BraTS20_Validation_001"), 4),
        (("Brats18_2013_10_1", "Brats18_2013_11_1"), 4),
        (("BraTS2021_00000", "BraTS2021_00001"), 4),
        (("BraTS19_TCIA02_370_1", "BraTS19_2013_8_1"), 4),
        (("BraTS-GLI-00000-000", "BraTS-GLI-00001-000"), 3),
    ],
)
def test_names_of_each_year(tmp_path: Path, names: tuple[str, str], value: int) -> None:
    labeled, unlabeled = names
    case(tmp_path / "Training", labeled, value)
    case(tmp_path / "Validation", unlabeled, None)
    plan = brats.plan(tmp_path)
    assert {each.name: each.role.value for each in plan.cases} == {labeled: "labeled", unlabeled: "test"}
    scan = next(each for each in plan.cases if each.name == labeled).load()
    for index, channel in enumerate(scan.channels):
        expected = volume(seed_of(labeled) + index)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(channel), sitk.GetArrayFromImage(expected))
    assert scan.label is not None
    stored, _ = mapped_values(whole_numbers(scan.label), plan.value_map, plan.label_values)
    np.testing.assert_array_equal(stored, slabs(1, 2, 3))


def test_sessions_belong_to_one_patient(tmp_path: Path) -> None:
    for name in ("BraTS-GLI-00007-000", "BraTS-GLI-00007-001", "BraTS-GLI-00008-000"):
        case(tmp_path, name, 3)
    assert [each.patient for each in brats.plan(tmp_path).cases] == ["BraTS-GLI-00007"] * 2 + ["BraTS-GLI-00008"]


def test_lists_know_the_names_of_2018(tmp_path: Path) -> None:
    for name in ("Brats18_2013_10_1", "Brats18_2013_11_1"):
        case(tmp_path / "in", name, 4)
    (tmp_path / "train").write_text("Brats18_2013_10_1\n")
    (tmp_path / "test").write_text("HGG/Brats18_2013_11_1/\n")
    plan = brats.plan(tmp_path / "in", train_list=tmp_path / "train", test_list=tmp_path / "test")
    assert [each.role.value for each in plan.cases] == ["labeled", "test"]


def test_lists_keep_patients_together(tmp_path: Path) -> None:
    for name in ("BraTS-GLI-00007-000", "BraTS-GLI-00007-001", "BraTS-GLI-00008-000", "BraTS-GLI-00009-000"):
        case(tmp_path / "in", name, 3)
    (tmp_path / "train").write_text("BraTS-GLI-00008-000\nBraTS-GLI-00007-001\n")
    (tmp_path / "test").write_text("")
    plan = brats.plan(tmp_path / "in", labeled=1, train_list=tmp_path / "train", test_list=tmp_path / "test")
    assert {each.name: each.role.value for each in plan.cases} == {
        "BraTS-GLI-00007-000": "unlabeled",
        "BraTS-GLI-00007-001": "unlabeled",
        "BraTS-GLI-00008-000": "labeled",
    }
    assert plan.split == ({"train": ["BraTS-GLI-00008-000"], "val": ["BraTS-GLI-00008-000"]},)
    assert [each.where for each in plan.refused] == ["BraTS-GLI-00009-000"]
    case(tmp_path / "in", "BraTS-GLI-00007-002", None)
    lists = {"train_list": tmp_path / "train", "test_list": tmp_path / "test"}
    plan = brats.plan(tmp_path / "in", val=1, unlabeled_test=True, **lists)
    assert {each.where for each in plan.refused} == {"BraTS-GLI-00007-002", "BraTS-GLI-00009-000"}
    assert plan.split == ({"train": ["BraTS-GLI-00008-000"], "val": ["BraTS-GLI-00007-000", "BraTS-GLI-00007-001"]},)
    with pytest.raises(DualCLError, match="need --train-list"):
        brats.plan(tmp_path / "in", labeled=1)


def test_regions_are_whole_tumor_core_and_enhancing(tmp_path: Path) -> None:
    """nnU-Net writes its regions one over the other, in the order of ``regions_class_order``."""
    case(tmp_path, "BraTS2021_00000", 4)
    case(tmp_path, "BraTS2021_00001", None)
    plan = brats.plan(tmp_path, regions=True)
    assert plan.regions_class_order is not None
    values = np.array([0, 1, 2, 3])
    rebuilt = np.zeros_like(values)
    for region, value in zip(plan.labels.values(), plan.regions_class_order, strict=True):
        rebuilt[np.isin(values, region)] = value
    np.testing.assert_array_equal(rebuilt, values)
    assert plan.labels["tumor core"] == [1, 3]
    report = brats.convert(tmp_path, tmp_path / "Dataset137_BraTS", regions=True, unlabeled_test=True)
    assert report.exit_code == 0
    written = sitk.ReadImage(str(report.target / "labelsTr/BraTS2021_00000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), slabs(1, 2, 3))
    assert (report.target / "imagesUnlabeled/BraTS2021_00001_0003.nii.gz").is_file()


def test_the_misnamed_label_of_2020(tmp_path: Path) -> None:
    case(tmp_path, "BraTS20_Training_355", 4, ending=".nii")
    folder = tmp_path / "BraTS20_Training_355"
    (folder / "BraTS20_Training_355_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    (only,) = brats.plan(tmp_path).cases
    assert only.load().label is not None


def test_label_4_of_later_releases_is_not_taken_for_enhancing_tumor(tmp_path: Path) -> None:
    """It is the resection cavity in 2024."""
    case(tmp_path, "BraTS-GLI-00005-100", 4)
    case(tmp_path, "BraTS-GLI-00006-100", 3)
    report = brats.convert(tmp_path, tmp_path / "Dataset137_BraTS")
    assert [record.name for record in report.records] == ["BraTS-GLI-00006-100"]
    assert "holds 4, which stand for nothing" in report.failed[0].reason


@pytest.mark.parametrize(
    ("year", "values", "expected"), [("2023", (1, 2, 3), (1, 2, 3)), ("2024", (1, 2, 3, 4), (3, 1, 1, 2))]
)
def test_labels_of_children_are_those_of_their_year(
    tmp_path: Path, year: str, values: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Since 2024 they are enhancing, not enhancing, cyst, edema, under names of the same form."""
    name = "BraTS-PED-00001-000"
    case(tmp_path, name, 3)
    write(tmp_path / name / f"{name}-seg.nii.gz", volume(slabs(*values), np.uint8))
    with pytest.raises(DualCLError, match="Say of which year it is: --pediatric 2023"):
        brats.plan(tmp_path)
    assert brats.convert(tmp_path, tmp_path / "Dataset137_BraTS", pediatric=year).exit_code == 0
    written = sitk.ReadImage(str(tmp_path / f"Dataset137_BraTS/labelsTr/{name}.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), slabs(*expected))


def test_the_year_of_childrens_labels_is_for_them(tmp_path: Path) -> None:
    case(tmp_path / "adults", "BraTS-GLI-00001-000", 3)
    with pytest.raises(DualCLError, match="is for BraTS-PED"):
        brats.plan(tmp_path / "adults", pediatric="2024")
    case(tmp_path / "children", "BraTS-PED-00001-000", None)
    with pytest.raises(DualCLError, match="must be 2023 or 2024"):
        brats.plan(tmp_path / "children", pediatric="2022")
    assert [each.role.value for each in brats.plan(tmp_path / "children").cases] == ["test"]


def test_names_since_2023_may_lack_a_session(tmp_path: Path) -> None:
    case(tmp_path, "BraTS-GoAT-00001", 3)
    (found,) = brats.plan(tmp_path).cases
    assert (found.name, found.patient) == ("BraTS-GoAT-00001", "BraTS-GoAT-00001")
    assert brats.convert(tmp_path, tmp_path / "Dataset137_BraTS").failed == ()


def test_a_missing_channel_leaves_the_others(tmp_path: Path) -> None:
    for name in ("BraTS2021_00000", "BraTS2021_00001"):
        case(tmp_path, name, 4)
    (tmp_path / "BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz").unlink()
    write(tmp_path / "copy/BraTS2021_00001_t2.nii.gz", volume())
    plan = brats.plan(tmp_path)
    assert [each.name for each in plan.cases] == ["BraTS2021_00001"]
    assert [(each.where, each.reason) for each in plan.damaged] == [("BraTS2021_00000", "lacks the channel T1ce")]
    (tmp_path / "BraTS2021_00000/BraTS2021_00000_seg.nii.gz").unlink()
    plan = brats.plan(tmp_path)
    assert plan.damaged == ()  # nobody drew anything, so nothing is lost
    assert {each.where: each.reason for each in plan.refused} == {
        "BraTS2021_00000": "lacks the channel T1ce",
        "copy/BraTS2021_00001_t2.nii.gz": "the same file was found before: BraTS2021_00001/BraTS2021_00001_t2.nii.gz",
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no scan of BraTS"),
        (("BraTS2021_00000", "BraTS-GLI-00000-000"), r"several releases \(BraTS-GLI, BraTS2021\)"),
        (("BraTS20_Training_001", "BraTS2021_00000"), r"several releases \(BraTS20, BraTS2021\)"),
        (("BraTS-GLI-00000-000", "BraTS-MEN-00000-000"), r"several releases \(BraTS-GLI, BraTS-MEN\)"),
    ],
)
def test_folders_that_will_not_do(tmp_path: Path, names: tuple[Any, ...], message: str) -> None:
    for name in names:
        case(tmp_path, name, 3)
    with pytest.raises(DualCLError, match=message):
        brats.plan(tmp_path)
