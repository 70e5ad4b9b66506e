"""ACDC, the Automated Cardiac Diagnosis Challenge: two annotated frames of the heart's cycle for each patient.

The files state their voxel size in pixdim; their sform holds directions alone, with axes of length 1.

Bernard et al., IEEE Transactions on Medical Imaging 37:2514, 2018.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_dualcl.dataset_conversion.listed import (
    ROLES,
    UNLISTED,
    add_list_arguments,
    list_keywords,
    parts_of,
    published_split,
    read_lists,
)
from nnunet_dualcl.dataset_conversion.patterns import files_below
from nnunet_dualcl.dataset_conversion.plan import Plan, Refusal, Role, SourceCase
from nnunet_dualcl.dataset_conversion.published_lists import ACDC
from nnunet_dualcl.dataset_conversion.volumes import load_4d, load_volumes, num_volumes
from nnunet_dualcl.dataset_conversion.write import converter
from nnunet_dualcl.errors import DualCLError

_FILE = re.compile(r"(patient\d{3})_(?:frame(\d+)(_gt)?|4d)\.nii(?:\.gz)?")
_LAST_TRAINING = "patient100"
"""Patients 101 to 150 are the challenge's test set."""
_LABELS = {"right ventricle": 1, "myocardium": 2, "left ventricle": 3}
_ABOUT = {
    "reference": "https://www.creatis.insa-lyon.fr/Challenge/acdc",
    "licence": "CC BY-NC-SA 4.0",
    "description": "ACDC: cine MR of the heart, end of diastole and end of systole",
}


def plan(
    source: Path,
    *,
    frames: bool = False,
    usual_split: bool = False,
    labeled: int | None = None,
    val: int = 0,
    train_list: Path | None = None,
    test_list: Path | None = None,
) -> Plan:
    """Find the frames by the names of their files, wherever they lie below ``source``.

    Args:
        source: ``database``, with ``training`` and ``testing``.
        frames: take the frames between the annotated ones, from the 4D files, as unlabeled cases of the patients that
            are trained on. Without lists these are all training patients, and nobody is left for validation.
        usual_split: 70/10/20 of the training patients, as in most work on few labels; the test set is left out.
        labeled: with lists: the first so many patients stay labeled, the rest of the training list is unlabeled.
        val: with lists of the user: the last so many patients of the training list are for validation.
        train_list: patients or cases, a line each, in order.
        test_list: the same for testing.

    Raises:
        DualCLError: no such folder, no frame in it, lists that will not do.
    """
    lists = read_lists(train_list, test_list, r"patient\d{3}")
    if lists is not None and usual_split:
        raise DualCLError("Give either --usual-split or lists of your own.")
    lists = ACDC if usual_split else lists
    if lists is None and (labeled is not None or val):
        raise DualCLError("--labeled and --val go by a list: add --usual-split, or --train-list and --test-list.")
    part_of = None if lists is None else parts_of(lists, labeled=labeled, val=val)
    files = files_below(source)
    found, series, refused = _by_name(files)
    cases = []
    damaged = []
    for (patient, frame), (image, label) in sorted(found.items()):
        where = image or label or ""
        tested = patient > _LAST_TRAINING
        if image is None or (label is None and not tested):
            damaged.append(Refusal(where, "a label without its image" if image is None else "its label _gt is missing"))
            continue
        if part_of is not None and patient not in part_of:
            refused.append(Refusal(where, UNLISTED))
            continue
        role = ROLES[part_of[patient]] if part_of is not None else Role.TEST if tested else Role.LABELED
        label_path = None if label is None or role is Role.UNLABELED else files[label]
        paths = (files[image], *([] if label_path is None else [label_path]))
        load = partial(load_volumes, paths[:1], label_path, unit_sform=True)
        cases.append(SourceCase(f"{patient}_frame{frame:02d}", patient, role, load, paths, where))
    if not cases:
        raise DualCLError(
            f"{source}: no case of ACDC among {len(files)} files. Their names are like patient001_frame01.nii.gz and "
            "patient001_frame01_gt.nii.gz."
        )
    notes: tuple[str, ...] = ()
    split = None
    if part_of is not None:
        split, notes = published_split(cases, part_of, (*damaged, *refused))
    elif frames:
        notes = (
            "further frames of every training patient are unlabeled cases, so val repeats train; see --usual-split",
        )
    if frames:
        trained = {case.patient for case in cases if case.role is not Role.TEST}
        validated = {patient for patient, part in (part_of or {}).items() if part == "val"}
        for patient in sorted(trained - validated):
            annotated = {frame for owner, frame in found if owner == patient}
            try:
                cases += _between(patient, series.get(patient), files, annotated)
            except DualCLError as error:
                refused.append(Refusal(series.get(patient, patient), str(error)))
    return Plan(
        kind="acdc",
        channels=("cineMRI",),
        labels=_LABELS,
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        refused=tuple(refused),
        damaged=tuple(damaged),
        split=None if split is None else (split,),
        notes=notes,
        about=_ABOUT,
    )


convert = converter(plan)
"""See :func:`~nnunet_dualcl.dataset_conversion.write.converter`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument("--frames", action="store_true", help="frames between the annotated ones as unlabeled cases")
    parser.add_argument("--usual-split", action="store_true", help="70/10/20 of the training patients (SSL4MIS)")
    add_list_arguments(parser, "3, 7 or 14 patients with --usual-split")


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parsed arguments as keywords of :func:`plan`."""
    return {"frames": arguments.frames, "usual_split": arguments.usual_split, **list_keywords(arguments)}


def _by_name(
    files: dict[str, Path],
) -> tuple[dict[tuple[str, int], list[str | None]], dict[str, str], list[Refusal]]:
    """Patient and frame -> relative paths of image and label; patient -> that of the 4D file; files there twice."""
    found: dict[tuple[str, int], list[str | None]] = {}
    series: dict[str, str] = {}
    refused = []
    for relative, path in files.items():
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        if match[2] is None:
            before = series.setdefault(match[1], relative)
        else:
            place = found.setdefault((match[1], int(match[2])), [None, None])
            index = 1 if match[3] else 0
            place[index] = before = place[index] or relative
        if before != relative:
            refused.append(Refusal(relative, f"a file of this name was found before: {before}"))
    return found, series, refused


def _between(patient: str, relative: str | None, files: dict[str, Path], annotated: set[int]) -> list[SourceCase]:
    """Unlabeled cases of the frames of a 4D file that no file of their own holds; frames count from 1."""
    if relative is None:
        raise DualCLError("no 4D file, so no further frames")
    path = files[relative]
    return [
        SourceCase(
            name=f"{patient}_frame{frame:02d}",
            patient=patient,
            role=Role.UNLABELED,
            load=partial(load_4d, path, None, (frame - 1,), unit_sform=True),
            files=(path,),
            where=f"{relative}, frame {frame}",
        )
        for frame in range(1, num_volumes(path, unit_sform=True) + 1)
        if frame not in annotated
    ]
