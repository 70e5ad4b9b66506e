"""The slices in a CT, MR or PET file, from its header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_dualcl.dataset_conversion.dicom.frames import frame_groups, functional_group, read_groups
from nnunet_dualcl.dataset_conversion.dicom.grid import Slice, plane_axes
from nnunet_dualcl.dataset_conversion.dicom.header import MARKS, text
from nnunet_dualcl.errors import DualCLError

_FRAME_MARKS = (
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
)
"""What ``MARKS`` are for frames of one file: functional group and tag."""
_WHOLE = re.compile(r"\.0*$")
"""What 20.0 has more than 20."""


def slices_of(path: Path, header: Any, multi_frame: bool) -> Iterator[Slice]:
    """Slices of a file.

    Raises:
        DualCLError: it is a localizer, a color image, or has no position.
    """
    if "LOCALIZER" in text(header, "ImageType"):
        raise DualCLError("a localizer (scout), which is no volume")
    if header.get("SamplesPerPixel", 1) != 1:
        raise DualCLError("a color image, such as a screenshot or a fused view")
    groups = frame_groups(read_groups(path)) if multi_frame else [(header,)]
    if not multi_frame and int(header.get("NumberOfFrames") or 1) > 1:
        raise DualCLError("several frames in a class for one, whose positions nobody states")
    if not groups:
        raise DualCLError("several frames whose positions nobody states")
    for index, group in enumerate(groups):
        yield _slice(path, header, index if multi_frame else None, group)


def _slice(path: Path, header: Any, frame: int | None, groups: tuple[Any, ...]) -> Slice:
    def tag(sequence: str, name: str) -> Any:
        return functional_group(groups, sequence, name) if frame is not None else header.get(name)

    position = tag("PlanePositionSequence", "ImagePositionPatient")
    orientation = tag("PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = tag("PixelMeasuresSequence", "PixelSpacing")
    if not (position and orientation and spacing and header.get("Rows") and header.get("Columns")):
        raise DualCLError("its header lacks position, orientation or pixel spacing: derived, or a screenshot?")
    if min(float(number) for number in spacing) <= 0:
        raise DualCLError("its header states a pixel spacing of 0")
    along_row, along_column = plane_axes(orientation)
    slope, intercept = (tag("PixelValueTransformationSequence", name) for name in ("RescaleSlope", "RescaleIntercept"))
    marks = [(name, str(tag(sequence, name))) for sequence, name in _FRAME_MARKS]
    marks += [(name, text(header, name)) for name in MARKS]
    return Slice(
        path=path,
        frame=frame,
        uid=text(header, "SOPInstanceUID"),
        position=(float(position[0]), float(position[1]), float(position[2])),
        along_row=along_row,
        along_column=along_column,
        spacing_xy=(float(spacing[1]), float(spacing[0])),
        size_xy=(int(header.Columns), int(header.Rows)),
        rescale=(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
        photometric=text(header, "PhotometricInterpretation"),
        marks=tuple(name + "=" + _WHOLE.sub("", value) for name, value in marks),
    )
