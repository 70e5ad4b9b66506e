"""What an RTSTRUCT or DICOM-SEG object says about itself, from its header: structures, references, date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


def read_segmentation(path: Path, header: Any, patient: str, where: str) -> Segmentation:
    """The segmentation of a header.

    Raises:
        DualCLError: it has no structure.
    """
    kind = SEGMENTATIONS[header.SOPClassUID]
    structures: dict[int, tuple[str, ...]] = {}
    for item in header.get("StructureSetROISequence") or []:
        structures[int(item.ROINumber)] = (text(item, "ROIName"),)
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
    )


def referenced_series(header: Any) -> list[Any]:
    """Items on the series that a segmentation names: of a SEG, and of an RTSTRUCT."""
    series = list(header.get("ReferencedSeriesSequence") or [])
    for reference in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in reference.get("RTReferencedStudySequence") or []:
            series += study.get("RTReferencedSeriesSequence") or []
    return series
