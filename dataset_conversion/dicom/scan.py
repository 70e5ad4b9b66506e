"""What a folder of DICOM files holds, from headers alone: volumes, segmentations, and what is neither."""

from __future__ import annotations

import filecmp
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_dualcl.dataset_conversion.dicom.grid import (
    Grid,
    Slice,
    check_no_localizer,
    mark_names,
    one_of_each,
    regular_grid,
    sharing_an_instance,
    volumes,
)
from nnunet_dualcl.dataset_conversion.dicom.header import (
    class_name,
    kind,
    looks_like_dicom,
    modality,
    read_header,
    text,
)
from nnunet_dualcl.dataset_conversion.dicom.segmentation import SEGMENTATIONS, Segmentation, read_segmentation
from nnunet_dualcl.dataset_conversion.dicom.slices import slices_of
from nnunet_dualcl.dataset_conversion.patterns import files_below
from nnunet_dualcl.errors import DualCLError

_TABLE_OF_CONTENTS = "1.2.840.10008.1.3.10"
"""DICOMDIR; it says nothing that the files do not."""
_SINGLE = ("CTImageStorage", "MRImageStorage", "PositronEmissionTomographyImageStorage")
_MULTI_FRAME = (
    "EnhancedCTImageStorage",
    "EnhancedMRImageStorage",
    "EnhancedPETImageStorage",
    "LegacyConvertedEnhancedCTImageStorage",
    "LegacyConvertedEnhancedMRImageStorage",
    "LegacyConvertedEnhancedPETImageStorage",
)
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_MANY_FILES = 500


@dataclass(frozen=True, eq=False)
class Series:
    """One volume: a series, or the part of one that has one orientation.

    Attributes:
        patient, study, uid, frame_of_reference: identifiers of the source; they never reach the output.
        modality: CT, MR or PT.
        description: of the series; free text, so it never reaches the output either.
        marks: what this volume differs by from the others of its series, such as ``EchoTime=20``; nor do their values.
        slices: by position along the normal.
        grid: that they form.
        where: what a report may call it.
        notes: for the report.
    """

    patient: str
    study: str
    uid: str
    frame_of_reference: str
    modality: str
    description: str
    slices: tuple[Slice, ...]
    grid: Grid
    where: str
    marks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """Description and marks; for the screen alone."""
        return " ".join([repr(self.description), *self.marks])


@dataclass
class Export:
    """All that was found.

    Attributes:
        series: volumes, by patient and series number.
        segmentations: by patient.
        refused: where and why, free of identifiers.
        refused_series: UIDs of series of which something was refused.
        refused_in: series of which something was refused or damaged -> folder of its first file.
        archives: files to be unpacked first.
        damaged: where and why, of files that are DICOM and cannot be read.
        damaged_files: those files.
        cut_off: files that end before their pixels do; reading their case fails.
        patients: identifier of the source -> number from 1.
        notes: on the whole.
    """

    series: list[Series] = field(default_factory=list)
    segmentations: list[Segmentation] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    refused_series: set[str] = field(default_factory=set)
    refused_in: dict[str, Path] = field(default_factory=dict)
    archives: list[Path] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    damaged_files: list[Path] = field(default_factory=list)
    cut_off: set[Path] = field(default_factory=set)
    patients: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Found:
    """Files of one series, and one header of it; those of all slices of an export would fill the memory."""

    header: Any
    folder: Path
    slices: list[Slice] = field(default_factory=list)
    segmentations: list[tuple[Path, Any]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)


def scan(folder: Path) -> Export:
    """Read all headers below a folder, whatever the names and order of the files.

    Raises:
        DualCLError: there is no such folder, or no DICOM image in it.
    """
    export = Export()
    found: dict[tuple[str, str], _Found] = {}
    paths = list(files_below(folder).values())
    foreign = 0
    without_id: set[str] = set()
    for path in tqdm(paths, desc="Reading headers", unit="file", disable=len(paths) < _MANY_FILES):
        read = read_header(path)
        if read is None:
            if looks_like_dicom(path):
                export.damaged_files.append(path)
            elif path.name.lower().endswith(_ARCHIVES):
                export.archives.append(path)
            else:
                foreign += 1
            continue
        header, cut_off = read
        if cut_off:
            export.cut_off.add(path)
        if header.SOPClassUID == _TABLE_OF_CONTENTS:
            continue
        patient = _patient(header)
        if not text(header, "PatientID"):
            without_id.add(patient)
        _take(found.setdefault((patient, text(header, "SeriesInstanceUID")), _Found(header, path.parent)), path, header)
    packed = f"{len(export.archives)} archive(s) ({', '.join(sorted({path.suffix for path in export.archives}))})"
    if not found:
        raise DualCLError(
            f"{folder}: none of {len(paths)} files is DICOM. "
            + (f"Unpack {packed}." if export.archives else "Give the folder of the export.")
        )
    if export.archives:
        export.damaged.append(
            ("the export", f"{packed}: what they hold is missing here. Unpack them; --dry-run names them")
        )
    if export.damaged_files:
        what = "DICOM file(s) that cannot be read, cut off or damaged: what they hold is missing here"
        export.damaged.append(
            ("the export", f"{len(export.damaged_files)} {what}. --dry-run names them. Export them again")
        )
    if foreign:
        export.notes.append(f"{foreign} files are not DICOM and were passed over")
    if without_id:
        export.notes.append(
            f"{len(without_id)} patients have no patient ID; name and birth date, or else the study, stood for it. If "
            "one person has several such studies, the split cannot know"
        )
    export.patients = {patient: number for number, patient in enumerate(sorted({key[0] for key in found}), 1)}
    numbers: Counter[str] = Counter()
    for patient, uid in sorted(found, key=lambda key: (key[0], _order(found[key].header), key[1])):
        numbers[patient] += 1
        where = f"series {numbers[patient]} of patient {export.patients[patient]}"
        before = len(export.refused) + len(export.damaged)
        _add(export, found[patient, uid], patient, uid, where)
        if len(export.refused) + len(export.damaged) > before:
            export.refused_in[where] = found[patient, uid].folder
    return export


def _take(found: _Found, path: Path, header: Any) -> None:
    """Put a file where it belongs; what is wrong with it is a fault of its series."""
    multi_frame = kind(header) in _MULTI_FRAME
    try:
        if header.SOPClassUID in SEGMENTATIONS:
            if not any(_is_copy(path, header, *kept) for kept in found.segmentations):
                found.segmentations.append((path, header))
        elif not multi_frame and kind(header) not in _SINGLE:
            found.others[class_name(header)] += 1
        else:
            slices = list(slices_of(path, header, multi_frame))
            found.header = found.header if found.slices else header
            found.slices += slices
    except DualCLError as error:
        found.faults[f"{modality(header)}: {error}"] += 1
    except Exception as error:  # numbers that are none, tags that are missing: any kind, and the rest must go on
        found.damages[f"{modality(header)}: its header is damaged ({type(error).__name__})"] += 1


def _is_copy(path: Path, header: Any, other_path: Path, other_header: Any) -> bool:
    """Whether two files are equal byte for byte; some programs keep the instance UID of what they edit."""
    one_uid = text(header, "SOPInstanceUID") == text(other_header, "SOPInstanceUID")
    return one_uid and filecmp.cmp(path, other_path, shallow=False)


def _add(export: Export, found: _Found, patient: str, uid: str, where: str) -> None:
    """Volumes, segmentations and refusals of one series."""
    for path, header in found.segmentations:
        name = SEGMENTATIONS[header.SOPClassUID]
        try:
            export.segmentations.append(read_segmentation(path, header, patient, f"{where}: {name}"))
        except Exception as error:  # as above
            found.damages[f"{name} without structures, or damaged ({type(error).__name__})"] += 1
    for name, count in sorted(found.others.items()):
        export.refused.append((where, f"{count} x {name}: holds no volume that is read here"))
    for list_of, reasons in ((export.refused, found.faults), (export.damaged, found.damages)):
        list_of += [(where, f"{count} x {reason}") for reason, count in sorted(reasons.items())]
        if reasons:
            export.refused_series.add(uid)
    if found.slices:
        _add_volumes(export, found.header, patient, uid, where, found.slices)


def _add_volumes(export: Export, header: Any, patient: str, uid: str, where: str, slices: list[Slice]) -> None:
    kept, repeated = one_of_each(slices)
    kind_of_scan = modality(header)
    try:
        check_no_localizer(kept)
    except DualCLError as error:
        export.refused.append((f"{where}: {kind_of_scan}", str(error)))
        export.refused_series.add(uid)
        return
    parts = volumes(kept)
    sharing = sharing_an_instance(kept)
    differences = ", ".join(mark_names(marks for marks, _ in parts))
    for number, (marks, part) in enumerate(parts, 1):
        place = f"{where}: {kind_of_scan}, {len(part)} slices" + (f", part {number}" if len(parts) > 1 else "")
        notes = [f"{repeated} slices were there twice (same instance); one of each was taken"] if repeated else []
        if sharing:
            notes.append(
                f"{sharing} slices share an instance UID (changed by an anonymization?) and were told apart by position"
            )
        if len(parts) > 1:
            notes.append(f"its series holds {len(parts)} volumes, which differ in {differences}; this is one of them")
        try:
            ordered, grid = regular_grid(part)
        except DualCLError as error:
            export.refused.append((place, str(error)))
            export.refused_series.add(uid)
            continue
        export.series.append(
            Series(
                patient=patient,
                study=text(header, "StudyInstanceUID"),
                uid=uid,
                frame_of_reference=text(header, "FrameOfReferenceUID"),
                modality=kind_of_scan,
                description=text(header, "SeriesDescription"),
                slices=tuple(ordered),
                grid=grid,
                where=place,
                marks=marks,
                notes=tuple(notes),
            )
        )


def _patient(header: Any) -> str:
    """What stands for the patient: ID, else name and birth date, else the study."""
    person = text(header, "PatientName")
    born = text(header, "PatientBirthDate")
    return (
        text(header, "PatientID")
        or (f"{person} {born}" if person and born else "")
        or f"study {text(header, 'StudyInstanceUID')}"
    )


def _order(header: Any) -> tuple[str, int]:
    number = text(header, "SeriesNumber")
    return text(header, "StudyInstanceUID"), int(number) if number.lstrip("-").isdigit() else 0
