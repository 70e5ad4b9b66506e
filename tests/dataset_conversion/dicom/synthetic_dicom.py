"""Small lopsided DICOM files, made in the test: 7 columns, 5 rows, oblique, anisotropic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

PATIENT, NAME, DATE = "HOSPITAL-4711", "Größenwahn^Zoë", "19991231"
ROWS, COLUMNS = 5, 7
SPACING_YX = (2.0, 1.5)
GAP = 4.0
ROW, COLUMN = (0.8, 0.6, 0.0), (-0.6, 0.8, 0.0)
ORIGIN = (10.0, -20.0, 30.0)
CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}


def uid(*parts: Any) -> str:
    """The same UID for the same parts."""
    return str(generate_uid(entropy_srcs=[str(part) for part in parts]))


def values(count: int, seed: int = 0) -> np.ndarray:
    """Stored pixels (z, y, x)."""
    return np.random.default_rng(seed).integers(0, 2000, (count, ROWS, COLUMNS)).astype(np.uint16)


def at(x: float, y: float, z: float) -> list[float]:
    """Voxel indices as a point in mm."""
    across, down = np.array(ROW) * x * SPACING_YX[1], np.array(COLUMN) * y * SPACING_YX[0]
    return (np.array(ORIGIN) + across + down + np.array([0, 0, GAP]) * z).round(6).tolist()


def base(sop_class: str, series: str, *, patient: str = PATIENT, study: str = "", frame: str = "") -> FileDataset:
    """A data set with what every object has; UIDs follow from the names."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(sop_class)
    item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    item.SpecificCharacterSet = "ISO_IR 192"
    item.SOPClassUID = sop_class
    item.PatientID, item.PatientName, item.PatientBirthDate = patient, NAME, DATE
    item.StudyDate = item.SeriesDate = item.AcquisitionDate = DATE
    item.StudyTime = item.SeriesTime = item.AcquisitionTime = "101500"
    item.StudyInstanceUID = uid("study", patient, study)
    item.SeriesInstanceUID = uid("series", patient, study, series)
    item.FrameOfReferenceUID = uid("frame", patient, study, frame)
    item.SeriesDescription = f"{series} of {NAME}"
    item.StudyID, item.AccessionNumber, item.ReferringPhysicianName, item.PatientSex = "1", "A-4711", NAME, "O"
    return item


def save(item: Dataset, folder: Path, name: str) -> Path:
    """Write with an instance UID that follows from series and file name, unless it has one."""
    if "SOPInstanceUID" not in item:
        item.SOPInstanceUID = uid(item.SeriesInstanceUID, name)
    item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
    folder.mkdir(parents=True, exist_ok=True)
    item.save_as(folder / name, enforce_file_format=True)
    return folder / name


def write_series(
    folder: Path,
    modality: str = "CT",
    *,
    heights: Sequence[float] = (0, 1, 2, 3),
    series: str = "axial",
    tilt_mm: float = 0.0,
    orientation: Sequence[float] = (*ROW, *COLUMN),
    pixels: np.ndarray | None = None,
    slopes: Sequence[float] | None = None,
    intercept: float = -1000,
    tags: dict[str, Any] | None = None,
    **belongs_to: str,
) -> list[Path]:
    """One file a slice, in file names without an order, at ``heights`` slice distances above the origin."""
    pixels = values(len(heights)) if pixels is None else pixels
    paths = []
    for index, height in enumerate(heights):
        item = base(CLASSES[modality], series, **belongs_to)
        item.Modality = modality
        item.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        item.Rows, item.Columns = pixels.shape[1:]
        item.PixelSpacing = list(SPACING_YX)
        item.SliceThickness = 99  # wrong on purpose: it must not matter
        item.ImageOrientationPatient = list(orientation)
        normal = np.cross(orientation[:3], orientation[3:])
        position = np.array(ORIGIN) + normal * GAP * height + np.array(COLUMN) * tilt_mm * height
        item.ImagePositionPatient = position.round(6).tolist()
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated = item.BitsStored = 16
        item.HighBit, item.PixelRepresentation = 15, 0
        item.RescaleSlope, item.RescaleIntercept = slopes[index] if slopes else 1, intercept
        item.PixelData = pixels[index].astype(np.uint16).tobytes()
        for name, value in (tags or {}).items():
            setattr(item, name, value)
        name = f"{(index * 37 + 11) % 101:03d}_{series}"
        paths.append(save(item, folder, name))
    return paths


def as_other_instances(paths: Sequence[Path], name: str) -> list[Path]:
    """Give files of one series instance UIDs of their own, since those follow from series and file name."""
    for path in paths:
        item = pydicom.dcmread(path)
        item.SOPInstanceUID = uid(item.SOPInstanceUID, name)
        save(item, path.parent, path.name)
    return list(paths)


def write_rtstruct(
    path: Path,
    rois: dict[str, list[list[list[float]]]],
    *,
    refers_to: Path | None = None,
    drawn_on: Sequence[Path] = (),
    when: str = "20000101",
    kind: str = "CLOSED_PLANAR",
    title: str = "plan",
    frames: Mapping[str, str] | None = None,
    **belongs_to: str,
) -> Path:
    """ROI name -> contours -> points in voxel indices (x, y, z); each contour names its slice of ``drawn_on``.

    ``frames``: ROI name -> UID of the frame of reference that the ROI states.
    """
    item = base("1.2.840.10008.5.1.4.1.1.481.3", path.name, **belongs_to)
    item.Modality, item.StructureSetLabel = "RTSTRUCT", title
    item.StructureSetDate, item.StructureSetTime = when, "120000"
    names, contours = [], []
    for number, (name, polygons) in enumerate(rois.items(), 1):
        roi = Dataset()
        roi.ROINumber, roi.ROIName = number, name
        if frames and name in frames:
            roi.ReferencedFrameOfReferenceUID = frames[name]
        names.append(roi)
        filled = Dataset()
        filled.ReferencedROINumber = number
        filled.ContourSequence = Items([_contour(points, kind, drawn_on) for points in polygons])
        contours.append(filled)
    item.StructureSetROISequence, item.ROIContourSequence = Items(names), Items(contours)
    if refers_to is not None:
        header = pydicom.dcmread(refers_to, stop_before_pixels=True)
        series, study, frame = Dataset(), Dataset(), Dataset()
        series.SeriesInstanceUID = header.SeriesInstanceUID
        study.RTReferencedSeriesSequence = Items([series])
        frame.FrameOfReferenceUID = header.FrameOfReferenceUID
        frame.RTReferencedStudySequence = Items([study])
        item.ReferencedFrameOfReferenceSequence = Items([frame])
    return save(item, path.parent, path.name)


def box(low: tuple[float, float], high: tuple[float, float], z: float) -> list[list[float]]:
    """Corners of a rectangle in voxel indices."""
    return [[low[0], low[1], z], [high[0], low[1], z], [high[0], high[1], z], [low[0], high[1], z]]


def _contour(points: list[list[float]], kind: str, drawn_on: Sequence[Path]) -> Dataset:
    contour = Dataset()
    contour.ContourGeometricType = kind
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = [f"{number:.6f}".rstrip("0").rstrip(".") for point in points for number in at(*point)]
    if drawn_on:
        contour.ContourImageSequence = Items([image_item(drawn_on[int(points[0][2])])])
    return contour


def image_item(path: Path) -> Dataset:
    """A reference to an image."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def write_seg(
    path: Path,
    images: Sequence[Path],
    mask: np.ndarray,
    *,
    kind: str = "BINARY",
    names: Sequence[str] = ("liver",),
    **options: Any,
) -> Path:
    """A DICOM-SEG by highdicom; ``mask`` (z, y, x) or (z, y, x, segment) for the images in their order."""
    import highdicom
    from highdicom.sr.coding import CodedConcept

    code = CodedConcept("78961009", "SCT", "Organ")
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=CodedConcept("123037004", "SCT", "Anatomical Structure"),
            segmented_property_type=code,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names, 1)
    ]
    item = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(image) for image in images],
        pixel_array=mask,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=uid(path.name),
        series_number=9,
        sop_instance_uid=uid(path.name, "instance"),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    item.save_as(path)
    return path
