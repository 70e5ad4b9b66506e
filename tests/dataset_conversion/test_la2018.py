"""The left atrium's NRRD folders and h5 files, by the usual list."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import SIZE_ZYX, slabs, volume, write

from nnunet_dualcl.dataset_conversion import la2018
from nnunet_dualcl.dataset_conversion.published_lists import LEFT_ATRIUM
from nnunet_dualcl.errors import DualCLError

TRAIN, TEST = LEFT_ATRIUM.train[:4], LEFT_ATRIUM.test[0]
SPACING = (0.625, 0.625, 0.625)


def nrrd_case(folder: Path, name: str, seed: int = 0) -> None:
    write(
        folder / name / "lgemri.nrrd", volume(np.arange(693).reshape(SIZE_ZYX) % 200 + seed, np.uint8, spacing=SPACING)
    )
    write(folder / name / "laendo.nrrd", volume(slabs(255), np.uint8, spacing=SPACING))


def h5_case(folder: Path, name: str, seed: int = 0) -> np.ndarray:
    """As the files in circulation: axes x, y, z; returns the image as (z, y, x)."""
    image = np.random.default_rng(seed).normal(size=SIZE_ZYX).astype(np.float32)
    (folder / name).mkdir(parents=True)
    with h5py.File(folder / name / "mri_norm2.h5", "w") as file:
        file.create_dataset("image", data=image.transpose(2, 1, 0), compression="gzip")
        file.create_dataset("label", data=slabs(1).transpose(2, 1, 0), compression="gzip")
    return image


def test_nrrd_folders_by_the_usual_list(tmp_path: Path) -> None:
    training = tmp_path / "in/Training Set"
    for seed, name in enumerate((*TRAIN, TEST, "NOTLISTED00000000000")):
        nrrd_case(training, name, seed)
    plan = la2018.plan(tmp_path / "in", labeled=2)
    assert {case.name: case.role.value for case in plan.cases} == {
        **dict.fromkeys(TRAIN[:2], "labeled"),
        **dict.fromkeys(TRAIN[2:], "unlabeled"),
        TEST: "test",
    }
    assert plan.split == ({"train": list(TRAIN[:2]), "val": list(TRAIN[:2])},)
    assert [(each.where, each.reason) for each in plan.refused] == [
        ("Training Set/NOTLISTED00000000000/lgemri.nrrd", "is in neither the training nor the test list")
    ]
    assert "95 of 100 listed were not found" in plan.notes[0]
    report = la2018.convert(tmp_path / "in", tmp_path / "Dataset018_LA", labeled=2)
    assert report.exit_code == 0
    written = sitk.ReadImage(str(report.target / f"labelsTr/{TRAIN[0]}.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), slabs(1))
    assert len(list((report.target / "imagesUnlabeled").iterdir())) == 2


def test_the_voxel_size_that_every_header_states_is_not_taken_for_one(tmp_path: Path) -> None:
    """The release's files say 1 mm, left-posterior-superior, from the origin; all of them."""
    for name, values in (("lgemri", np.arange(693).reshape(SIZE_ZYX) % 200), ("laendo", slabs(255))):
        image = sitk.GetImageFromArray(values.astype(np.uint8))
        write(tmp_path / "in" / TRAIN[0] / f"{name}.nrrd", image, compress=False)
    report = la2018.convert(tmp_path / "in", tmp_path / "Dataset018_LA")
    assert report.exit_code == 0
    assert any("0.625 mm is set" in note for note in report.plan.notes)
    for name in (f"imagesTr/{TRAIN[0]}_0000", f"labelsTr/{TRAIN[0]}"):
        assert sitk.ReadImage(str(report.target / f"{name}.nii.gz")).GetSpacing() == pytest.approx(SPACING)


def test_labels_of_unlabeled_cases_are_not_opened(tmp_path: Path) -> None:
    for seed, name in enumerate(TRAIN[:2]):
        nrrd_case(tmp_path, name, seed)
    (tmp_path / TRAIN[1] / "laendo.nrrd").write_bytes(b"poison")
    first, second = la2018.plan(tmp_path, labeled=1).cases
    assert first.load().label is not None
    assert second.load().label is None
    for name in TRAIN[:2]:
        (tmp_path / name / "lgemri.nrrd").unlink()
        with h5py.File(tmp_path / name / "mri_norm2.h5", "w") as file:
            file["image"] = np.ones((3, 4, 5))
    first, second = la2018.plan(tmp_path, labeled=1).cases
    assert second.load().label is None
    with pytest.raises(DualCLError, match="has no label"):
        first.load()


def test_the_last_of_the_list_validate(tmp_path: Path) -> None:
    last = LEFT_ATRIUM.train[-1]
    for seed, name in enumerate((*TRAIN, last)):
        nrrd_case(tmp_path, name, seed)
    plan = la2018.plan(tmp_path, labeled=1, val=2)
    assert plan.split == ({"train": [TRAIN[0]], "val": [last]},)


def test_h5_files_get_their_axes_and_voxel_size(tmp_path: Path) -> None:
    expected = h5_case(tmp_path, TRAIN[0])
    plan = la2018.plan(tmp_path)
    scan = plan.cases[0].load()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(scan.channels[0]), expected)
    assert scan.channels[0].GetSize() == SIZE_ZYX[::-1]
    assert scan.channels[0].GetSpacing() == SPACING
    assert scan.label is not None
    np.testing.assert_array_equal(sitk.GetArrayFromImage(scan.label), slabs(1))
    assert "around the TRUE left atrium" in plan.notes[0]


def test_whole_scans_win_over_crops(tmp_path: Path) -> None:
    nrrd_case(tmp_path, TRAIN[0])
    h5_case(tmp_path, TRAIN[1])
    plan = la2018.plan(tmp_path)
    assert [case.name for case in plan.cases] == [TRAIN[0]]
    assert "left out: lgemri.nrrd is used" in plan.refused[0].reason
    assert not any("TRUE" in note for note in plan.notes)


def test_another_voxel_size_in_the_header_is_noted(tmp_path: Path) -> None:
    write(tmp_path / TRAIN[0] / "lgemri.nrrd", volume())
    write(tmp_path / TRAIN[0] / "laendo.nrrd", volume(slabs(255), np.uint8))
    (case,) = la2018.plan(tmp_path).cases
    assert case.load().notes == ("the header states 1x1.5x3 mm, the challenge 0.625 mm; the header was followed",)


def test_broken_h5_files_say_why(tmp_path: Path) -> None:
    for name in TRAIN:
        h5_case(tmp_path, name)
    (tmp_path / TRAIN[0] / "mri_norm2.h5").write_bytes(b"broken")
    for name, arrays in (
        (TRAIN[1], {"image": np.zeros((3, 4, 5))}),
        (TRAIN[2], {"image": np.zeros((3, 4, 5)), "label": np.zeros((3, 4, 6))}),
        (TRAIN[3], {"image": np.full((3, 4, 5), np.nan), "label": np.zeros((3, 4, 5))}),
    ):
        with h5py.File(tmp_path / name / "mri_norm2.h5", "w") as file:
            for key, array in arrays.items():
                file[key] = array
    messages = ("damaged or no h5", "has no label; there is image", "3D arrays of one shape", "not finite")
    for case, message in zip(la2018.plan(tmp_path).cases, messages, strict=True):
        with pytest.raises(DualCLError, match=message):
            case.load()


def test_what_makes_no_case_is_named(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        nrrd_case(tmp_path / folder, TRAIN[0])
    nrrd_case(tmp_path, TRAIN[1])
    (tmp_path / TRAIN[1] / "laendo.nrrd").unlink()
    plan = la2018.plan(tmp_path)
    assert [each.reason for each in plan.refused] == [f"is there twice: a/{TRAIN[0]}/lgemri.nrrd"]
    assert [each.reason for each in plan.damaged] == ["no laendo.nrrd beside it"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DualCLError, match=r"no lgemri\.nrrd and no mri_norm2\.h5 among 0 files"):
        la2018.plan(tmp_path / "empty")
