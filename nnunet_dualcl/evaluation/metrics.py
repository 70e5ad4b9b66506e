"""Overlap and surface distance of one label of one case, and of folders of cases, in millimeters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_dualcl.errors import DualCLError

METRICS = ("dice", "jaccard", "hd95_mm", "asd_mm", "nsd")
"""Fields of ``CaseMetrics``, and the columns of every table of scores."""

EMPTY_RULE = (
    "A structure that is in neither the reference nor the prediction is not counted. A structure that is in one of "
    "the two only scores 0 in Dice, Jaccard and NSD, and its distances are the length of the image's diagonal in mm, "
    "so that a missing structure cannot improve a mean. Where methods are compared case by case, one that rightly "
    "leaves out a structure that another marks has the best score there."
)
"""What is done where a structure is empty; reports print it."""

BEST = {"dice": 1.0, "jaccard": 1.0, "hd95_mm": 0.0, "asd_mm": 0.0, "nsd": 1.0}
"""Value of each metric where prediction and reference agree."""

_VOXEL_TOLERANCE = 1e-2
"""Largest difference of spacing and origin between two files of one case, in smallest voxel edges."""
_DIRECTION_TOLERANCE = 1e-3
"""The same of direction cosines."""
_MARGIN_VOXELS = 1
"""Around the joint bounding box; one voxel of background, so that the crop ends where the structures end."""


@dataclass(frozen=True)
class CaseMetrics:
    """Scores of one label of one case; NaN where the label is in neither segmentation.

    ``dice``, ``jaccard`` and ``nsd`` lie in [0, 1], ``hd95_mm`` and ``asd_mm`` are in millimeters.
    """

    dice: float
    jaccard: float
    hd95_mm: float
    asd_mm: float
    nsd: float


def segmentation_metrics(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    label: int,
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> CaseMetrics:
    """Compare two label maps in one label.

    Dice is 2 |A and B| / (|A| + |B|) and Jaccard |A and B| / |A or B|, counted in voxels. The surface metrics are
    MONAI's. It takes for the surface the voxels of a mask of which a face neighbor is outside (beyond the image is
    outside), each counted once whatever its area in mm, and measures from voxel center to voxel center. With D(A, B)
    the distances of A's surface voxels to the nearest surface voxel of B:

    - ``hd95_mm``: the larger of the two 95th percentiles of D(A, B) and of D(B, A), interpolated linearly;
    - ``asd_mm``: the mean of D(A, B) and D(B, A) pooled, so the larger surface weighs more;
    - ``nsd``: the share of the pooled distances that are at most ``tolerance_mm``.

    A 3D image of one slice is compared as the 2D image that it is; else all of its voxels would lie on the surface.

    An empty structure follows ``EMPTY_RULE``: absent from both gives NaN in every field; absent from one gives 0
    and, as distance, the diagonal of the image (its voxels times their size).

    Args:
        reference: integers, (z, y, x) or (y, x).
        prediction: integers, same shape.
        label: value that is compared; all others are background.
        spacing_mm: voxel size, axes in the order of the arrays.
        tolerance_mm: of ``nsd``; a distance equal to it counts as correct.

    Raises:
        ValueError: shapes, number types, spacing or tolerance do not fit.

    Source: Maier-Hein et al., Metrics reloaded, Nature Methods 2024 (HD95, ASSD, NSD).
    """
    _check(reference, prediction, spacing_mm, tolerance_mm)
    if reference.ndim == 3 and 1 in reference.shape:
        flat = reference.shape.index(1)
        reference, prediction = reference.squeeze(flat), prediction.squeeze(flat)
        spacing_mm = [step for axis, step in enumerate(spacing_mm) if axis != flat]
    a, b = reference == label, prediction == label
    if not a.any() and not b.any():
        return CaseMetrics(*[float("nan")] * len(METRICS))
    if not a.any() or not b.any():
        diagonal_mm = float(np.linalg.norm(np.multiply(reference.shape, spacing_mm)))
        return CaseMetrics(dice=0.0, jaccard=0.0, hd95_mm=diagonal_mm, asd_mm=diagonal_mm, nsd=0.0)
    box = _joint_box(a | b)
    a, b = a[box], b[box]
    shared, together = int((a & b).sum()), int((a | b).sum())
    hd95_mm, asd_mm, nsd = _surface_metrics(a, b, [float(step) for step in spacing_mm], float(tolerance_mm))
    return CaseMetrics(2 * shared / (shared + together), shared / together, hd95_mm, asd_mm, nsd)


def evaluate_case(
    reference_file: Path,
    prediction_file: Path,
    labels: Mapping[str, int | Sequence[int]],
    tolerance_mm: float,
    *,
    ignored: int | None = None,
) -> list[dict[str, Any]]:
    """Compare two files in every label.

    Args:
        reference_file: any format that SimpleITK reads; the case is named after it, without ``.nii.gz``.
        prediction_file: on the same grid of voxels.
        labels: name to value, or to the values that make up a region; 0, the background, is passed over.
        tolerance_mm: of the normalized surface Dice.
        ignored: value of the reference where nobody annotated; these voxels are background in both.

    Returns:
        A row a label, in the order given, with the keys ``case``, ``label`` (its name) and those of ``METRICS``.

    Raises:
        DualCLError: a file is missing, cannot be read or holds fractions, or size, spacing, origin or direction of
            the two differ: by more than a hundredth of a voxel, directions by more than 1e-3.
    """
    reference, prediction = read_image(reference_file), read_image(prediction_file)
    check_geometry(reference, prediction, reference_file, prediction_file)
    arrays = [_labels_of(reference, reference_file), _labels_of(prediction, prediction_file)]
    if ignored is not None:
        known = arrays[0] != ignored
        arrays = [np.where(known, array, 0) for array in arrays]
    case = reference_file.name.removesuffix(".gz").rpartition(".")[0]
    rows = []
    for name, value in labels.items():
        if value != 0:
            a, b = (np.isin(array, value) for array in arrays)
            scores = segmentation_metrics(
                a, b, label=1, spacing_mm=reference.GetSpacing()[::-1], tolerance_mm=tolerance_mm
            )
            rows.append({"case": case, "label": name, **asdict(scores)})
    return rows


def evaluate_folder(
    references: Path,
    predictions: Path,
    cases: Iterable[str],
    labels: Mapping[str, int | Sequence[int]],
    *,
    tolerance_mm: float,
    file_ending: str = ".nii.gz",
    ignored: int | None = None,
) -> list[dict[str, Any]]:
    """Compare the cases named, in sorted order; other files of the two folders are not opened.

    Args:
        references: folder of references, named ``CASE`` and ``file_ending``.
        predictions: folder of predictions, named alike.
        cases: names of the cases.
        labels: name to value or values, as in ``evaluate_case``.
        tolerance_mm: of the normalized surface Dice.
        file_ending: of both, with its dot.
        ignored: as in ``evaluate_case``.

    Returns:
        The rows of ``evaluate_case``, case after case.

    Raises:
        DualCLError: there is no case, or as ``evaluate_case``; a missing file is named.
    """
    names = sorted(cases)
    if not names:
        raise DualCLError(f"No case of {references} was asked for. Name the test cases.")
    rows = []
    for name in names:
        file = f"{name}{file_ending}"
        rows += evaluate_case(references / file, predictions / file, labels, tolerance_mm, ignored=ignored)
    return rows


def _surface_metrics(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: list[float], tolerance_mm: float
) -> tuple[float, float, float]:
    """HD95 and ASD in mm, and NSD, of two masks that are not empty; in single precision, as MONAI computes them."""
    # here, because importing MONAI takes seconds, which readers of results need not wait
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    y, y_pred = (torch.from_numpy(mask.copy())[None, None] for mask in (reference, prediction))
    with warnings.catch_warnings():
        # MONAI calls a function of its own in a way that it deprecated
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing_mm)
        asd = compute_average_surface_distance(y_pred, y, include_background=True, symmetric=True, spacing=spacing_mm)
        nsd = compute_surface_dice(y_pred, y, [tolerance_mm], include_background=True, spacing=spacing_mm)
    return hd95.item(), asd.item(), nsd.item()


def _joint_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The mask's bounding box and a margin, within the image; the mask is not empty."""
    box = []
    for axis, size in enumerate(mask.shape):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(0, filled[0] - _MARGIN_VOXELS), min(size, filled[-1] + 1 + _MARGIN_VOXELS)))
    return tuple(box)


def _check(reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float) -> None:
    if reference.shape != prediction.shape or reference.ndim not in (2, 3):
        raise ValueError(f"Two maps of one shape, 2D or 3D, are needed, got {reference.shape} and {prediction.shape}.")
    for array in (reference, prediction):
        if array.dtype.kind not in "iub":
            raise ValueError(f"Label maps hold integers, got {array.dtype}.")
    if len(spacing_mm) != reference.ndim or not all(np.isfinite(step) and step > 0 for step in spacing_mm):
        raise ValueError(f"{reference.ndim} positive voxel sizes are needed, got {tuple(spacing_mm)}.")
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"The tolerance is a length in mm, 0 or more, got {tolerance_mm}.")


def read_image(file: Path) -> sitk.Image:
    """An image file.

    Raises:
        DualCLError: missing or unreadable.
    """
    if not file.is_file():
        raise DualCLError(f"{file} is missing. Write or predict it again, or take it off the list of cases.")
    with _named_in_errors(file):
        return sitk.ReadImage(str(file))


def read_header(file: Path) -> sitk.ImageFileReader:
    """Size, spacing, origin and direction of an image file, without its voxels.

    Raises:
        DualCLError: unreadable.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    with _named_in_errors(file):
        reader.ReadImageInformation()
    return reader


@contextmanager
def _named_in_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DualCLError(f"{file} cannot be read as an image; write it again. SimpleITK says: {error}") from error


def _labels_of(image: sitk.Image, file: Path) -> np.ndarray:
    """Integers (z, y, x) of an image; some tools store labels as floating-point numbers."""
    array: np.ndarray = sitk.GetArrayFromImage(image)
    if array.dtype.kind in "iub":
        return array
    whole = array.astype(np.int64)
    if not np.array_equal(whole, array):
        raise DualCLError(f"{file} holds fractions; label maps hold whole numbers. Is it an image or a probability?")
    return whole


def check_geometry(
    reference: sitk.Image | sitk.ImageFileReader,
    other: sitk.Image | sitk.ImageFileReader,
    reference_file: Path,
    other_file: Path,
) -> None:
    """Refuse two files of one case, read whole or their headers, that are not on one grid of voxels.

    Raises:
        DualCLError: naming both, and what differs.
    """
    edge = min(reference.GetSpacing())
    tolerances = {
        "Size": 0.0,
        "Spacing": _VOXEL_TOLERANCE * edge,
        "Origin": _VOXEL_TOLERANCE * edge,
        "Direction": _DIRECTION_TOLERANCE,
    }
    for name, tolerance in tolerances.items():
        ours, theirs = (np.array(getattr(image, f"Get{name}")(), dtype=float) for image in (reference, other))
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=0, atol=tolerance):
            raise DualCLError(
                f"{reference_file} and {other_file} differ in {name.lower()}: {ours.tolist()} and {theirs.tolist()}. "
                "A segmentation lies on the voxels of its image; resample it, or take the image that belongs to it."
            )
