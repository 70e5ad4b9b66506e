"""FLARE 2022's folders: 50 labeled, 2,000 unlabeled, the tuning set."""

from pathlib import Path

import numpy as np
import pytest
from synthetic_volumes import slabs, volume, write

from nnunet_dualcl.dataset_conversion import flare22
from nnunet_dualcl.errors import DualCLError

LABELED = "Training/FLARE22_LabeledCase50"


def tree(folder: Path) -> Path:
    for number in (1, 2):
        write(folder / f"{LABELED}/images/FLARE22_Tr_000{number}_0000.nii.gz", volume(number))
        write(folder / f"{LABELED}/labels/FLARE22_Tr_000{number}.nii.gz", volume(slabs(1, 2, 13), np.uint8))
    write(folder / "Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz", volume(3))
    write(folder / "Training/FLARE22_UnlabeledCase1001-2000/Case_01001_0000.nii.gz", volume(4))
    write(folder / "Tuning/images/FLARETs_0001_0000.nii.gz", volume(5))
    write(folder / "Tuning/labels/FLARETs_0001.nii.gz", volume(slabs(7), np.uint8))
    return folder


def test_roles_follow_names(tmp_path: Path) -> None:
    plan = flare22.plan(tree(tmp_path))
    assert {case.name: case.role.value for case in plan.cases} == {
        "Case_00001": "unlabeled",
        "Case_01001": "unlabeled",
        "FLARE22_Tr_0001": "labeled",
        "FLARE22_Tr_0002": "labeled",
        "FLARETs_0001": "test",
    }
    assert list(plan.labels.items())[:1] + list(plan.labels.items())[12:] == [("liver", 1), ("left kidney", 13)]
    assert (plan.channels, plan.split) == (("CT",), None)


def test_a_label_of_an_unlabeled_scan_is_not_opened(tmp_path: Path) -> None:
    tree(tmp_path)
    poisoned = tmp_path / "Training/pseudo/Case_00001.nii.gz"
    poisoned.parent.mkdir()
    poisoned.write_bytes(b"poison")
    (case, *_) = flare22.plan(tmp_path).cases
    assert (case.name, poisoned in case.files, case.load().label) == ("Case_00001", False, None)


def test_conversion(tmp_path: Path) -> None:
    report = flare22.convert(tree(tmp_path / "in"), tmp_path / "Dataset022_Flare", unlabeled=1)
    assert report.exit_code == 0
    written = {path.relative_to(report.target).as_posix() for path in report.target.glob("*s*/*.nii.gz")}
    assert written == {
        "imagesTr/FLARE22_Tr_0001_0000.nii.gz",
        "imagesTr/FLARE22_Tr_0002_0000.nii.gz",
        "labelsTr/FLARE22_Tr_0001.nii.gz",
        "labelsTr/FLARE22_Tr_0002.nii.gz",
        "imagesTs/FLARETs_0001_0000.nii.gz",
        "labelsTs/FLARETs_0001.nii.gz",
        "imagesUnlabeled/Case_00001_0000.nii.gz",
    }
    assert report.plan.notes == ("1 of 2 unlabeled scans were left out on demand",)


def test_what_makes_no_case_is_named(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / f"{LABELED}/labels/FLARE22_Tr_0001.nii.gz").unlink()
    (tmp_path / f"{LABELED}/images/FLARE22_Tr_0002_0000.nii.gz").unlink()
    write(tmp_path / "Testing/FLARETs_0001_0000.nii.gz", volume(6))
    write(tmp_path / "copy/Case_00001_0000.nii.gz", volume(7))
    plan = flare22.plan(tmp_path)
    assert {each.where: each.reason for each in plan.refused} == {
        "Testing/FLARETs_0001_0000.nii.gz": "of the hidden test set, whose names are those of the tuning set",
        "copy/Case_00001_0000.nii.gz": "a file of this name was found before: "
        "Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz",
    }
    assert {each.where: each.reason for each in plan.damaged} == {
        f"{LABELED}/labels/FLARE22_Tr_0002.nii.gz": "a label without its image",
        f"{LABELED}/images/FLARE22_Tr_0001_0000.nii.gz": "its label FLARE22_Tr_0001.nii.gz was not found",
    }


def test_another_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "img0001.nii.gz", volume())
    with pytest.raises(DualCLError, match=r"no scan of FLARE 2022 among 1 files"):
        flare22.plan(tmp_path)
    with pytest.raises(DualCLError, match="must not be negative"):
        flare22.plan(tmp_path, unlabeled=-1)
