"""Header of a DICOM file: the tags that are needed here, and what kind of object it is."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

MARKS = (
    "AcquisitionNumber",
    "EchoTime",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "TriggerTime",
    "ImageType",
    "AcquisitionTime",
)
"""By which volumes at one place in one series differ, most telling first."""
_HEADER = [
    *MARKS,
    *("SOPClassUID", "SOPInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID"),
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "FrameOfReferenceUID", "SamplesPerPixel"),
    *("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames"),
    "BitsAllocated",
    *(
        "RescaleSlope",
        "RescaleIntercept",
        "PhotometricInterpretation",
        "StructureSetROISequence",
        "ReferencedFrameOfReferenceSequence",
    ),
    *("StructureSetLabel", "StructureSetName", "StructureSetDate", "StructureSetTime", "SegmentSequence"),
    *("ReferencedSeriesSequence", "ContentLabel", "ContentDate", "ContentTime"),
]


def read_header(path: Path) -> tuple[Any, bool] | None:
    """The tags of a DICOM file that are needed here, and whether its pixels are cut off; None where it is none.

    Files without the 128 bytes and ``DICM`` in front are taken as well, as old exports lack them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on files that turn out to be none
        for force in (False, True):
            try:
                with path.open("rb") as stream:
                    header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_HEADER, force=force)
                    if text(header, "SOPClassUID") and (header.get("SeriesInstanceUID") or not force):
                        return header, is_cut_off(header, stream)
            except InvalidDicomError:
                continue
            except Exception:  # pydicom meets any bytes here, and fails on them in any way
                return None
    return None


def is_cut_off(header: Any, stream: BinaryIO) -> bool:
    """Whether a file ends before its pixels do; of compressed ones, whose length is not known, never.

    Args:
        header: read from ``stream`` up to the pixels, with rows, columns, frames and bits.
        stream: where reading stopped.
    """
    syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
    if syntax is None or syntax.is_compressed or syntax.is_deflated:
        return False
    rows, columns, bits = (text(header, name) for name in ("Rows", "Columns", "BitsAllocated"))
    if not (rows.isdigit() and columns.isdigit() and bits.isdigit()):
        return False  # no image
    frames = text(header, "NumberOfFrames")
    pixels = int(rows) * int(columns) * int(bits) * (int(frames) if frames.isdigit() else 1) // 8
    tag = 8 if syntax.is_implicit_VR else 12  # and its length
    return os.fstat(stream.fileno()).st_size < stream.tell() + tag + pixels


def looks_like_dicom(path: Path) -> bool:
    """Whether a file that cannot be read is a damaged DICOM file: by its mark, the group 0008 in front, or its name."""
    try:
        with path.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or start[:2] == b"\x08\x00" or path.suffix.lower() in (".dcm", ".dicom")


def kind(header: Any) -> str:
    """pydicom's keyword for the class of the object, empty where it has none."""
    return UID(text(header, "SOPClassUID")).keyword or ""


def class_name(header: Any) -> str:
    """The class of the object for a report."""
    uid = UID(text(header, "SOPClassUID"))
    return str(uid.name) if uid.keyword else "private object"


def modality(header: Any) -> str:
    """CT, MR or PT: by class, since the tag is free to say anything."""
    keyword = kind(header)
    return "CT" if "CTImage" in keyword else "MR" if "MRImage" in keyword else "PT"


def text(header: Any, name: str) -> str:
    """The value of a tag as text without blanks around it, empty where there is none or a damaged one."""
    try:
        value = header.get(name)
    except (ValueError, TypeError, OverflowError):  # pydicom converts on access
        return ""
    return "" if value is None else str(value).strip()
