import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_erosion

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.evaluation import metrics as module
from nnunet_dualcl.evaluation.metrics import CaseMetrics, evaluate_case, evaluate_folder, segmentation_metrics

SHAPE = (10, 20, 30)
SPACING = (2.5, 1.0, 0.8)
LABELS = {"background": 0, "head": 1, "tail": 2}


def compare(reference: np.ndarray, prediction: np.ndarray, **changes: object) -> CaseMetrics:
    options = {"label": 1, "spacing_mm": SPACING, "tolerance_mm": 1.0, **changes}
    return segmentation_metrics(reference.astype(np.uint8), prediction.astype(np.uint8), **options)  # type: ignore[arg-type]


def box(*slices: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[slices] = True
    return mask


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two ragged masks that overlap, one of them at the rim of the image."""
    noise = np.random.default_rng(seed).random((2, *SHAPE))
    return box(slice(2, 8), slice(0, 9), slice(3, 17)) & (noise[0] > 0.2), box(
        slice(3, 9), slice(0, 8), slice(4, 15)
    ) & (noise[1] > 0.1)


# ---- closed forms


@pytest.mark.parametrize(("axis", "steps"), [(0, 2), (1, 3), (2, 4)])
def test_a_shifted_plate_is_as_far_away_as_it_was_shifted(axis: int, steps: int) -> None:
    plate = np.zeros(SHAPE, dtype=bool)
    plate[tuple(slice(3, 4) if other == axis else slice(None) for other in range(3))] = True
    distance_mm = steps * SPACING[axis]
    moved = np.roll(plate, steps, axis)
    for tolerance_mm, nsd in ((distance_mm, 1.0), (distance_mm - 0.01, 0.0)):
        scores = compare(plate, moved, tolerance_mm=tolerance_mm)
        assert scores == CaseMetrics(0.0, 0.0, pytest.approx(distance_mm), pytest.approx(distance_mm), nsd)


def test_a_shifted_box() -> None:
    """5 x 6 x 8 voxels moved by one along the first axis: counted by hand.

    The surface has 240 - 3 * 4 * 6 = 168 voxels. Of the moved one, the 48 of the far face stick out by a voxel; of the
    face that went in, the 24 inner voxels are a voxel away from the surface, the rest lies on the rim. 72 of 168.
    """
    reference = box(slice(1, 6), slice(4, 10), slice(5, 13))
    scores = compare(reference, np.roll(reference, 1, axis=0), spacing_mm=(0.5, 3.0, 2.0), tolerance_mm=0.4)
    assert scores.dice == pytest.approx(4 / 5)
    assert scores.jaccard == pytest.approx(4 / 6)
    assert scores.hd95_mm == pytest.approx(0.5)
    assert scores.asd_mm == pytest.approx(0.5 * 72 / 168)
    assert scores.nsd == pytest.approx(1 - 72 / 168)


@pytest.mark.parametrize(("axis", "steps"), [(0, 2), (1, 4), (2, 5)])
def test_hd95_of_a_shifted_box_is_the_shift_in_millimeters(axis: int, steps: int) -> None:
    reference = box(slice(1, 6), slice(3, 12), slice(4, 20))
    scores = compare(reference, np.roll(reference, steps, axis))
    assert scores.hd95_mm == pytest.approx(steps * SPACING[axis])


def test_equal_masks() -> None:
    assert compare(blobs(0)[0], blobs(0)[0], tolerance_mm=0) == CaseMetrics(1, 1, 0, 0, 1)


def test_two_dimensions() -> None:
    reference = np.zeros((20, 30), dtype=bool)
    reference[4:5, 3:20] = True
    scores = compare(reference, np.roll(reference, 3, axis=0), spacing_mm=(0.7, 2.0))
    assert (scores.hd95_mm, scores.asd_mm) == (pytest.approx(2.1), pytest.approx(2.1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_a_2d_image(axis: int) -> None:
    reference = np.zeros((20, 30), dtype=bool)
    reference[4:11, 3:20] = True
    prediction = np.roll(reference, 3, axis=0)
    spacing = [0.7, 2.0]
    expected = compare(reference, prediction, spacing_mm=spacing)
    spacing.insert(axis, 5.0)
    masks = (np.expand_dims(mask, axis) for mask in (reference, prediction))
    assert compare(*masks, spacing_mm=spacing) == expected


# ---- a reference made of loops


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxel indices, in the order of the array; a voxel of which a face neighbor is outside, or beyond the image."""
    return np.argwhere(mask & ~binary_erosion(mask))


def distances_mm(a: np.ndarray, b: np.ndarray) -> list[float]:
    return [min(math.dist(p * SPACING, q * SPACING) for q in surface(b)) for p in surface(a)]


def test_against_loops_over_all_pairs_of_surface_voxels() -> None:
    reference, prediction = (mask[:6, :7, :11] for mask in blobs(1))
    there, back = distances_mm(reference, prediction), distances_mm(prediction, reference)
    scores = compare(reference, prediction, tolerance_mm=0.9)
    shared, sizes = (reference & prediction).sum(), reference.sum() + prediction.sum()
    assert scores.dice == pytest.approx(2 * shared / sizes)
    assert scores.jaccard == pytest.approx(shared / (sizes - shared))
    assert scores.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert scores.asd_mm == pytest.approx(np.mean(there + back))
    assert scores.nsd == pytest.approx(np.mean(np.array(there + back) <= 0.9))


@pytest.mark.parametrize("seed", range(3))
def test_cropping_changes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = blobs(seed)
    cropped = compare(*masks)
    monkeypatch.setattr(module, "_joint_box", lambda mask: (slice(None),) * mask.ndim)
    assert compare(*masks) == cropped


def test_swapping_the_two_changes_nothing() -> None:
    a, b = blobs(2)
    assert astuple(compare(a, b)) == pytest.approx(astuple(compare(b, a)))


def test_other_labels_are_background() -> None:
    reference, prediction = (np.where(mask, 3, 0) for mask in blobs(0))
    alone = compare(reference, prediction, label=3)
    reference[0, 15:], prediction[9, 12:] = 1, 2
    assert compare(reference, prediction, label=3) == alone


# ---- empty structures


def test_absent_from_both_is_not_counted() -> None:
    empty = np.zeros(SHAPE)
    assert all(math.isnan(value) for value in vars(compare(empty, empty)).values())


@pytest.mark.parametrize("missing", ["reference", "prediction"])
def test_absent_from_one_costs_the_diagonal(missing: str) -> None:
    pair = {"reference": blobs(0)[0], "prediction": blobs(0)[0], missing: np.zeros(SHAPE)}
    diagonal_mm = math.sqrt(25**2 + 20**2 + 24**2)
    assert compare(**pair) == CaseMetrics(0, 0, pytest.approx(diagonal_mm), pytest.approx(diagonal_mm), 0)


def test_no_present_structure_is_farther_than_a_missing_one() -> None:
    corners = np.zeros((2, *SHAPE), dtype=bool)
    corners[0, 0, 0, 0] = corners[1, -1, -1, -1] = True
    assert compare(*corners).hd95_mm < compare(corners[0], np.zeros(SHAPE)).hd95_mm


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": np.zeros((10, 20, 31), int)}, r"one shape.*\(10, 20, 30\) and \(10, 20, 31\)"),
        ({"reference": np.zeros((3,), int), "prediction": np.zeros((3,), int)}, "2D or 3D"),
        ({"prediction": np.zeros(SHAPE)}, "hold integers, got float64"),
        ({"spacing_mm": (1.0, 1.0)}, "3 positive voxel sizes"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "3 positive voxel sizes"),
        ({"tolerance_mm": -1.0}, "0 or more, got -1.0"),
        ({"tolerance_mm": math.inf}, "0 or more, got inf"),
    ],
)
def test_what_cannot_be_compared(changes: dict[str, object], message: str) -> None:
    empty = np.zeros(SHAPE, dtype=int)
    options = {"reference": empty, "prediction": empty, "label": 1, "spacing_mm": SPACING, "tolerance_mm": 1.0}
    with pytest.raises(ValueError, match=message):
        segmentation_metrics(**{**options, **changes})  # type: ignore[arg-type]


# ---- files


def write(file: Path, array: np.ndarray, *, turned_degrees: float = 0.0, **geometry: object) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.get("spacing", SPACING[::-1]))
    image.SetOrigin(geometry.get("origin", (-5.0, 12.5, 40.0)))
    angle = np.deg2rad(30 + turned_degrees)
    image.SetDirection([np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1])
    file.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(file))
    return file


def maps() -> tuple[np.ndarray, np.ndarray]:
    """A head that is shifted and a tail that is not found."""
    reference = np.zeros(SHAPE, dtype=np.uint8)
    reference[2:6, 3:9, 4:20] = 1
    prediction = np.roll(reference, 2, axis=0)
    reference[7, 12:15, 8:20] = 2
    return reference, prediction


def test_a_case_has_a_row_a_label(tmp_path: Path) -> None:
    reference, prediction = maps()
    files = write(tmp_path / "case.7.nii.gz", reference), write(tmp_path / "other.nii.gz", prediction.astype(float))
    head, tail = evaluate_case(*files, LABELS, 1.0)
    expected = segmentation_metrics(reference, prediction, label=1, spacing_mm=SPACING, tolerance_mm=1.0)
    assert list(head) == ["case", "label", *module.METRICS]
    assert (head.pop("case"), head.pop("label")) == ("case.7", "head")
    assert head == pytest.approx(vars(expected), rel=1e-5)
    assert head["hd95_mm"] == pytest.approx(5.0)
    assert (tail["label"], tail["dice"], tail["hd95_mm"]) == (
        "tail",
        0,
        pytest.approx(math.sqrt(25**2 + 20**2 + 24**2)),
    )


def test_regions_are_unions_and_what_nobody_annotated_does_not_count(tmp_path: Path) -> None:
    reference, prediction = maps()
    files = write(tmp_path / "a.nii.gz", reference), write(tmp_path / "b.nii.gz", prediction)
    whole, tail = evaluate_case(*files, {"background": 0, "whole": [1, 2], "tail": 2}, 1.0)
    together = [(array > 0).astype(np.uint8) for array in (reference, prediction)]
    expected = segmentation_metrics(*together, label=1, spacing_mm=SPACING, tolerance_mm=1.0)
    assert whole == {"case": "a", "label": "whole", **vars(expected)}
    assert tail["dice"] == 0

    partly = reference.copy()
    partly[:, :, 12:] = 9  # not annotated; the prediction goes on there
    rows = evaluate_case(write(tmp_path / "c.nii.gz", partly), files[1], LABELS, 1.0, ignored=9)
    known = [np.where(partly == 9, 0, array) for array in (reference, prediction)]
    for row, label in zip(rows, (1, 2), strict=True):
        expected = segmentation_metrics(*known, label=label, spacing_mm=SPACING, tolerance_mm=1.0)
        assert row["dice"] == expected.dice


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": (0.8, 1.0, 2.51)}, "spacing"),
        ({"origin": (-5.0, 12.5, 40.01)}, "origin"),
        ({"turned_degrees": 0.5}, "direction"),
    ],
)
def test_other_geometry_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    reference, prediction = maps()
    files = write(tmp_path / "a.nii.gz", reference), write(tmp_path / "b.nii.gz", prediction, **change)  # type: ignore[arg-type]
    with pytest.raises(DualCLError, match=rf"a\.nii\.gz and .*b\.nii\.gz differ in {message}"):
        evaluate_case(*files, LABELS, 1.0)


def test_other_size_is_refused(tmp_path: Path) -> None:
    reference, prediction = maps()
    files = write(tmp_path / "a.nii.gz", reference), write(tmp_path / "b.nii.gz", prediction[:, :, 1:])
    with pytest.raises(DualCLError, match=r"differ in size: \[30\.0, 20\.0, 10\.0\] and \[29\.0"):
        evaluate_case(*files, LABELS, 1.0)


def test_rounding_of_the_header_is_accepted(tmp_path: Path) -> None:
    reference, prediction = maps()
    files = (
        write(tmp_path / "a.nii.gz", reference),
        write(tmp_path / "b.nii.gz", prediction, origin=(-5, 12.5, 40.002)),
    )
    assert len(evaluate_case(*files, LABELS, 1.0)) == 2


def test_fractions_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    reference = write(tmp_path / "a.nii.gz", maps()[0])
    with pytest.raises(DualCLError, match=r"b\.nii\.gz holds fractions"):
        evaluate_case(reference, write(tmp_path / "b.nii.gz", maps()[0] * 0.5), LABELS, 1.0)
    (tmp_path / "c.nii.gz").write_bytes(b"half written")
    with pytest.raises(DualCLError, match=r"c\.nii\.gz cannot be read"):
        evaluate_case(reference, tmp_path / "c.nii.gz", LABELS, 1.0)


def evaluate(folder: Path, *cases: str, **options: Any) -> list[tuple[str, str]]:
    rows = evaluate_folder(folder / "references", folder / "predictions", cases, LABELS, tolerance_mm=1.0, **options)
    return [(row["case"], row["label"]) for row in rows]


def write_folders(folder: Path, cases: str, ending: str = ".nii.gz") -> None:
    for case in cases:
        write(folder / "references" / f"{case}{ending}", maps()[0])
        write(folder / "predictions" / f"{case}{ending}", maps()[1])


def test_a_folder_is_evaluated_in_sorted_order_and_only_where_asked(tmp_path: Path) -> None:
    write_folders(tmp_path, "ba")
    for folder in ("references", "predictions"):
        (tmp_path / folder / "z.nii.gz").write_bytes(b"not to be opened")
    assert evaluate(tmp_path, "b", "a") == [("a", "head"), ("a", "tail"), ("b", "head"), ("b", "tail")]


def test_another_file_ending(tmp_path: Path) -> None:
    write_folders(tmp_path, "a", ending=".mha")
    assert evaluate(tmp_path, "a", file_ending=".mha") == [("a", "head"), ("a", "tail")]


@pytest.mark.parametrize("missing", ["references", "predictions"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write_folders(tmp_path, "ab")
    (tmp_path / missing / "a.nii.gz").unlink()
    with pytest.raises(DualCLError, match=rf"{missing}.a\.nii\.gz is missing"):
        evaluate(tmp_path, "b", "a")


def test_no_case_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match=r"No case of .*references was asked for"):
        evaluate(tmp_path)
