"""M&Ms, the heart in cine MR of several centres and vendors: two annotated frames of each 4D file, by a table.

Campello et al., IEEE Transactions on Medical Imaging 40:3543, 2021.
"""

from __future__ import annotations

import argparse
import csv
import re
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

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
from nnunet_dualcl.dataset_conversion.volumes import load_4d, num_volumes
from nnunet_dualcl.dataset_conversion.write import converter
from nnunet_dualcl.errors import DualCLError

_CODE = r"[A-Z]\d[A-Z]\d[A-Z]\d"
_FILE = re.compile(rf"({_CODE})_sa(_gt)?\.nii(?:\.gz)?")
_COLUMNS = ("External code", "ED", "ES")
_PARTS = {"training": "train", "validation": "val", "testing": "test"}
"""Folder of the release -> part of the split."""
_LABELS = {"left ventricle": 1, "myocardium": 2, "right ventricle": 3}
_ABOUT = {
    "reference": "https://www.ub.edu/mnms",
    "licence": "terms of the challenge",
    "description": "M&Ms: cine MR of the heart from several centres and vendors, end of diastole and end of systole",
}


def plan(
    source: Path,
    *,
    frames: bool = False,
    labeled: int | None = None,
    val: int = 0,
    train_list: Path | None = None,
    test_list: Path | None = None,
) -> Plan:
    """Find the series by the names of their files and folders, and their annotated frames in the release's table.

    Args:
        source: ``OpenDataset``, with ``Training/Labeled``, ``Training/Unlabeled``, ``Validation``, ``Testing`` and the
            table of patients, a CSV file.
        frames: take the frames that nobody annotated as unlabeled cases too, of the patients that are trained on.
        labeled: the first so many patients stay labeled, in the order of the list or, without one, of their codes; the
            rest is unlabeled.
        val: the last so many patients of the training list are for validation, where the list has nobody for it.
        train_list: codes of patients, a line each, in order, instead of the challenge's parts.
        test_list: the same for testing.

    Raises:
        DualCLError: no such folder, no series or no table in it, lists that will not do.
    """
    lists = read_lists(train_list, test_list, _CODE)
    files = files_below(source)
    found, refused = _by_name(files)
    if not found:
        raise DualCLError(
            f"{source}: no series of M&Ms among {len(files)} files. Their names are like A0S9V9_sa.nii.gz and "
            "A0S9V9_sa_gt.nii.gz."
        )
    annotated = _annotated_frames(source, files)
    part_of = {
        **{patient: "unlabeled" for patient, (image, _) in found.items() if _is_unlabeled(image)},
        **parts_of(lists or _challenge(found), labeled=labeled, val=val),
    }
    cases = []
    damaged = []
    for patient, (image, label) in sorted(found.items()):
        where = image or label or ""
        part = part_of.get(patient)
        if part is None:
            refused.append(Refusal(where, UNLISTED))
            continue
        role = ROLES[part]
        fault = (
            "a label without its image"
            if image is None
            else "its label _sa_gt is missing"
            if role is Role.LABELED and label is None
            else "the table does not say which frames are ED and ES"
            if patient not in annotated
            else None
        )
        if fault is not None:
            damaged.append(Refusal(where, fault))
            continue
        label_path = None if label is None or role is Role.UNLABELED else files[label]
        wanted = dict.fromkeys(annotated[patient], (role, label_path))
        if frames and part in ("train", "unlabeled"):
            try:
                others = set(range(num_volumes(files[image]))) - set(wanted)
            except DualCLError as error:
                refused.append(Refusal(where, str(error)))
            else:
                wanted |= dict.fromkeys(others, (Role.UNLABELED, None))
        cases += [_case(patient, frame, files[image], *wanted[frame], where) for frame in sorted(wanted)]
    split, notes = published_split(cases, part_of, (*damaged, *refused))
    return Plan(
        kind="mnms",
        channels=("cineMRI",),
        labels=_LABELS,
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        refused=tuple(refused),
        damaged=tuple(damaged),
        split=(split,),
        notes=notes,
        about=_ABOUT,
    )


convert = converter(plan)
"""See :func:`~nnunet_dualcl.dataset_conversion.write.converter`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument("--frames", action="store_true", help="frames without annotation as unlabeled cases, too")
    add_list_arguments(parser, "patients")


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parsed arguments as keywords of :func:`plan`."""
    return {"frames": arguments.frames, **list_keywords(arguments)}


def _by_name(files: dict[str, Path]) -> tuple[dict[str, list[str | None]], list[Refusal]]:
    """Patient -> relative paths of image and label; files that are there twice."""
    found: dict[str, list[str | None]] = {}
    refused = []
    for relative, path in files.items():
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        place = found.setdefault(match[1], [None, None])
        index = 1 if match[2] else 0
        place[index] = before = place[index] or relative
        if before != relative:
            refused.append(Refusal(relative, f"a file of this name was found before: {before}"))
    return found, refused


def _folders(relative: str | None) -> set[str]:
    return {part.lower() for part in PurePosixPath(relative or "").parts[:-1]}


def _is_unlabeled(image: str | None) -> bool:
    return "unlabeled" in _folders(image)


def _challenge(found: dict[str, list[str | None]]) -> Lists:
    """The challenge's parts, by the folders that the files lie in."""
    patients: dict[str, list[str]] = {part: [] for part in _PARTS.values()}
    for patient, (image, label) in sorted(found.items()):
        parts = [_PARTS[name] for name in _folders(image or label) if name in _PARTS]
        if len(parts) != 1:
            raise DualCLError(
                f"{image or label}: lies in none, or several, of the folders Training, Validation and Testing, which "
                "say what a patient is for. Keep the release's folders, or give --train-list and --test-list."
            )
        if not _is_unlabeled(image):
            patients[parts[0]].append(patient)
    return Lists(tuple(patients["train"]), tuple(patients["test"]), tuple(patients["val"]))


def _annotated_frames(source: Path, files: dict[str, Path]) -> dict[str, tuple[int, int]]:
    """Patient -> its annotated frames (ED, ES), counted from 0, by the table of the release."""
    tables = {}
    for relative, path in files.items():
        if path.suffix.lower() == ".csv" and (rows := _rows(path)) is not None:
            tables[relative] = rows
    if not tables:
        raise DualCLError(
            f"{source}: no CSV file with the columns {', '.join(_COLUMNS)}, which says what is annotated. Put the "
            "table of the release, ..._opendataset.csv, into this folder."
        )
    found: dict[str, tuple[int, int]] = {}
    for relative, rows in tables.items():
        for code, *texts in rows:
            ed, es = map(_frame, texts)
            if ed is not None and es is not None and found.setdefault(code, (ed, es)) != (ed, es):
                raise DualCLError(
                    f"{source}: {relative} gives frames {ed} and {es} of {code}, and {found[code][0]} and "
                    f"{found[code][1]} were found before, in {', '.join(tables)}. Move the wrong table away."
                )
    return found


def _rows(path: Path) -> list[tuple[str, ...]] | None:
    """Code, ED and ES of each line; None where the file is another one, or no table at all."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        try:
            table = csv.DictReader(stream)
            if not set(_COLUMNS) <= set(table.fieldnames or ()):
                return None
            return [tuple(str(row[name]).strip() for name in _COLUMNS) for row in table]
        except csv.Error:
            return None


def _frame(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)(?:\.0*)?", text)  # spreadsheets make 9.0 of 9
    return int(match[1]) if match else None


def _case(patient: str, frame: int, image: Path, role: Role, label: Path | None, where: str) -> SourceCase:
    return SourceCase(
        name=f"{patient}_frame{frame:02d}",
        patient=patient,
        role=role,
        load=partial(_load, image, label, frame),
        files=(image,) if label is None else (image, label),
        where=f"{where}, frame {frame}",
    )


def _load(image: Path, label: Path | None, frame: int) -> Scan:
    scan = load_4d(image, None, (frame,))
    return scan if label is None else replace(scan, label=load_4d(label, None, (frame,)).channels[0])
