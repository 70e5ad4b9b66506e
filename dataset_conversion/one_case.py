"""One case from its source into the dataset's folders: load, check, write; all of it or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeGuard

import numpy as np
import SimpleITK as sitk

from nnunet_dualcl.atomic import replacing, write_text
from nnunet_dualcl.dataset_conversion.geometry import grid_difference, onto, orientation, share_outside
from nnunet_dualcl.dataset_conversion.labels import mapped_values, merge_labels, whole_numbers
from nnunet_dualcl.dataset_conversion.picture import overlay
from nnunet_dualcl.dataset_conversion.plan import Options, Plan, Role, Scan, SourceCase
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.layout import IMAGES_UNLABELED

FILE_ENDING = ".nii.gz"
CASES_FOLDER = Path("conversion") / "cases"
"""Of the dataset: a record and a picture for each finished case."""

IMAGE_FOLDERS = {Role.LABELED: "imagesTr", Role.TEST: "imagesTs", Role.UNLABELED: IMAGES_UNLABELED}
LABEL_FOLDERS = {Role.LABELED: "labelsTr", Role.TEST: "labelsTs"}

_CHUNK = 2**20
"""Bytes of a source file in memory at a time."""


@dataclass(frozen=True)
class Record:
    """What became of a finished case.

    Attributes:
        name, patient, where: of the :class:`SourceCase`.
        role: the one it got, which is another than planned for empty labels taken as unlabeled.
        planned_role: the one it was to have.
        size_xyz: voxels.
        spacing_xyz_mm: voxel size.
        voxels: label name -> voxels; empty without a label. A value of several regions counts in each.
        pixel_hashes: SHA-256 of size and values of each channel; equal for one scan under two names.
        source_hash: of what was read, to notice on resuming that it changed.
        identity: see :func:`identity_of`.
        notes: of the loader and of the checks.
        orientation: where the axes point to, such as LPS.
    """

    name: str
    patient: str
    where: str
    role: Role
    planned_role: Role
    size_xyz: tuple[int, ...]
    spacing_xyz_mm: tuple[float, ...]
    voxels: Mapping[str, int]
    pixel_hashes: tuple[str, ...]
    source_hash: str
    identity: str
    notes: tuple[str, ...] = field(default_factory=tuple)
    orientation: str = ""

    def files(self, num_channels: int) -> list[Path]:
        """All files of the case but its record, relative to the dataset."""
        images = [Path(IMAGE_FOLDERS[self.role]) / f"{self.name}_{i:04d}{FILE_ENDING}" for i in range(num_channels)]
        labels = [Path(LABEL_FOLDERS[self.role]) / f"{self.name}{FILE_ENDING}"] if self.voxels else []
        return [*images, *labels, CASES_FOLDER / f"{self.name}.png"]


def record_path(target: Path, case: str) -> Path:
    """Where the record of a case lies."""
    return target / CASES_FOLDER / f"{case}.json"


def write_record(target: Path, record: Record) -> None:
    """Write the record of a case whose files are all there."""
    write_text(record_path(target, record.name), json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n")


def read_record(target: Path, case: str) -> Record | None:
    """The record of a case that was converted before, or None."""
    path = record_path(target, case)
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Record(
            **{
                **stored,
                "role": Role(stored["role"]),
                "planned_role": Role(stored["planned_role"]),
                **{name: tuple(stored[name]) for name in ("size_xyz", "spacing_xyz_mm", "pixel_hashes", "notes")},
            }
        )
    except (ValueError, KeyError, TypeError):
        return None  # of another version: the case is done again


def is_finished(record: Record | None, target: Path, case: SourceCase, num_channels: int) -> TypeGuard[Record]:
    """Whether all files of a case are there and its source has not changed since.

    Raises:
        DualCLError: the case is there in another role than planned now, unless it was unlabeled and has a label now.
    """
    if record is None:
        return False
    if (record.planned_role, case.role) == (Role.UNLABELED, Role.LABELED):
        return False  # somebody annotated it: done anew
    if record.planned_role != case.role:
        raise DualCLError(
            f"{target}: {case.name} was converted as {record.planned_role.value}, and is {case.role.value} now. "
            "Convert into a new dataset, or with the options of before."
        )
    whole = all((target / file).is_file() for file in record.files(num_channels))
    return whole and record.source_hash == hash_of(case.files)


def remove(target: Path, case: str, num_channels: int) -> None:
    """Delete what there is of a case, whatever its role, its record first: without one it counts as missing."""
    images = [f"{folder}/{case}_{i:04d}{FILE_ENDING}" for folder in IMAGE_FOLDERS.values() for i in range(num_channels)]
    labels = [f"{folder}/{case}{FILE_ENDING}" for folder in LABEL_FOLDERS.values()]
    for path in (record_path(target, case), *(target / name for name in (*images, *labels))):
        path.unlink(missing_ok=True)
    (target / CASES_FOLDER / f"{case}.png").unlink(missing_ok=True)


def identity_of(case: SourceCase) -> str:
    """By which a case is known again on resuming, whatever it is called by then; names nobody."""
    return hashlib.sha256((case.identity or case.name).encode()).hexdigest()[:16]


def hash_of(paths: Iterable[Path]) -> str:
    """Of names, sizes and contents. Files that are gone count as empty."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        try:
            digest.update(str(path.stat().st_size).encode())
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except OSError:
            continue
    return digest.hexdigest()


def bytes_of(paths: Iterable[Path]) -> int:
    """Size of all files together; those that cannot be looked at count nothing."""
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def convert_case(plan: Plan, options: Options, target: Path, case: SourceCase) -> Record:
    """Load, check and write one case; its record comes last, so a case with a record is complete.

    Args:
        plan: without its cases, which need not travel to a worker.
        options: of the conversion.
        target: dataset folder.
        case: to convert.

    Raises:
        DualCLError: why the case cannot be used, and what would mend it.
    """
    scan = case.load()
    notes = list(scan.notes)
    channels = _checked_channels(scan, plan, options, notes)
    role, label = _checked_label(case.role, scan, channels[0], plan, options, notes)
    record = Record(
        name=case.name,
        patient=case.patient,
        where=case.where,
        role=role,
        planned_role=case.role,
        size_xyz=channels[0].GetSize(),
        spacing_xyz_mm=tuple(round(edge, 6) for edge in channels[0].GetSpacing()),
        voxels={} if label is None else _voxels(label, plan),
        pixel_hashes=tuple(_pixel_hash(channel) for channel in channels),
        source_hash=hash_of(case.files),
        identity=identity_of(case),
        notes=tuple(notes),
        orientation=orientation(channels[0]),
    )
    *images, picture = record.files(len(channels))
    try:
        for image, path in zip([*channels, *([] if label is None else [label])], images, strict=True):
            with replacing(target / path) as partial:
                sitk.WriteImage(image, str(partial), useCompression=True)
        with replacing(target / picture) as partial:
            overlay(channels, label).save(partial)
        write_record(target, record)
    except BaseException:
        remove(target, case.name, len(channels))
        raise
    return record


def _checked_channels(scan: Scan, plan: Plan, options: Options, notes: list[str]) -> list[sitk.Image]:
    if len(scan.channels) != len(plan.channels):
        raise DualCLError(
            f"{len(scan.channels)} channels, {len(plan.channels)} are wanted: {', '.join(plan.channels)}."
        )
    channels = [_storable(scan.channels[0], plan.channels[0])]
    for image, name in zip(scan.channels[1:], plan.channels[1:], strict=True):
        channel = _storable(image, name)
        difference = grid_difference(channel, channels[0])
        if difference is not None:
            if not options.resample_channels:
                raise DualCLError(
                    f"channel {name} is on another grid than {plan.channels[0]}: {difference}. If the two are "
                    "registered, repeat with --resample-channels, which brings it onto the first one's grid."
                )
            field = sitk.Image(channel.GetSize(), sitk.sitkUInt8) + 1
            field.CopyInformation(channel)
            seen = onto(field, channels[0], nearest=True)
            channel = onto(channel, channels[0], nearest=False)
            share = float(sitk.GetArrayViewFromImage(seen).mean())
            notes.append(
                f"channel {name} was resampled onto the grid of {plan.channels[0]} ({difference}) and covers "
                f"{share:.0%} of it"
            )
        channel.CopyInformation(channels[0])
        channels.append(channel)
    return channels


def _storable(image: sitk.Image, name: str) -> sitk.Image:
    """The image in a type that NIfTI and nnU-Net take.

    Raises:
        DualCLError: every voxel has the same value, or a value does not fit.
    """
    for key in image.GetMetaDataKeys():  # descriptions, names and paths of the source must not travel on
        image.EraseMetaData(key)
    if image.GetPixelID() == sitk.sitkFloat64:
        image = sitk.Cast(image, sitk.sitkFloat32)
    values = sitk.GetArrayViewFromImage(image)
    low, high = values.min(), values.max()
    if low == high:
        raise DualCLError(f"channel {name} is {low} in every voxel. The scan is empty; take it out.")
    wide = values.dtype in (np.int64, np.uint64, np.uint32)
    if not np.isfinite([low, high]).all() or (wide and (low < -(2**31) or high >= 2**31)):
        raise DualCLError(f"channel {name} has values from {low} to {high}, beyond 32 bits. Scale them down.")
    return sitk.Cast(image, sitk.sitkInt32) if wide else image


def _checked_label(
    role: Role, scan: Scan, image: sitk.Image, plan: Plan, options: Options, notes: list[str]
) -> tuple[Role, sitk.Image | None]:
    """The role that the case gets and the label to write."""
    if role is Role.UNLABELED:
        return role, None
    if scan.label is None:
        if role is Role.LABELED:
            raise DualCLError("has no label. Add it, or take the case as unlabeled.")
        return role, None
    numbers = whole_numbers(_fitted(scan.label, "the label", image, options, notes))
    for what, label in scan.more_labels:
        more = _fitted(label, what, image, options, notes)
        notes += merge_labels(numbers, whole_numbers(more))
    values, others = mapped_values(
        numbers,
        plan.value_map,
        plan.label_values,
        others_are_background=options.other_values == "background",
    )
    if others:
        notes.append(f"label values taken as background: {first_few([str(value) for value in others])}")
    if not values.any():
        if options.empty_labels == "refuse":
            raise DualCLError(
                "the label is background in every voxel. If there is nothing to find, repeat with --empty-labels keep; "
                "if nobody has annotated it, with --empty-labels unlabeled."
            )
        if options.empty_labels == "unlabeled":
            notes.append("the label is background in every voxel; taken as unlabeled")
            return (Role.UNLABELED if role is Role.LABELED else role), None
        notes.append("the label is background in every voxel")
    checked = sitk.GetImageFromArray(values)
    checked.CopyInformation(image)  # within the tolerance; nnU-Net's own check allows less
    return role, checked


def _fitted(label: sitk.Image, what: str, image: sitk.Image, options: Options, notes: list[str]) -> sitk.Image:
    """The label on the image's grid."""
    difference = grid_difference(label, image)
    if difference is None:
        return label
    alike = label.GetSize() == image.GetSize()
    if alike and options.copy_label_headers:
        notes.append(f"{what} got the header of its image in place of its own ({difference})")
        copied = sitk.Image(label)
        copied.CopyInformation(image)
        return copied
    if not options.resample_labels:
        lost = (
            " It has as many voxels as the image: if only its header was lost on the way, repeat with "
            "--copy-label-headers, which keeps the voxels and takes the image's header."
            if alike
            else ""
        )
        raise DualCLError(
            f"{what} is on another grid than its image: {difference}. Is it the label of this image?{lost} If it "
            "lies right by its header, repeat with --resample-labels, which brings it onto the image's grid by nearest "
            "neighbor."
        )
    before = int(np.count_nonzero(sitk.GetArrayViewFromImage(label)) * np.prod(label.GetSpacing()))
    outside = share_outside(label, image)
    label = onto(label, image, nearest=True)
    after = int(np.count_nonzero(sitk.GetArrayViewFromImage(label)) * np.prod(label.GetSpacing()))
    notes.append(
        f"{what} was resampled ({difference}); its volume went from {before} to {after} mm3"
        + (f", {outside:.0%} of it lay OUTSIDE of the image" if outside > 0 else "")
    )
    return label


def _voxels(label: sitk.Image, plan: Plan) -> dict[str, int]:
    values, counts = np.unique(sitk.GetArrayViewFromImage(label), return_counts=True)
    count = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return {
        name: sum(count.get(value, 0) for value in ([wanted] if isinstance(wanted, int) else wanted))
        for name, wanted in plan.labels.items()
    }


def _pixel_hash(image: sitk.Image) -> str:
    """Of the values as numbers: the same scan stored as int16 and as float32 has one hash."""
    values = sitk.GetArrayViewFromImage(image)
    digest = hashlib.sha256(repr(values.shape).encode())
    for plane in values:  # one at a time: no second volume in memory
        digest.update(plane.astype(np.float32).tobytes())
    return digest.hexdigest()
