"""NIH Pancreas-CT of The Cancer Imaging Archive: DICOM series, labels in NIfTI files.

Roth et al., Data from Pancreas-CT, The Cancer Imaging Archive, 2016, doi:10.7937/K9/TCIA.2016.tNB1kqBU.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_dualcl.dataset_conversion.labels import whole_numbers
from nnunet_dualcl.dataset_conversion.listed import (
    ROLES,
    UNLISTED,
    Lists,
    add_list_arguments,
    list_keywords,
    parts_of,
    published_split,
    read_lists,
)
from nnunet_dualcl.dataset_conversion.patterns import files_below
from nnunet_dualcl.dataset_conversion.plan import Plan, Refusal, Role, Scan, SourceCase
from nnunet_dualcl.dataset_conversion.published_lists import PANCREAS
from nnunet_dualcl.dataset_conversion.reading import read_volume
from nnunet_dualcl.dataset_conversion.write import converter
from nnunet_dualcl.errors import DualCLError

SAME_AS = {"0025": "0002", "0070": "0002"}
"""Scans that the archive withdrew in 2020: cropped copies of 0002."""
_SERIES = re.compile(r"(?:.*/)?pancreas_(\d{4})/.*\.dcm", re.IGNORECASE)
_LABEL = re.compile(r"(?:.*/)?label(\d{4})\.nii(?:\.gz)?")
_EVEN = 0.01
"""Distances between slices may differ by this share."""

_PANCREAS_HU = (-50, 200)
"""Soft tissue with contrast, with room on both sides."""
_LEAST_SHARE = 0.8
"""Of a label's voxels in that range, for a label that fits its scan."""
_CLEARLY = 0.1
"""A turn that fits by this much better than the stored order is suspected; not every turned label does."""
TURNS: dict[str, tuple[int, ...]] = {"none": (), "y": (1,), "z": (0,), "yz": (0, 1)}
"""Ways of turning a label over -> axes (z, y, x)."""
_ABOUT = {
    "reference": "https://doi.org/10.7937/K9/TCIA.2016.tNB1kqBU",
    "licence": "CC BY 3.0",
    "description": "NIH Pancreas-CT: abdominal CT with contrast, pancreas",
}


def plan(
    source: Path,
    *,
    split: str = "mcnet",
    turn_labels: str | None = None,
    labeled: int | None = None,
    val: int = 0,
    train_list: Path | None = None,
    test_list: Path | None = None,
) -> Plan:
    """Find series by their folders ``PANCREAS_0001`` and labels by their names ``label0001.nii.gz``, below ``source``.

    Args:
        source: folder that holds both.
        split: ``mcnet`` (62/20 of 82 scans, 61/19 without the copies) or ``coranet`` (62/18 of 80).
        turn_labels: turn every label over, one of ``TURNS``; None: as they are stored, and a label that fits clearly
            better turned over fails its case.
        labeled: the first so many of the training list stay labeled, 6 or 12 as a rule; the rest becomes unlabeled.
        val: the last so many of the training list are for validation.
        train_list: numbers such as 0001, a line each, instead of the split's.
        test_list: the same for testing.

    Raises:
        DualCLError: no such folder, no case of the training list in it, lists that will not do.
    """
    if split not in PANCREAS:
        raise DualCLError(f"--split must be one of {', '.join(PANCREAS)}, got {split!r}.")
    if turn_labels is not None and turn_labels not in TURNS:
        raise DualCLError(f"--turn-labels must be one of {', '.join(TURNS)}, got {turn_labels!r}.")
    lists, notes = _without_copies(read_lists(train_list, test_list, r"\d{4}") or PANCREAS[split])
    part_of = parts_of(lists, labeled=labeled, val=val)
    files = files_below(source)
    series: dict[str, dict[Path, list[Path]]] = defaultdict(lambda: defaultdict(list))
    labels: dict[str, Path] = {}
    repeated: list[Refusal] = []
    for relative, path in files.items():
        if match := _SERIES.fullmatch(relative):
            series[match[1]][path.parent].append(path)
        elif (match := _LABEL.fullmatch(relative)) and labels.setdefault(match[1], path) != path:
            repeated.append(Refusal(relative, f"another {path.name} was found before it"))
    if not series:
        raise DualCLError(
            f"{source}: no DICOM file among {len(files)}. They are wanted as PANCREAS_0001/.../1-001.dcm, "
            "the labels as label0001.nii.gz; give the folder that holds both."
        )
    cases = []
    refused = []
    damaged = []
    for number, folders in sorted(series.items()):
        where = f"PANCREAS_{number}"
        fault = None
        if number in SAME_AS:
            fault = f"the same scan as {SAME_AS[number]}, cropped otherwise; the archive withdrew it"
        elif number not in part_of:
            fault = UNLISTED
        elif len(folders) > 1:
            fault = f"{len(folders)} folders with DICOM files, one series is wanted"
        elif part_of[number] in ("train", "val") and number not in labels:
            damaged.append(Refusal(where, f"no label{number}.nii.gz below {source.name}"))
            continue
        if fault is not None:
            refused.append(Refusal(where, fault))
            continue
        role = ROLES[part_of[number]]
        label = None if role is Role.UNLABELED else labels.get(number)
        ((folder, slices),) = folders.items()
        cases.append(
            SourceCase(
                name=where,
                patient=number,
                role=role,
                load=partial(_load, folder, label, turn_labels),
                files=(*slices, *([] if label is None else [label])),
                where=where,
            )
        )
    fold, more_notes = published_split(cases, part_of, (*damaged, *refused))
    return Plan(
        kind="pancreas_ct",
        channels=("CT",),
        labels={"pancreas": 1},
        cases=tuple(cases),
        refused=(*refused, *repeated),
        damaged=tuple(damaged),
        split=(fold,),
        notes=(*notes, *more_notes),
        about=_ABOUT,
        settings={"--turn-labels": str(turn_labels)},
    )


convert = converter(plan)
"""See :func:`~nnunet_dualcl.dataset_conversion.write.converter`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument("--split", choices=tuple(PANCREAS), default="mcnet", help="whose list (default %(default)s)")
    parser.add_argument(
        "--turn-labels", choices=tuple(TURNS), help="turn labels over; default: not, but look out for it"
    )
    add_list_arguments(parser, "6 or 12")


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parsed arguments as keywords of :func:`plan`."""
    return {"split": arguments.split, "turn_labels": arguments.turn_labels, **list_keywords(arguments)}


def _without_copies(lists: Lists) -> tuple[Lists, tuple[str, ...]]:
    """The lists with each scan once, copies replaced by their original; and a note where that changed them."""
    train = tuple(dict.fromkeys(SAME_AS.get(number, number) for number in lists.train))
    test = tuple(dict.fromkeys(SAME_AS.get(number, number) for number in lists.test))
    clean = tuple(number for number in test if number not in train or number not in SAME_AS.values())
    if (train, clean) == (lists.train, lists.test):
        return lists, ()
    return Lists(train, clean), (
        f"0025 and 0070 are copies of 0002, which the list holds more than once: it counts once, for training, so "
        f"{len(train)}/{len(clean)} of the list's {len(lists.train)}/{len(lists.test)} are left. Published results on "
        "this list were trained and tested on one and the same scan",
    )


def _load(folder: Path, label: Path | None, turn: str | None) -> Scan:
    image, backwards = _read_series(folder)
    if label is None:
        return Scan((image,), None)
    fitted, note = _fitted(read_volume(label), image, turn, backwards=backwards)
    return Scan((image,), fitted, (note,))


def _read_series(folder: Path) -> tuple[sitk.Image, bool]:
    """The only series of a folder, in the order of its positions, and whether the numbers of its slices go down in it.

    Raises:
        DualCLError: no series, several, one that cannot be read, or slices that are missing.
    """
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise DualCLError(f"{folder}: holds {len(series)} DICOM series, one is wanted. Download it again.")
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
        positions = [
            [float(part) for part in reader.GetMetaData(index, "0020|0032").split("\\")]
            for index in range(image.GetSize()[2])
        ]
        numbers = [int(reader.GetMetaData(index, "0020|0013")) for index in range(image.GetSize()[2])]
    except (RuntimeError, ValueError) as error:
        raise DualCLError(
            f"{folder}: cannot be read. Download it again. ({' '.join(str(error).split())[-240:]})"
        ) from None
    if len(positions) < 2:
        raise DualCLError(f"{folder}: holds a single slice. Download it again.")
    distances = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if np.ptp(distances) > _EVEN * np.median(distances):
        raise DualCLError(
            f"{folder}: its slices are {distances.min():.3g} to {distances.max():.3g} mm apart; some are missing or "
            "there twice. Download it again."
        )
    return image, numbers == sorted(numbers, reverse=True)


def _fitted(
    label: sitk.Image, image: sitk.Image, turn: str | None, *, backwards: bool = False
) -> tuple[sitk.Image, str]:
    """The label on its scan's grid, and a note on how it fits.

    Labels belong to their scans voxel by voxel, slices in the order of their numbers (InstanceNumber); tools that
    follow the header of one of the two turn labels over. So the label's header is left aside. ``backwards``: the slices
    of the image are in the opposite order.

    Raises:
        DualCLError: sizes differ, the label is empty or does not fit, or it fits better turned and no turn was chosen.
    """
    if label.GetSize() != image.GetSize():
        raise DualCLError(
            f"the label has {label.GetSize()} voxels, its scan {image.GetSize()}. Is it the label of this scan, and is "
            "the series complete?"
        )
    values = whole_numbers(label)[:: -1 if backwards else 1]
    if not values.any():
        raise DualCLError("the label is background in every voxel. Download it again.")
    intensities = sitk.GetArrayViewFromImage(image)
    shares = {name: _share(intensities, np.flip(values, axes)) for name, axes in TURNS.items()}
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    low, high = _PANCREAS_HU
    shown = f"label voxels from {low} to {high} HU by turn: {listed}"
    best = max(shares, key=lambda name: shares[name])
    if turn is None and shares[best] > max(shares["none"] + _CLEARLY, _LEAST_SHARE):
        raise DualCLError(
            f"the label fits better turned over ({shown}). If other cases say the same, convert into a new dataset "
            f"with --turn-labels {best}; if this one is right as it is, with --turn-labels none."
        )
    if shares[turn or "none"] < _LEAST_SHARE:
        raise DualCLError(f"the label lies on no pancreas ({shown}; {_LEAST_SHARE:.0%} wanted). Is it of this scan?")
    fitted = sitk.GetImageFromArray(np.ascontiguousarray(np.flip(values, TURNS[turn or "none"])))
    fitted.CopyInformation(image)
    return fitted, f"label turned: {turn or 'none'}; {shown}"


def _share(intensities: np.ndarray, label: np.ndarray) -> float:
    inside = intensities[label != 0]
    return float(((inside >= _PANCREAS_HU[0]) & (inside <= _PANCREAS_HU[1])).mean())
