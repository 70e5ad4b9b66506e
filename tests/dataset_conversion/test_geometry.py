import numpy as np
import pytest
import SimpleITK as sitk
from synthetic_volumes import SPACING, slabs, volume

from nnunet_dualcl.dataset_conversion.geometry import TOLERANCE, grid_difference, onto


def test_the_same_grid_and_rounding_are_no_difference() -> None:
    image = volume()
    assert grid_difference(volume(1), image) is None
    moved = volume(origin=np.array((5, -7, 11)) + 0.9 * TOLERANCE * min(SPACING) / np.sqrt(3))
    assert grid_difference(moved, image) is None
    moved = volume(origin=np.array((5, -7, 11)) + 1.1 * TOLERANCE * min(SPACING) / np.sqrt(3))
    assert grid_difference(moved, image) is not None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (volume(np.zeros((7, 9, 12))), "size 12x9x7 voxels, not 11x9x7"),
        (volume(origin=(5.5, -7, 11)), "origin 5.5x-7x11, not 5x-7x11"),
        (volume(spacing=(1, 1.5, 3.02)), "spacing 1x1.5x3.02, not 1x1.5x3"),
    ],
)
def test_differences_are_said_in_words(other: sitk.Image, words: str) -> None:
    assert words in str(grid_difference(other, volume()))


def test_a_turned_grid_is_another_one() -> None:
    turned = volume()
    turned.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert "direction" in str(grid_difference(turned, volume()))


def test_a_small_turn_counts_by_what_it_moves() -> None:
    angle = 0.002  # 16 mm from the origin to the far corner: 0.03 mm
    turned = volume()
    turn = np.array([[1, -angle, 0], [angle, 1, 0], [0, 0, 1]])
    q, _ = np.linalg.qr(turn @ np.reshape(turned.GetDirection(), (3, 3)))
    turned.SetDirection((q * np.sign(np.diag(q)) * np.sign(np.diag(np.reshape(turned.GetDirection(), (3, 3))))).ravel())
    assert grid_difference(turned, volume()) is not None


def test_nearest_neighbor_keeps_values_and_linear_mixes_them() -> None:
    label = volume(slabs(1, 2), np.uint8)
    shifted = volume(origin=(5.3, -7, 11))
    moved = onto(label, shifted, nearest=True)
    assert set(np.unique(sitk.GetArrayFromImage(moved))) == {0, 1, 2}
    assert grid_difference(moved, shifted) is None
    mixed = sitk.GetArrayFromImage(onto(label, shifted, nearest=False))
    assert ((mixed > 0) & (mixed < 1)).any()
    far = onto(volume(), volume(origin=(500, 0, 0)), nearest=False)
    assert (sitk.GetArrayFromImage(far) == sitk.GetArrayFromImage(volume()).min()).all()
