"""BraTS, brain tumors in four MR channels: the releases of 2018 to 2021 and of 2023.

Files are ``NAME_flair.nii.gz`` and so on in the older ones, ``NAME-t2f.nii.gz`` since.

Menze et al., IEEE Transactions on Medical Imaging 34:1993, 2015; Baid et al., arXiv:2107.02314, 2021.
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
from nnunet_dualcl.dataset_conversion.volumes import load_volumes
from nnunet_dualcl.dataset_conversion.write import converter
from nnunet_dualcl.errors import DualCLError

CHANNELS = ("T1", "T1ce", "T2", "FLAIR")
_FILE = re.compile(r"(BraTS.+?)(?:_(flair|t1|t1ce|t2|seg)|-(t2f|t1n|t1c|t2w|seg))\.nii(?:\.gz)?", re.IGNORECASE)
_MISNAMED = {"W39_1998.09.19_Segm.nii": "BraTS20_Training_355"}
"""Copies of BraTS 2020 in circulation have this label under another name."""
_CHANNEL_OF = {"t1": 0, "t1n": 0, "t1ce": 1, "t1c": 1, "t2": 2, "t2w": 2, "flair": 3, "t2f": 3}
"""By what file names end with, before and since 2023."""
_SESSION = re.compile(r"(BraTS-[A-Za-z]+-\d+)(?:-\d+)?", re.IGNORECASE)
_RELEASE = re.compile(r"BraTS(?:-[A-Za-z]+|\d+)?", re.IGNORECASE)
_PATIENT = r"(?i:BraTS-[A-Za-z]+-\d+|BraTS[^\s,/-]+)"
"""In a line of a list; a session after the patient's number is passed over."""
_LABELS = {"necrotic core": 1, "edema": 2, "enhancing tumor": 3}
_PEDIATRIC = {"2023": {1: 1, 2: 2, 3: 3}, "2024": {1: 3, 2: 1, 3: 1, 4: 2}}
"""Values of BraTS-PED by the year of the release -> ours. Since 2024 they are enhancing tumor, tumor that does not
enhance, cyst, edema; in 2023 the second and third were one."""
_REGIONS: dict[str, int | list[int]] = {"whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": 3}
_REGIONS_ORDER = (2, 1, 3)
"""What is left of the whole tumor outside its core is edema, of the core outside what enhances necrosis."""
_ABOUT = {
    "reference": "https://www.synapse.org/brats",
    "licence": "terms of the challenge's year; registration",
    "description": "BraTS: brain tumors in T1, contrast-enhanced T1, T2 and FLAIR",
}


def plan(
    source: Path,
    *,
    regions: bool = False,
    unlabeled_test: bool = False,
    pediatric: str | None = None,
    labeled: int | None = None,
    val: int = 0,
    train_list: Path | None = None,
    test_list: Path | None = None,
) -> Plan:
    """Find cases by the names of their files, wherever they lie below ``source``.

    Args:
        source: folder of one release.
        regions: train on whole tumor, tumor core and enhancing tumor, as the challenge scores them.
        unlabeled_test: cases without a label (the challenge's validation set) become unlabeled instead of test cases.
        pediatric: year of a release of BraTS-PED, 2023, or 2024 for later ones too: they number the labels in two ways,
            and nothing in the files tells which.
        labeled: with lists: the first so many patients stay labeled, the rest of the training list is unlabeled.
        val: with lists: the last so many patients of the training list are for validation.
        train_list: names of patients or cases, a line each, in order.
        test_list: the same for testing.

    Raises:
        DualCLError: no such folder, no case in it, cases of several releases, labels of BraTS-PED without a year, lists
            that will not do.
    """
    lists = read_lists(train_list, test_list, _PATIENT)
    if lists is None and (labeled is not None or val):
        raise DualCLError("--labeled and --val need --train-list and --test-list: BraTS has no list of its own.")
    part_of = None if lists is None else parts_of(lists, labeled=labeled, val=val)
    files = files_below(source)
    found, refused = _files_by_case(files)
    if not found:
        raise DualCLError(
            f"{source}: no scan of BraTS among {len(files)} files. Their names are like "
            "BraTS2021_00000_flair.nii.gz or BraTS-GLI-00000-000-t2f.nii.gz."
        )
    releases = sorted({match[0] for name in found if (match := _RELEASE.match(name))}, key=str.lower)
    if len({release.lower() for release in releases}) > 1:
        raise DualCLError(
            f"{source}: holds several releases ({', '.join(releases)}), which share patients under other names, and "
            "label enhancing tumor by 3 or by 4. Convert one of them by itself."
        )
    value_map = {1: 1, 2: 2, 3: 3} if "-" in releases[0] else {1: 1, 2: 2, 4: 3}
    is_pediatric = releases[0].lower() == "brats-ped"
    if pediatric is not None:
        if not is_pediatric or pediatric not in _PEDIATRIC:
            raise DualCLError(
                f"--pediatric must be {' or '.join(_PEDIATRIC)}, and is for BraTS-PED; got {pediatric!r}."
            )
        value_map = _PEDIATRIC[pediatric]
    elif is_pediatric and any(len(CHANNELS) in paths for paths in found.values()):
        raise DualCLError(
            f"{source}: in BraTS-PED of 2023 enhancing tumor is label 3, since 2024 label 1, under the same names. Say "
            "of which year it is: --pediatric 2023, or --pediatric 2024 for 2024 and later."
        )
    cases = []
    damaged: list[Refusal] = []
    for name, paths in sorted(found.items()):
        lacking = [channel for index, channel in enumerate(CHANNELS) if index not in paths]
        if lacking:
            lost = damaged if len(CHANNELS) in paths else refused  # with a label it is to be missed
            lost.append(Refusal(name, f"lacks the channel {', '.join(lacking)}"))
            continue
        patient = match[1] if (match := _SESSION.fullmatch(name)) else name
        label = paths.get(len(CHANNELS))
        role = Role.LABELED if label else Role.UNLABELED if unlabeled_test else Role.TEST
        if part_of is not None and part_of.get(patient) == "test":
            role = Role.TEST
        if part_of is not None and label is None and part_of.get(patient) == "val":
            refused.append(Refusal(name, "has no label, and its patient is for validation"))
            continue
        if part_of is not None and label is not None:
            if patient not in part_of:
                refused.append(Refusal(name, UNLISTED))
                continue
            role = ROLES[part_of[patient]]
        label = None if role is Role.UNLABELED else label
        images = tuple(files[paths[index]] for index in range(len(CHANNELS)))
        label_path = None if label is None else files[label]
        cases.append(
            SourceCase(
                name=name,
                patient=patient,
                role=role,
                load=partial(load_volumes, images, label_path),
                files=(*images, *([] if label_path is None else [label_path])),
                where=paths[0],
            )
        )
    split, notes = (None, ()) if part_of is None else published_split(cases, part_of, (*damaged, *refused))
    return Plan(
        kind="brats",
        channels=CHANNELS,
        labels=_REGIONS if regions else _LABELS,
        cases=tuple(cases),
        refused=tuple(refused),
        damaged=tuple(damaged),
        regions_class_order=_REGIONS_ORDER if regions else None,
        value_map=value_map,
        split=None if split is None else (split,),
        notes=notes,
        about=_ABOUT,
    )


convert = converter(plan)
"""See :func:`~nnunet_dualcl.dataset_conversion.write.converter`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument("--regions", action="store_true", help="whole tumor, tumor core, enhancing tumor as regions")
    parser.add_argument("--unlabeled-test", action="store_true", help="cases without a label are unlabeled, not test")
    parser.add_argument(
        "--pediatric", choices=tuple(_PEDIATRIC), help="year of BraTS-PED's labels; 2024 for later ones too"
    )
    add_list_arguments(parser, "with lists of your own")


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parsed arguments as keywords of :func:`plan`."""
    return {
        "regions": arguments.regions,
        "unlabeled_test": arguments.unlabeled_test,
        "pediatric": arguments.pediatric,
        **list_keywords(arguments),
    }


def _files_by_case(files: dict[str, Path]) -> tuple[dict[str, dict[int, str]], list[Refusal]]:
    """Case -> channel's number, or that after the last for the label -> relative path."""
    found: dict[str, dict[int, str]] = {}
    refused = []
    for relative, path in files.items():
        match = _FILE.fullmatch(path.name)
        name = match[1] if match else _MISNAMED.get(path.name)
        if name is None:
            continue
        kind = (match[2] or match[3]).lower() if match else "seg"
        place = found.setdefault(name, {})
        index = _CHANNEL_OF.get(kind, len(CHANNELS))
        if index in place:
            refused.append(Refusal(relative, f"the same file was found before: {place[index]}"))
        else:
            place[index] = relative
    return found, refused
