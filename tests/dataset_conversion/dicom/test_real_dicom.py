"""Real exports against the masks that their publishers made of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_dualcl.dataset_conversion import dicom
from nnunet_dualcl.dataset_conversion.plan import Options, Scan

DATA = Path(os.environ.get("DUALCL_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
IBSI, STS, DCMQI = (DATA / name for name in ("dicom_rtstruct_ibsi1", "dicom_rtstruct_sts", "dicom_seg_dcmqi"))

pytestmark = pytest.mark.skipif(
    not all(folder.is_dir() for folder in (IBSI, STS, DCMQI)),
    reason=f"no {IBSI.name}, {STS.name} and {DCMQI.name} in {DATA}; name their parent in DUALCL_TEST_DATA",
)


def only_case(folder: Path, **found_by: object) -> Scan:
    (case,) = dicom.plan(folder, **found_by).cases
    return case.load()


def array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def same_grid(image: sitk.Image, reference: sitk.Image) -> bool:
    return image.GetSize() == reference.GetSize() and np.allclose(image.GetOrigin(), reference.GetOrigin(), atol=1e-3)


def test_the_phantom_of_the_image_biomarker_standardisation_initiative() -> None:
    scan = only_case(IBSI / "dicom", labels={"gtv": "GTV-1"})
    image, mask = (sitk.ReadImage(IBSI / "nifti" / name) for name in ("image/phantom.nii.gz", "mask/mask.nii.gz"))
    assert same_grid(scan.label, mask)
    np.testing.assert_array_equal(array(scan.channels[0]), array(image))
    np.testing.assert_array_equal(array(scan.label), array(mask))
    assert scan.notes == ()


@pytest.mark.parametrize(("modality", "name"), [("CT", "CT"), ("PT", "PET"), ("MR", "MR_T1")])
def test_sarcomas_whose_contours_name_other_instances(modality: str, name: str) -> None:
    patients = sorted(path.name for path in (STS / "dicom").iterdir())
    plan = dicom.plan(STS / "dicom", labels={"gtv": "gtv_mass_.*"}, channels={"image": modality})
    assert [case.key["patient_id"] for case in plan.cases] == patients
    for case, patient in zip(plan.cases, patients, strict=True):
        scan = case.load()
        mask = sitk.ReadImage(STS / "nifti" / patient / f"{name}_mask.nii.gz")
        assert same_grid(scan.label, mask)
        np.testing.assert_array_equal(array(scan.label), array(mask))
        assert scan.notes == (("PET is in SUV by body weight (g/ml)",) if modality == "PT" else ())
        image = STS / "nifti" / patient / f"{name}_image.nii.gz"
        if image.is_file():
            np.testing.assert_allclose(array(scan.channels[0]), array(sitk.ReadImage(image)), atol=1e-5)


def with_segmentation(folder: Path, segmentation: str) -> Path:
    shutil.copytree(DCMQI / "ct-3slice", folder / "ct")
    shutil.copyfile(DCMQI / segmentation, folder / "any name")
    return folder


def test_a_binary_segmentation(tmp_path: Path) -> None:
    scan = only_case(with_segmentation(tmp_path, "liver.dcm"), labels={"liver": ""})
    reference = sitk.ReadImage(DCMQI / "liver_seg.nrrd")
    assert same_grid(scan.label, reference)
    np.testing.assert_array_equal(array(scan.label), array(reference) > 0)


def test_overlapping_segments_by_precedence(tmp_path: Path) -> None:
    names = {"dark": "dark_blue", "green": "", "light": "light_blue", "orange": "", "purple": ""}
    scan = only_case(with_segmentation(tmp_path, "partial_overlaps.dcm"), labels=names)
    references = [array(sitk.ReadImage(DCMQI / f"partial_overlaps-{number}.nrrd")) for number in (1, 2, 3)]
    covered = np.any([reference > 0 for reference in references], axis=0)
    np.testing.assert_array_equal(array(scan.label) > 0, covered)
    contested = np.sum([reference > 0 for reference in references], axis=0) > 1
    assert scan.notes == (f"{int(contested.sum())} voxels are of several segments; the one named first has them",)


def test_a_width_that_is_no_multiple_of_eight() -> None:
    labeled, multi_frame = dicom.plan(DCMQI / "23x38x3", labels={"liver": ""}).cases
    scan = labeled.load()
    reference = sitk.ReadImage(DCMQI / "23x38x3" / "nrrd" / "label.nrrd")
    assert same_grid(scan.label, reference)
    np.testing.assert_array_equal(array(scan.label), array(reference) > 0)
    np.testing.assert_array_equal(array(multi_frame.load().channels[0]), array(scan.channels[0]))


def test_masses_drawn_on_two_channels(tmp_path: Path) -> None:
    labels = {"ct": "gtv_mass_ct", "pet": "gtv_mass_pet"}  # the first lies within the second
    options = Options(processes=1, resample_channels=True, resample_labels=True)
    channels = {"PET": "PT", "CT": "CT"}
    report = dicom.convert(STS / "dicom", tmp_path / "Dataset001_A", labels=labels, channels=channels, options=options)
    assert report.failed == ()
    for record, patient in zip(report.records, sorted((STS / "dicom").iterdir()), strict=True):
        mask = array(sitk.ReadImage(STS / "nifti" / patient.name / "PET_mask.nii.gz"))
        assert record.voxels["ct"] > 0
        assert record.voxels["ct"] + record.voxels["pet"] == (mask > 0).sum()  # on the grid of PET, its own
