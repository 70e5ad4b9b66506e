from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_dualcl.benchmark.prepare import _raw_dataset, check_source, prepare
from nnunet_dualcl.benchmark.protocol import Protocol
from nnunet_dualcl.errors import DualCLError

SETTINGS: dict[str, Any] = {
    "title": "Patients", "dataset_id": 8, "dataset_name": "Twice", "labeled": (1,), "draws": 2, "steps": 250,
    "test_cases": 4, "validation_cases": 2, "arms": {"stock": 1}, "seed": 1,
}  # fmt: skip
PATIENTS = [f"p{number}" for number in range(7)]


def write(file: Path, *, origin: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8))
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(file))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Seven patients with three labeled scans and one unlabeled scan each; one with an unlabeled scan alone."""
    source = tmp_path / "source"
    lines = ["case,patient"]
    for patient in PATIENTS:
        for scan in "abc":
            write(source / "imagesTr" / f"{scan}_{patient}_0000.nrrd")
            write(source / "labelsTr" / f"{scan}_{patient}.nrrd")
            lines.append(f"{scan}_{patient},{patient}")
    for patient in [*PATIENTS, "p9"]:
        write(source / "imagesUnlabeled" / f"u_{patient}_0000.nrrd")
        lines.append(f"u_{patient},{patient}")
    (source / "conversion").mkdir()
    (source / "conversion" / "patients.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nrrd"}
    (source / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return source


def patients(cases: Any) -> set[str]:
    return {case.split("_")[1] for case in cases}


def test_a_patient_is_on_one_side(source: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    test, splits = _raw_dataset(Protocol(**SETTINGS), source, raw)
    assert len(test) == 6  # two patients: the second brings the number to four and more
    held = patients(test) | patients(splits[0]["val"])
    assert len(held) == 4
    for split in splits:
        assert len(patients(split["val"])) == 2
        sides = [patients(test), *(patients(split[role]) for role in split)]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 7
    unlabeled = {path.name.removesuffix("_0000.nrrd") for path in (raw / "imagesUnlabeled").iterdir()}
    assert patients(unlabeled) == {*PATIENTS, "p9"} - held
    assert {path.name for path in (raw / "labelsTs").iterdir()} == {f"{case}.nrrd" for case in test}


def test_named_test_cases_are_whole_patients(source: Path, tmp_path: Path) -> None:
    cases = ("a_p1", "b_p1", "c_p1")
    test, _ = _raw_dataset(Protocol(**{**SETTINGS, "test_cases": cases}), source, tmp_path / "raw")
    assert test == list(cases)
    with pytest.raises(DualCLError, match="test_cases leaves out other scans of its patients: c_p1"):
        _raw_dataset(Protocol(**{**SETTINGS, "test_cases": cases[:2]}), source, tmp_path / "other")


def test_without_patients_each_case_stands_for_itself(source: Path, tmp_path: Path) -> None:
    (source / "conversion" / "patients.csv").unlink()
    test, splits = _raw_dataset(Protocol(**SETTINGS), source, tmp_path / "raw")
    cases = sorted(f"{scan}_{patient}" for scan in "abc" for patient in PATIENTS)
    assert test == sorted(np.random.default_rng(1).permutation(cases)[:4])
    assert len(splits[0]["val"]) == 2
    assert len(list((tmp_path / "raw" / "imagesUnlabeled").iterdir())) == 8


def test_labels_that_do_not_fit_are_refused_before_anything_is_copied(source: Path, tmp_path: Path) -> None:
    label = source / "labelsTr" / "b_p3.nrrd"
    write(label, origin=(1.0, 2.0, 3.5))
    with pytest.raises(DualCLError, match=r"b_p3_0000\.nrrd and .*b_p3\.nrrd differ in origin"):
        _raw_dataset(Protocol(**SETTINGS), source, tmp_path / "raw")
    label.unlink()
    with pytest.raises(DualCLError, match=r"No label for b_p3 in .*labelsTr. Move images without labels"):
        _raw_dataset(Protocol(**SETTINGS), source, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_unlabeled_images_are_in_one_folder_and_named_as_nnunet_wants(source: Path, tmp_path: Path) -> None:
    write(source / "imagesUnlabeled" / "u_p8.nrrd")
    with pytest.raises(DualCLError, match=r"imagesUnlabeled: u_p8\.nrrd would be passed over"):
        _raw_dataset(Protocol(**SETTINGS), source, tmp_path / "raw")
    (source / "unlabeled").mkdir()
    with pytest.raises(DualCLError, match="has both unlabeled and imagesUnlabeled"):
        check_source(Protocol(**SETTINGS), source)
    assert not (tmp_path / "raw").exists()


def test_voxels_in_a_file_of_their_own_come_along(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / "in" / "imagesTr" / f"c[{number}]_0000.mhd")
        write(tmp_path / "in" / "labelsTr" / f"c[{number}].mhd")
    write(tmp_path / "in" / "imagesUnlabeled" / "u_0000.mhd")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".mhd"}
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    _raw_dataset(Protocol(**SETTINGS), tmp_path / "in", tmp_path / "raw")
    headers = list((tmp_path / "raw").rglob("*.mhd"))
    assert len(headers) == 17
    for header in headers:
        assert sitk.ReadImage(str(header)).GetOrigin() == (1.0, 2.0, 3.0)


def test_files_without_a_voxel_size_are_refused(source: Path, tmp_path: Path) -> None:
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    (source / "dataset.json").write_text(json.dumps({**content, "file_ending": ".tif"}), encoding="utf-8")
    with pytest.raises(DualCLError, match=r"source: \.tif files hold no voxel size .* Convert them to \.nii\.gz"):
        _raw_dataset(Protocol(**SETTINGS), source, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_folder_keeps_its_source(tmp_path: Path) -> None:
    (tmp_path / "prepared.json").write_text(json.dumps({"source": "scans", "test": []}), encoding="utf-8")
    prepare(Protocol(**SETTINGS), tmp_path / "scans", tmp_path)
    with pytest.raises(DualCLError, match="was prepared from scans, not from others"):
        prepare(Protocol(**SETTINGS), tmp_path / "others", tmp_path)
