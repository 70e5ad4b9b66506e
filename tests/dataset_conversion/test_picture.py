import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_dualcl.dataset_conversion.picture import HEIGHT, color_of, overlay


def image_of(array: np.ndarray, direction: tuple[float, ...]) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 2.0))
    image.SetDirection(direction)
    return image


def test_planes_show_the_patient_as_radiologists_look_at_him() -> None:
    """One voxel block bright at the right, front and top of the patient, stored in an unusual orientation."""
    array = np.zeros((10, 20, 20), np.float32)  # z, y, x of LPS: x grows to the left, y to the back, z up
    array[7:, :6, :6] = 100
    stored = sitk.DICOMOrient(image_of(array, (1, 0, 0, 0, 1, 0, 0, 0, 1)), "RIP")
    label = sitk.DICOMOrient(image_of((array > 0).astype(np.uint8), (1, 0, 0, 0, 1, 0, 0, 0, 1)), "RIP")
    sheet = np.asarray(overlay([stored], label)).astype(int)
    third = (sheet.shape[1] - 8) // 3
    assert (sheet.shape[0], third) == (HEIGHT, HEIGHT)
    for index, corner in enumerate(("axial: front left", "coronal: top left", "sagittal: top left")):
        plane = sheet[:, index * (third + 4) : index * (third + 4) + third].sum(axis=2)
        assert plane[:40, :40].mean() > 4 * plane[-40:, -40:].mean() + 50, corner
        assert plane[-40:].mean() < 5, corner


def test_a_flat_volume_looks_flat_and_channels_are_rows() -> None:
    array = np.random.default_rng(0).normal(size=(3, 40, 40)).astype(np.float32)
    image = image_of(array, (1, 0, 0, 0, 1, 0, 0, 0, 1))
    one, two = overlay([image], None), overlay([image, image], None)
    assert two.height > 2 * one.height
    width = (one.width - HEIGHT - 8) // 2
    coronal = np.asarray(one)[:, HEIGHT + 4 : HEIGHT + 4 + width].sum(axis=2)
    height = (coronal.sum(axis=1) > 0).sum()
    assert height / width == pytest.approx(6 / 40, rel=0.1)  # in mm


def test_labels_take_turns_in_colors() -> None:
    assert color_of(1) == color_of(8) == "#0072b2"
    assert color_of(2) != color_of(1)
