"""What an RTSTRUCT or DICOM-SEG object says about itself, from its header: structures, references, date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_dualcl.dataset_conversion.dicom.header import text
from nnunet_dualcl.errors import DualCLError

SEGMENTATIONS = {
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",  # labelmap; newer than pydicom's list of names
}


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One RTSTRUCT or DICOM-SEG object.

    Attributes:
        path: its file.
        kind: ``RTSTRUCT`` or ``SEG``.
        patient, study: identifiers of the source.
        series: UIDs of the series that it names.
        frames_of_reference: UIDs of those that it names.
        structures: number -> names (of an ROI; label and coded meaning of a segment).
        title: label, name and description, for choosing among several.
        when: date and time, digits that sort; empty where the header has none.
        where: what a report may call it.
        roi_frames: ROI number -> UID of the frame of reference that it was drawn in, empty where the header has none.
    """

    path: Path
    kind: str
    patient: str
    study: str
    series: frozenset[str]
    frames_of_reference: frozenset[str]
    structures: Mapping[int, tuple[str, ...]]
    title: str
    when: str
    where: str
    roi_frames: Mapping[int, str] = field(default_factory=dict)


def read_segmentation(path: Path, header: Any, patient: str, where: str) -> Segmentation:
    """The segmentation of a header.

    Raises:
        DualCLError: it has no structure.
    """
    kind = SEGMENTATIONS[header.SOPClassUID]
    structures: dict[int, tuple[str, ...]] = {}
    roi_frames: dict[int, str] = {}
    for item in header.get("StructureSetROISequence") or []:
        structures[int(item.ROINumber)] = (text(item, "ROIName"),)
        roi_frames[int(item.ROINumber)] = text(item, "ReferencedFrameOfReferenceUID")
    for item in header.get("SegmentSequence") or []:
        types = item.get("SegmentedPropertyTypeCodeSequence") or []
        names = (text(item, "SegmentLabel"), *(text(code, "CodeMeaning") for code in types))
        if item.get("SegmentNumber"):  # a labelmap may describe its background as segment 0
            structures[int(item.SegmentNumber)] = tuple(name for name in names if name)
    if not structures:
        raise DualCLError("no structure")
    references = header.get("ReferencedFrameOfReferenceSequence") or []
    frames = {text(item, "FrameOfReferenceUID") for item in (header, *references)}
    prefix = "StructureSet" if kind == "RTSTRUCT" else "Content"
    titles = ("StructureSetLabel", "StructureSetName", "ContentLabel", "SeriesDescription")
    return Segmentation(
        path=path,
        kind=kind,
        patient=patient,
        study=text(header, "StudyInstanceUID"),
        series=frozenset(text(item, "SeriesInstanceUID") for item in referenced_series(header)) - {""},
        frames_of_reference=frozenset(frames - {""}),
        structures=structures,
        title="\n".join(text(header, name) for name in titles),
        when=text(header, f"{prefix}Date") + text(header, f"{prefix}Time"),
        where=where,
        roi_frames=roi_frames,
    )


def in_frame(segmentation: Segmentation, frame_of_reference: str) -> Segmentation:
    """The object; of one with ROIs in several frames of reference only the structures that state this one.

    A single frame is not compared: anonymization may have changed its UID in the object or in the series alone.

    Raises:
        DualCLError: none of several frames is this one.
    """
    frames = {uid for uid in segmentation.roi_frames.values() if uid}
    if len(frames) < 2:
        return segmentation
    if frame_of_reference not in frames:
        raise DualCLError(
            f"its structures were drawn in {len(frames)} frames of reference, none of them that of its series. Export "
            "those of one frame as an object of their own, together with the series they were drawn on"
        )
    own = {number for number, uid in segmentation.roi_frames.items() if uid == frame_of_reference}
    structures = {number: names for number, names in segmentation.structures.items() if number in own}
    return replace(segmentation, structures=structures)


def referenced_series(header: Any) -> list[Any]:
    """Items on the series that a segmentation names: of a SEG, and of an RTSTRUCT."""
    series = list(header.get("ReferencedSeriesSequence") or [])
    for reference in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in reference.get("RTReferencedStudySequence") or []:
            series += study.get("RTReferencedSeriesSequence") or []
    return series
