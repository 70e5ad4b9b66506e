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
from nnunet_dualcl.dataset_conversion.labels import merge_labels
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
    """One segmentation object: RTSTRUCT or SEG, which of its structures have which label value, its channel."""

    path: Path
    kind: str
    values: Mapping[int, int]
    grid: Grid
    channel: str


def load(
    channels: tuple[Channel, ...],
    sources: tuple[Source, ...],
    threshold: float,
    require_all: bool,
    notes: tuple[str, ...],
) -> Scan:
    """Read one case.

    Args:
        channels: in order.
        sources: of its labels; none for an unlabeled case.
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
    drawn: list[tuple[str, np.ndarray, Grid]] = []
    for source in sources:
        try:
            labels, own, more = _labels(source, threshold)
        except DualCLError:
            raise
        except Exception as error:  # a damaged object fails in any way, with text that may name anything
            raise DualCLError(
                f"the {source.kind} cannot be read ({type(error).__name__}): damaged? Export it again."
            ) from None
        said += more
        same = next((there for _, there, grid in drawn if grid == own), None)
        if same is None:
            drawn.append((source.channel, labels, own))
        else:
            said += merge_labels(same, labels)
    if require_all:
        wanted = {value for source in sources for value in source.values.values()}
        empty = sorted(wanted.difference(*(np.unique(labels).tolist() for _, labels, _ in drawn)))
        if empty:
            raise DualCLError(
                f"no voxel has the label {', '.join(map(str, empty))}: named and never drawn? Take the case out, or "
                "repeat without --require-all-labels."
            )
    first, *others = [
        (f"the label drawn on channel {channel}", grid.image(labels)) for channel, labels, grid in drawn
    ] or [("", None)]
    return Scan(tuple(images), first[1], tuple(said), tuple(others))


def _labels(source: Source, threshold: float) -> tuple[np.ndarray, Grid, list[str]]:
    labels: np.ndarray
    notes: list[str]
    if source.kind == "SEG":
        labels, own, notes = segment_labels(source.path, source.values, source.grid, threshold=threshold)
        return labels, own, notes
    labels, notes = contour_labels(source.path, source.values, source.grid)
    return labels, source.grid, notes
