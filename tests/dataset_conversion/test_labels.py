from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import slabs, volume

from nnunet_dualcl.dataset_conversion.labels import mapped_values, merge_structures, whole_numbers
from nnunet_dualcl.dataset_conversion.reading import read_volume
from nnunet_dualcl.errors import DualCLError


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_whole_numbers_of_any_type(dtype: type) -> None:
    values = whole_numbers(volume(slabs(1, 2), dtype))
    assert np.issubdtype(values.dtype, np.integer)
    np.testing.assert_array_equal(values, slabs(1, 2))


def test_fractions_are_no_labels() -> None:
    with pytest.raises(DualCLError, match=r"such as 0\.5 \(15 voxels\).*nearest neighbor"):
        whole_numbers(volume(slabs(1) * 0.5, np.float32))


def test_labels_stored_with_a_scale_factor_are_rounded(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(slabs(1, 13, dtype=float), np.eye(4), header), tmp_path / "a.nii")
    stored = read_volume(tmp_path / "a.nii")
    assert (sitk.GetArrayFromImage(stored) != slabs(1, 13).T).any()
    np.testing.assert_array_equal(whole_numbers(stored), slabs(1, 13).T)
    for value in (1.002, np.inf, np.nan):
        with pytest.raises(DualCLError, match="no whole numbers"):
            whole_numbers(volume(np.where(slabs(1), value, 0), np.float32))


def test_values_are_mapped_and_only_known_ones_pass() -> None:
    np.testing.assert_array_equal(mapped_values(slabs(2, 255), {2: 1, 255: 0}, {0, 1})[0], slabs(1, 0))
    np.testing.assert_array_equal(mapped_values(slabs(1, 2), {}, {0, 1, 2})[0], slabs(1, 2))
    with pytest.raises(DualCLError, match=r"holds 3, which stand for nothing\. Known: 0, 1, 2"):
        mapped_values(slabs(1, 3), {}, {0, 1, 2})
    with pytest.raises(DualCLError, match="holds 1, which"):  # 1 is a value to write, not one of the source
        mapped_values(slabs(1, 2), {2: 1}, {0, 1})
    with pytest.raises(DualCLError, match="holds -1,"):
        mapped_values(slabs(1).astype(int) - 1, {}, {0, 1})


def test_many_labels_need_two_bytes() -> None:
    assert mapped_values(slabs(1) * np.int64(300), {}, {0, 300})[0].dtype == np.uint16
    assert mapped_values(slabs(1), {}, {0, 1})[0].dtype == np.uint8


def test_values_that_nobody_named_become_background_on_demand() -> None:
    values, others = mapped_values(slabs(2, 7, 3), {2: 1}, {0, 1}, others_are_background=True)
    np.testing.assert_array_equal(values, slabs(1))
    assert others == [3, 7]


def test_the_first_structure_keeps_what_several_claim() -> None:
    first, second = slabs(1).astype(bool), (slabs(1) + slabs(0, 1)).astype(bool)
    merged, overlapping = merge_structures([(2, first), (1, second), (1, second)], first.shape)
    np.testing.assert_array_equal(merged, slabs(2, 1))
    assert overlapping == 15
    assert merge_structures([], (2, 3, 4))[0].shape == (2, 3, 4)
