"""Which series a segmentation was drawn on: by the series it names, else its frame of reference, else by position."""

from __future__ import annotations

import numpy as np

from nnunet_dualcl.dataset_conversion.dicom.frames import read_groups
from nnunet_dualcl.dataset_conversion.dicom.grid import OFF_GRID, Grid
from nnunet_dualcl.dataset_conversion.dicom.rtstruct import contour_points
from nnunet_dualcl.dataset_conversion.dicom.scan import Export, Series
from nnunet_dualcl.dataset_conversion.dicom.seg import frame_positions
from nnunet_dualcl.dataset_conversion.dicom.segmentation import Segmentation
from nnunet_dualcl.errors import DualCLError


def owner(segmentation: Segmentation, export: Export) -> Series:
    """The one series that a segmentation belongs to.

    Raises:
        DualCLError: there is none, it was left out, or several come into question.
    """
    own = [series for series in export.series if series.patient == segmentation.patient]
    named = [series for series in own if series.uid in segmentation.series]
    if not named and segmentation.series & export.refused_series:
        raise DualCLError("belongs to a series that was left out (see there)")
    if len(named) == 1:
        return named[0]
    frame = [series for series in own if series.frame_of_reference in segmentation.frames_of_reference]
    study = [series for series in own if series.study == segmentation.study]
    candidates = named or frame or study
    if not candidates:
        raise DualCLError("its series is not among the files, or has another patient ID. Export the two together")
    if len(candidates) == 1 and frame and not segmentation.series:
        return candidates[0]
    # several volumes in one series, a lost reference, or UIDs that an anonymization changed on one side only
    points = _points(segmentation)
    fitting = [series for series in candidates if _lies_on(points, series.grid)]
    if len(fitting) == 1:
        return fitting[0]
    raise DualCLError(
        f"names no series that is here, and by position {len(fitting)} of {len(candidates)} come into question. Export "
        "it together with the one series it was drawn on"
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
