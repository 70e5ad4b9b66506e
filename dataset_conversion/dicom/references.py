"""Which images (SOP instances, frames of them) a segmentation says that it was drawn on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pydicom

from nnunet_dualcl.dataset_conversion.dicom.frames import frame_groups, functional_group
from nnunet_dualcl.dataset_conversion.dicom.grid import Slice
from nnunet_dualcl.dataset_conversion.dicom.header import text
from nnunet_dualcl.dataset_conversion.dicom.segmentation import Segmentation, referenced_series

Images = frozenset[tuple[str, int | None]]
"""SOP instance UID and index of a frame from 0, None for the whole instance."""


def named_images(segmentation: Segmentation) -> Images:
    """Those of its contours or frames, else those in its lists of a whole series, which may hold several volumes."""
    header = pydicom.dcmread(segmentation.path, stop_before_pixels=True, force=True)
    exact = _images(_of_contours(header) if segmentation.kind == "RTSTRUCT" else _of_frames(header))
    if exact:
        return exact
    name = "ContourImageSequence" if segmentation.kind == "RTSTRUCT" else "ReferencedInstanceSequence"
    return _images(chain.from_iterable(series.get(name) or [] for series in referenced_series(header)))


def is_named(each: Slice, images: Images) -> bool:
    """Whether a slice is one of the images."""
    return (each.uid, None) in images or (each.frame is not None and (each.uid, each.frame) in images)


def _of_contours(header: Any) -> Iterator[Any]:
    for roi in header.get("ROIContourSequence") or []:
        for contour in roi.get("ContourSequence") or []:
            yield from contour.get("ContourImageSequence") or []


def _of_frames(header: Any) -> Iterator[Any]:
    for groups in frame_groups(header):
        yield from functional_group(groups, "DerivationImageSequence", "SourceImageSequence") or []


def _images(items: Iterable[Any]) -> Images:
    found: set[tuple[str, int | None]] = set()
    for item in items:
        uid = text(item, "ReferencedSOPInstanceUID")
        frames = item.get("ReferencedFrameNumber")
        if uid and frames is None:
            found.add((uid, None))
        elif uid:
            found |= {(uid, int(number) - 1) for number in ([frames] if isinstance(frames, int) else frames)}
    return frozenset(found)
