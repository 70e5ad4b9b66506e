from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless
from synthetic_dicom import COLUMN, GAP, ORIGIN, ROW, values, write_series

from nnunet_dualcl.dataset_conversion.dicom.scan import scan
from nnunet_dualcl.dataset_conversion.dicom.series import read_series
from nnunet_dualcl.errors import DualCLError


def read(folder: Path) -> tuple[sitk.Image, list[str]]:
    (series,) = scan(folder).series
    return read_series(series.slices, series.grid, series.modality)


def test_pixels_in_real_values_with_geometry_from_positions(tmp_path: Path) -> None:
    write_series(tmp_path, heights=(3, 0, 2, 1))
    image, notes = read(tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values(4)[[1, 3, 2, 0]].astype(int) - 1000)
    assert image.GetPixelID() == sitk.sitkInt16
    assert image.GetSpacing() == pytest.approx((1.5, 2.0, GAP))
    assert image.GetOrigin() == pytest.approx(ORIGIN)
    assert pytest.approx(np.array([ROW, COLUMN, (0, 0, 1)])) == np.reshape(image.GetDirection(), (3, 3)).T
    assert image.GetMetaDataKeys() == ()
    assert notes == []


def test_slopes_that_differ_between_slices_are_kept(tmp_path: Path) -> None:
    """The first slope is whole, so the first file alone would ask for whole numbers."""
    slopes = (1, 0.37, 0.5, 0.25)
    write_series(tmp_path, "PT", slopes=slopes, intercept=0)
    image, notes = read(tmp_path)
    expected = values(4) * np.reshape(slopes, (4, 1, 1))
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), expected, rtol=1e-6)
    assert notes == ["PET is in the scanner's own values, not SUV: units are not stated, not BQML"]


def test_pet_in_suv(tmp_path: Path) -> None:
    write_series(tmp_path, "PT", slopes=[0.5] * 4, intercept=0, tags={"Units": "GML"})
    image, notes = read(tmp_path)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), values(4) * 0.5)
    assert notes == ["PET is in SUV by body weight (g/ml)"]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_pixels(tmp_path: Path, syntax: UID) -> None:
    for path in write_series(tmp_path):
        item = pydicom.dcmread(path)
        item.compress(syntax, generate_instance_uid=False)
        item.save_as(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(tmp_path)[0]), values(4).astype(int) - 1000)


def test_a_file_cut_off_is_a_fault_of_its_case_that_names_no_file(tmp_path: Path) -> None:
    path = write_series(tmp_path)[2]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DualCLError, match=r"pixel data .*: 1 of 4 files cut off \(slice 3 by position\)") as caught:
        read(tmp_path)
    assert path.name not in str(caught.value)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("missing", [0, 2])
def test_a_file_cut_off_is_found_in_its_header(tmp_path: Path, syntax: UID, missing: int) -> None:
    path = write_series(tmp_path)[1]
    item = pydicom.dcmread(path)
    item.file_meta.TransferSyntaxUID = syntax
    item.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size - missing])
    export = scan(tmp_path)
    assert export.cut_off == ({path} if missing else set())
    assert len(export.series[0].slices) == 4  # it fails when it is read, so that its patient is not lost silently


def array(folder: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(read(folder)[0])


def test_values_that_are_shown_dark_stay_as_they_are(tmp_path: Path) -> None:
    write_series(tmp_path / "1", tags={"PhotometricInterpretation": "MONOCHROME1"})
    write_series(tmp_path / "2")
    np.testing.assert_array_equal(array(tmp_path / "1"), array(tmp_path / "2"))


def test_slices_of_several_number_ranges_do_not_wrap_around(tmp_path: Path) -> None:
    pixels = values(4)
    paths = write_series(tmp_path, pixels=pixels, intercept=0)
    lower = pydicom.dcmread(paths[2])
    lower.RescaleIntercept = -1024
    lower.save_as(paths[2])
    signed = pydicom.dcmread(paths[1])
    signed.PixelRepresentation = 1
    signed.PixelData = (pixels[1].astype(int) - 250).astype(np.int16).tobytes()
    signed.save_as(paths[1])
    expected = pixels.astype(int) + np.array([0, -250, -1024, 0])[:, None, None]
    np.testing.assert_array_equal(array(tmp_path), expected)
