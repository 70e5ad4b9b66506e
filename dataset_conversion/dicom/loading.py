"""One case from its DICOM files: channels, and labels out of one or several segmentation objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_dualcl.dataset_conversion.dicom.grid import Grid, Slice
from nnunet_dualcl.dataset_conversion.dicom.rtstruct import contour_labels
from nnunet_dualcl.dataset_conversion.dicom.seg import segment_labels
from nnunet_dualcl.dataset_conversion.dicom.series import read_series
from nnunet_dualcl.dataset_conversion.labels import merge_structures
from nnunet_dualcl.dataset_conversion.plan import Scan
from nnunet_dualcl.errors import DualCLError


@dataclass(frozen=True)
class Channel:
    """What a series is read from, without anything that identifies it but its files' paths."""

    slices: tuple[Slice, ...]
    grid: Grid
    modality: str


@dataclass(frozen=True)
class Source:
    """One segmentation object: RTSTRUCT or SEG, and which of its structures have which label value."""

    path: Path
    kind: str
    values: Mapping[int, int]


def load(
    channels: tuple[Channel, ...],
    sources: tuple[Source, ...],
    grid: Grid,
    threshold: float,
    require_all: bool,
    notes: tuple[str, ...],
) -> Scan:
    """Read one case.

    Args:
        channels: in order.
        sources: of its labels; none for an unlabeled case.
        grid: of the series that the labels were drawn on.
        threshold: of fractional segments.
        require_all: refuse the case where a label has no voxel, such as for an ROI that was named and never drawn.
        notes: of the plan, to which those of reading are added.

    Raises:
        DualCLError: why the case cannot be used; names no file, patient or identifier.
    """
    said = list(notes)
    images = []
    for channel in channels:
        image, more = read_series(channel.slices, channel.grid, channel.modality)
        images.append(image)
        said += more
    label = None
    for source in sources:
        try:
            more_labels, own, more = _labels(source, grid, threshold)
        except DualCLError:
            raise
        except Exception as error:  # a damaged object fails in any way, with text that may name anything
            raise DualCLError(
                f"the {source.kind} cannot be read ({type(error).__name__}): damaged? Export it again."
            ) from None
        said += more
        if label is None:
            label, target = more_labels, own
        elif own != target:
            raise DualCLError("its segmentation objects are on different grids. Keep one, by --structure-set REGEX.")
        else:
            said += _merge(label, more_labels)
    if label is not None and require_all:
        wanted = {value for source in sources for value in source.values.values()}
        empty = sorted(wanted - set(np.unique(label).tolist()))
        if empty:
            raise DualCLError(
                f"no voxel has the label {', '.join(map(str, empty))}: named and never drawn? Take the case out, or "
                "repeat without --require-all-labels."
            )
    return Scan(tuple(images), None if label is None else target.image(label), tuple(said))


def _labels(source: Source, grid: Grid, threshold: float) -> tuple[np.ndarray, Grid, list[str]]:
    labels: np.ndarray
    notes: list[str]
    if source.kind == "SEG":
        labels, own, notes = segment_labels(source.path, source.values, grid, threshold=threshold)
        return labels, own, notes
    labels, notes = contour_labels(source.path, source.values, grid)
    return labels, grid, notes


def _merge(label: np.ndarray, other: np.ndarray) -> list[str]:
    """Put ``other`` into ``label`` (both z, y, x), smaller values first; slice by slice, as whole volumes are large."""
    contested = 0
    for own, added in zip(label, other, strict=True):
        values = np.union1d(own[own != 0], added[added != 0])
        masks = ((int(value), each == value) for value in values for each in (own, added))
        merged, overlapping = merge_structures(masks, own.shape)
        own[:] = merged
        contested += overlapping
    return [f"{contested} voxels are of several objects; the label named first has them"] if contested else []
