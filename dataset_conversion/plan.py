"""What a converter says before anything is written: which cases there are, of whom, for what, and how to load them.

Every source of data has a module with a ``plan`` function of its own; ``write_dataset`` of ``write.py`` does the
rest, the same for all: it loads, checks, writes and reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import SimpleITK as sitk

from nnunet_dualcl.errors import DualCLError


class Role(str, Enum):
    """What a case is for; it decides the folder that its files go to."""

    LABELED = "labeled"
    """``imagesTr`` and ``labelsTr``; a case without a label fails."""
    UNLABELED = "unlabeled"
    """``imagesUnlabeled``; a label, where there is one, is not written."""
    TEST = "test"
    """``imagesTs``, and ``labelsTs`` where there is a label."""


@dataclass(frozen=True)
class Scan:
    """One case, loaded.

    Attributes:
        channels: 3D images in the order of the plan's channels. They must share a grid, or are resampled onto the
            first's on demand; :mod:`write` sees to that.
        label: 3D image of whole numbers of the source's own (see :attr:`Plan.value_map`), None where there is none.
        notes: what the user should know about this case, for the report.
        more_labels: label images on grids of their own, with what they are, such as "the label drawn on channel T2".
            Where labels overlap, the smaller value keeps the voxel.
    """

    channels: tuple[sitk.Image, ...]
    label: sitk.Image | None
    notes: tuple[str, ...] = ()
    more_labels: tuple[tuple[str, sitk.Image], ...] = ()


@dataclass(frozen=True)
class SourceCase:
    """One case to be.

    Attributes:
        name: of the case in nnU-Net, without channel and ending: letters, digits, underscores, hyphens.
        patient: cases of one patient never come to lie on two sides of a split.
        role: may be changed by what is found on loading alone where the options say so (empty labels).
        load: gives the scan, or raises a :class:`~nnunet_dualcl.errors.DualCLError` that says why this case cannot be
            used and what would mend it. It is called in another process, so it must pickle: a
            :class:`functools.partial` of a function of a module.
        files: what it reads, for the estimate of disk space and for noticing changes on resuming.
        where: what the report calls the source. In a :attr:`Plan.private` plan it names no file.
        key: what leads back to the patient, such as ``{"patient_id": ...}``; in the key list alone.
        identity: what stays the same in the source when other cases come, such as a path or UIDs; "" where the name
            does.
    """

    name: str
    patient: str
    role: Role
    load: Callable[[], Scan]
    files: tuple[Path, ...]
    where: str
    key: Mapping[str, str] = field(default_factory=dict)
    identity: str = ""


@dataclass(frozen=True)
class Refusal:
    """Something in the source that becomes no case, and why; in a private plan neither text identifies anybody."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """All that a converter found, before any image is read.

    Attributes:
        kind: of the source, as on the command line.
        channels: names, as ``channel_names`` of ``dataset.json`` (``CT`` switches nnU-Net's CT normalization on).
        labels: name -> value, background left out; with ``regions_class_order`` also name -> list of values.
        cases: sorted by name, names unique.
        refused: what was recognized and left out.
        damaged: what should have been usable and is not, such as a file that is cut off; it counts as failed.
        screen: what helps the user along and must not be written: in a private plan, what the source calls things.
        regions_class_order: nnU-Net's, for region-based training.
        value_map: label values of the source -> values of ``labels``, or 0; empty where they are the same. Values
            that it lacks are unknown, and fail their case.
        split: the published list as folds of case names (``train``, ``val``, ``unlabeled``); None for folds drawn over
            patients. Cases that failed are taken out of it.
        notes: what the report says about the whole.
        about: ``reference``, ``licence``, ``description`` for ``dataset.json``.
        settings: further choices of the user that decide how a case comes out, as option -> text; a resumed conversion
            must make the same.
        fewer_scans: how to convert fewer scans of a patient, for the note that few are left to validate on, or "".
        private: the source holds identities (DICOM): the report names no file and no identifier.
    """

    kind: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    cases: tuple[SourceCase, ...]
    refused: tuple[Refusal, ...] = ()
    damaged: tuple[Refusal, ...] = ()
    screen: tuple[str, ...] = ()
    regions_class_order: tuple[int, ...] | None = None
    value_map: Mapping[int, int] = field(default_factory=dict)
    split: tuple[Mapping[str, list[str]], ...] | None = None
    notes: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    fewer_scans: str = ""
    private: bool = False

    @property
    def label_values(self) -> set[int]:
        """Values a written label may hold, background included."""
        return {0}.union(*([value] if isinstance(value, int) else value for value in self.labels.values()))


EMPTY_LABELS = ("refuse", "keep", "unlabeled")
OTHER_VALUES = ("refuse", "background")


@dataclass(frozen=True)
class Options:
    """What every converter lets the user choose.

    Attributes:
        processes: cases at a time.
        resume: go on with a target that exists: finished cases are kept, missing and failed ones done.
        resample_labels: bring a label on another grid onto its image's, nearest neighbor, instead of failing the case.
        copy_label_headers: give a label on another grid, with as many voxels, its image's header, voxel for voxel.
        resample_channels: bring channels on another grid onto the first's, linearly, instead of failing the case.
        empty_labels: a label that is all background: ``refuse`` the case, ``keep`` it, or take it as ``unlabeled``.
        other_values: values of a label file that stand for no label: ``refuse`` the case, or take them as
            ``background``.
        folds: of the split drawn where the source has none of its own.
        seed: of that split.
        key_list: file outside the target for the key (new name -> patient, files); None for none.
    """

    processes: int = 2
    resume: bool = False
    resample_labels: bool = False
    copy_label_headers: bool = False
    resample_channels: bool = False
    empty_labels: str = "refuse"
    other_values: str = "refuse"
    folds: int = 5
    seed: int = 0
    key_list: Path | None = None

    def __post_init__(self) -> None:
        if self.empty_labels not in EMPTY_LABELS:
            raise DualCLError(f"empty_labels must be one of {', '.join(EMPTY_LABELS)}, got {self.empty_labels!r}.")
        if self.other_values not in OTHER_VALUES:
            raise DualCLError(f"other_values must be one of {', '.join(OTHER_VALUES)}, got {self.other_values!r}.")
        if self.processes < 1 or self.folds < 2 or self.seed < 0:
            raise DualCLError("processes must be 1 or more, folds 2 or more, and seed not negative.")
