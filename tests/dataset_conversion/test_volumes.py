"""Volumes of a 4D file, against nnU-Net's own splitting."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import SIZE_ZYX, volume, write

from nnunet_dualcl.dataset_conversion.volumes import load_4d, num_volumes
from nnunet_dualcl.errors import DualCLError


def series(path: Path, count: int = 3, kind: type = np.float32) -> Path:
    """A 4D file of oblique volumes, the first of them noise of seed 1, and so on."""
    return write(path, sitk.JoinSeries([volume(seed, kind) for seed in range(1, count + 1)], 0.0, 2.0))


def test_volumes_are_those_of_nnunets_splitting(tmp_path: Path) -> None:
    from nnunetv2.dataset_conversion.convert_MSD_dataset import split_4d_nifti

    path = series(tmp_path / "x.nii.gz")
    split_4d_nifti(str(path), str(tmp_path))
    assert num_volumes(path) == 3
    for index, channel in enumerate(load_4d(path, None).channels):
        expected = sitk.ReadImage(str(tmp_path / f"x_{index:04d}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(channel), sitk.GetArrayFromImage(expected))
        for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(channel, name)() == pytest.approx(getattr(expected, name)(), abs=1e-6), name


def test_chosen_volumes(tmp_path: Path) -> None:
    path = series(tmp_path / "x.nii")
    chosen = [sitk.GetArrayFromImage(channel) for channel in load_4d(path, None, (2, 0)).channels]
    np.testing.assert_array_equal(chosen[0], sitk.GetArrayFromImage(volume(3, np.float32)))
    np.testing.assert_array_equal(chosen[1], sitk.GetArrayFromImage(volume(1, np.float32)))
    with pytest.raises(DualCLError, match="has 3 volumes; number 4 is asked for"):
        load_4d(path, None, (3,))


def test_files_that_will_not_do(tmp_path: Path) -> None:
    flat = write(tmp_path / "flat.nii.gz", volume())
    with pytest.raises(DualCLError, match="3 dimensions; 4 are wanted"):
        num_volumes(flat)
    with pytest.raises(DualCLError, match="is no file"):
        num_volumes(tmp_path / "absent.nii.gz")
    whole = series(tmp_path / "whole.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DualCLError, match="damaged"):
        load_4d(tmp_path / "cut.nii.gz", None)
    values = np.zeros((*SIZE_ZYX, 2), np.float32)
    values[1, 2, 3, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 2, 3, 1.0])), tmp_path / "nan.nii.gz")
    with pytest.raises(DualCLError, match="not finite"):
        load_4d(tmp_path / "nan.nii.gz", None)
