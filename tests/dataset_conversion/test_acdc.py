"""ACDC's folders: two annotated frames a patient, the others in a 4D file, patients on one side."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import OBLIQUE, SPACING, slabs, volume, write

from nnunet_dualcl.dataset_conversion import acdc
from nnunet_dualcl.dataset_conversion.plan import Plan
from nnunet_dualcl.errors import DualCLError

FRAMES = 4


def tree(folder: Path, *patients: int) -> Path:
    """Patients as published: frames 1 and 3 annotated, all four in the 4D file."""
    for patient in patients:
        part = "testing" if patient > 100 else "training"
        name = f"{part}/patient{patient:03d}/patient{patient:03d}"
        seeds = [100 * patient + frame for frame in range(1, FRAMES + 1)]
        write(folder / f"{name}_4d.nii.gz", sitk.JoinSeries([volume(seed) for seed in seeds], 0.0, 1.0))
        for frame in (1, 3):
            write(folder / f"{name}_frame{frame:02d}.nii.gz", volume(seeds[frame - 1]))
            write(folder / f"{name}_frame{frame:02d}_gt.nii.gz", volume(slabs(1, 2, 3), np.uint8))
        (folder / f"{name}_Info.cfg").with_name("Info.cfg").write_text(f"ED: 1\nES: 3\nNbFrame: {FRAMES}\n")
    return folder


def scale_sform(path: Path, length: float) -> None:
    """Give the axes of a NIfTI's sform this length, and leave pixdim and qform as they are."""
    content = gzip.decompress(path.read_bytes())
    header = nibabel.Nifti1Header(content[:348])
    affine = header.get_sform()
    affine[:3, :3] *= length / np.array(SPACING)
    header.set_sform(affine, code=2)
    path.write_bytes(gzip.compress(header.binaryblock + content[348:]))


def roles(plan: Plan) -> dict[str, str]:
    return {case.name: case.role.value for case in plan.cases}


def test_two_frames_a_patient_and_the_published_test_set(tmp_path: Path) -> None:
    plan = acdc.plan(tree(tmp_path, 7, 101))
    assert roles(plan) == {
        "patient007_frame01": "labeled",
        "patient007_frame03": "labeled",
        "patient101_frame01": "test",
        "patient101_frame03": "test",
    }
    assert [case.patient for case in plan.cases] == ["patient007", "patient007", "patient101", "patient101"]
    assert dict(plan.labels) == {"right ventricle": 1, "myocardium": 2, "left ventricle": 3}
    assert (plan.split, plan.refused) == (None, ())


def test_frames_between_are_unlabeled_cases_of_training_patients(tmp_path: Path) -> None:
    plan = acdc.plan(tree(tmp_path, 7, 101), frames=True)
    assert [name for name, role in roles(plan).items() if role == "unlabeled"] == [
        "patient007_frame02",
        "patient007_frame04",
    ]
    (fourth,) = (case.load() for case in plan.cases if case.name == "patient007_frame04")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(fourth.channels[0]), sitk.GetArrayFromImage(volume(704)))
    assert fourth.label is None
    assert "val repeats train" in plan.notes[0]


def test_the_usual_split(tmp_path: Path) -> None:
    """Patients 99, 38 and 50 begin its training list; 28 validates, 11 tests."""
    plan = acdc.plan(tree(tmp_path, 11, 28, 38, 50, 99, 101), usual_split=True, labeled=2, frames=True)
    assert plan.split == (
        {
            "train": ["patient038_frame01", "patient038_frame03", "patient099_frame01", "patient099_frame03"],
            "val": ["patient028_frame01", "patient028_frame03"],
        },
    )
    by_patient: dict[str, set[str]] = {}
    for case in plan.cases:
        by_patient.setdefault(case.patient, set()).add(f"{case.name[-2:]} {case.role.value}")
    assert by_patient["patient050"] == {f"0{frame} unlabeled" for frame in (1, 2, 3, 4)}
    assert by_patient["patient099"] == {"01 labeled", "02 unlabeled", "03 labeled", "04 unlabeled"}
    assert by_patient["patient028"] == {"01 labeled", "03 labeled"}
    assert by_patient["patient011"] == {"01 test", "03 test"}
    assert {each.where.split("/")[1] for each in plan.refused} == {"patient101"}


def test_conversion_keeps_the_split(tmp_path: Path) -> None:
    report = acdc.convert(
        tree(tmp_path / "database", 28, 50, 99), tmp_path / "Dataset027_ACDC", usual_split=True, labeled=1, frames=True
    )
    assert report.exit_code == 0
    assert report.folds[0]["val"] == ["patient028_frame01", "patient028_frame03"]
    assert len(list((report.target / "labelsTr").iterdir())) == 4
    assert len(list((report.target / "imagesUnlabeled").iterdir())) == 6


def test_voxels_are_as_large_as_pixdim_says_where_the_sform_has_axes_of_length_1(tmp_path: Path) -> None:
    """As in the challenge's files."""
    for path in tree(tmp_path / "database", 50, 99).rglob("*.nii.gz"):
        scale_sform(path, 1)
    report = acdc.convert(tmp_path / "database", tmp_path / "Dataset027_ACDC", usual_split=True, labeled=1, frames=True)
    assert report.exit_code == 0
    names = (
        "imagesTr/patient099_frame01_0000",
        "labelsTr/patient099_frame01",
        "imagesUnlabeled/patient050_frame02_0000",
    )
    for name in names:
        written = sitk.ReadImage(str(report.target / f"{name}.nii.gz"))
        assert written.GetSpacing() == pytest.approx(SPACING)
        assert written.GetDirection() == pytest.approx(OBLIQUE, abs=1e-6)
        assert nibabel.load(report.target / f"{name}.nii.gz").header.get_zooms() == pytest.approx(SPACING)


def test_another_size_in_the_sform_is_refused(tmp_path: Path) -> None:
    path = tree(tmp_path, 7) / "training/patient007/patient007_frame01.nii.gz"
    scale_sform(path, 1.2)
    with pytest.raises(DualCLError, match=r"by pixdim and .* by sform"):
        acdc.plan(tmp_path).cases[0].load()


def test_labels_of_unlabeled_cases_are_not_opened(tmp_path: Path) -> None:
    tree(tmp_path, 38, 99)
    for path in tmp_path.rglob("patient038_*_gt.nii.gz"):
        path.write_bytes(b"poison")
    for case in acdc.plan(tmp_path, usual_split=True, labeled=1).cases:
        assert (case.load().label is None) == (case.patient == "patient038")


def test_what_makes_no_case_is_named(tmp_path: Path) -> None:
    tree(tmp_path, 7, 8)
    training = tmp_path / "training"
    (training / "patient007/patient007_frame01_gt.nii.gz").unlink()
    (training / "patient007/patient007_4d.nii.gz").unlink()
    (training / "patient008/patient008_4d.nii.gz").write_bytes(b"broken")
    write(training / "patient008/again/patient008_frame01.nii.gz", volume())
    plan = acdc.plan(tmp_path, frames=True)
    (damaged,) = plan.damaged
    assert damaged.where == "training/patient007/patient007_frame01.nii.gz"
    assert "_gt is missing" in damaged.reason
    refused = {each.where: each.reason for each in plan.refused}
    assert list(refused) == [
        "training/patient008/patient008_frame01.nii.gz",
        "patient007",
        "training/patient008/patient008_4d.nii.gz",
    ]
    assert "found before" in refused["training/patient008/patient008_frame01.nii.gz"]
    assert "no 4D file" in refused["patient007"]
    assert "cannot be read" in refused["training/patient008/patient008_4d.nii.gz"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"labeled": 3}, "go by a list"),
        ({"usual_split": True, "val": 3}, "10 patients for validation"),
        ({"usual_split": True, "train_list": "own", "test_list": "own"}, "Give either"),
    ],
)
def test_options_that_contradict(tmp_path: Path, chosen: dict[str, Any], message: str) -> None:
    (tmp_path / "own").write_text("patient007\n")
    chosen = {key: tmp_path / value if isinstance(value, str) else value for key, value in chosen.items()}
    with pytest.raises(DualCLError, match=message):
        acdc.plan(tree(tmp_path, 7), **chosen)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match="no case of ACDC among 0 files"):
        acdc.plan(tmp_path)
