"""Which series a segmentation was drawn on: by the series and images it names, its frame of reference, its position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_dualcl.dataset_conversion.dicom.frames import read_groups
from nnunet_dualcl.dataset_conversion.dicom.grid import OFF_GRID, Grid, mark_names
from nnunet_dualcl.dataset_conversion.dicom.references import is_named, named_images
from nnunet_dualcl.dataset_conversion.dicom.rtstruct import contour_points
from nnunet_dualcl.dataset_conversion.dicom.scan import Export, Series
from nnunet_dualcl.dataset_conversion.dicom.seg import frame_positions
from nnunet_dualcl.dataset_conversion.dicom.segmentation import Segmentation
from nnunet_dualcl.errors import DualCLError


def owner(
    segmentation: Segmentation, export: Export, channel_of: Mapping[Series, int | None] | None = None
) -> tuple[Series, str]:
    """The one series that a segmentation belongs to, and what a report should say of it, empty where it is certain.

    Args:
        segmentation: of which the series is looked for.
        export: all that there is.
        channel_of: which series are channels; of equally good volumes in the one series that it names, the first that
            is one is taken, where no two of them are for the same channel.

    Raises:
        DualCLError: there is none, it was left out, several come into question, or the object is damaged.
    """
    try:
        return _owner(segmentation, export, channel_of or {})
    except DualCLError:
        raise
    except Exception as error:  # a damaged object fails in any way, with text that may name anything
        raise DualCLError(f"cannot be read ({type(error).__name__}): damaged? Export it again") from None


def _owner(segmentation: Segmentation, export: Export, channel_of: Mapping[Series, int | None]) -> tuple[Series, str]:
    own = [series for series in export.series if series.patient == segmentation.patient]
    named = [series for series in own if series.uid in segmentation.series]
    left_out = bool(segmentation.series & export.refused_series)
    if not named and left_out:
        raise DualCLError("belongs to a series that was left out (see there)")
    if len(named) == 1 and not left_out:
        return named[0], ""
    doubt = "" if named else "names no series that is here"
    images = named_images(segmentation)
    holding = [series for series in own if any(is_named(each, images) for each in series.slices)]
    if len(holding) == 1:
        return holding[0], doubt
    if left_out and images and not holding:
        raise DualCLError("belongs to a part of a series that was left out (see there)")
    if len(named) == 1:
        return named[0], ""
    frame = [series for series in own if series.frame_of_reference in segmentation.frames_of_reference]
    study = [series for series in own if series.study == segmentation.study]
    candidates = holding or named or frame or study
    if not candidates:
        raise DualCLError("its series is not among the files, or has another patient ID. Export the two together")
    if len(candidates) == 1 and frame and not segmentation.series:
        return candidates[0], doubt
    # several volumes in one series, a lost reference, or UIDs that an anonymization changed on one side only
    points = _points(segmentation)
    fitting = [series for series in candidates if _lies_on(points, series.grid)]
    if len(fitting) == 1:
        return fitting[0], doubt
    if len({series.uid for series in named}) == 1:
        return _chosen(named, fitting, channel_of)
    raise DualCLError(
        (f"names {len(named)} series that are here" if named else doubt)
        + f", and by position {len(fitting)} of {len(candidates)} come into question. Export it together with the one "
        "series it was drawn on"
    )


def _chosen(
    named: Sequence[Series], fitting: Sequence[Series], channel_of: Mapping[Series, int | None]
) -> tuple[Series, str]:
    """Of the volumes of one series that come into question the one that the user chose as a channel."""
    differences = mark_names(series.marks for series in named)
    several = f"names a series of {len(named)} volumes, which differ in {', '.join(differences)}"
    numbers = {series: number for series in fitting if (number := channel_of.get(series)) is not None}
    if numbers and len(set(numbers.values())) == len(numbers):  # all of them are of one case
        return min(numbers, key=lambda series: numbers[series]), several
    raise DualCLError(
        f"{several}; {len(fitting)} of them come into question. Choose one as a channel, as in --channel "
        f"NAME='{differences[0]}=VALUE$' (--dry-run shows the values), or export it as a series of its own"
    )


def _points(segmentation: Segmentation) -> np.ndarray:
    structure_set = segmentation.kind == "RTSTRUCT"
    points: np.ndarray = (
        contour_points(segmentation.path) if structure_set else frame_positions(read_groups(segmentation.path))
    )
    return points


def _lies_on(points: np.ndarray, grid: Grid) -> bool:
    """Do all points lie on slices of the grid, inside of it?"""
    indices = grid.indices(points)
    if not len(indices) or np.abs(indices[:, 2] - indices[:, 2].round()).max() > OFF_GRID:
        return False
    margin = 0.5 + OFF_GRID
    return bool((indices >= -margin).all() and (indices <= np.array(grid.size) - 1 + margin).all())
