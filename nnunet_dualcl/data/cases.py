"""Which cases of a dataset are unlabeled, and where their images are. No label file is named here."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.layout import IMAGES_UNLABELED, SPLITS_FILE

CaseImages = dict[str, list[Path]]
"""Case name -> its image files in channel order; each holds a channel, or several (colors, 4D images)."""

_DOCUMENT_ENDINGS = (".json", ".txt", ".csv", ".tsv", ".md", ".pdf", ".xls", ".xlsx", ".ini", ".db")
_HIDDEN = (".", "@", "__")

ROLES = ("train", "val", "unlabeled")
"""Lists of a fold in the split file."""


def _case_file(file_ending: str) -> re.Pattern[str]:
    return re.compile(r"(?P<case>.+)_(?P<channel>\d{4})" + re.escape(file_ending))


def list_case_images(folder: Path, file_ending: str) -> CaseImages:
    """Cases of the ``NAME_0000ENDING`` files in a folder, sorted by name; an absent folder has none."""
    pattern = _case_file(file_ending)
    cases: dict[str, list[Path]] = {}
    for entry in sorted(os.listdir(folder)) if folder.is_dir() else []:
        match = pattern.fullmatch(entry)
        if match and not entry.startswith("."):
            cases.setdefault(match["case"], []).append(folder / entry)
    return dict(sorted(cases.items()))


def raw_training_images(raw_dataset_folder: Path, dataset_json: Mapping[str, Any]) -> CaseImages:
    """Images of the labeled part of a raw dataset: ``imagesTr``, or what ``dataset.json`` lists under ``dataset``."""
    listed = dataset_json.get("dataset")
    if listed is None:
        return list_case_images(raw_dataset_folder / "imagesTr", dataset_json["file_ending"])
    return {
        case: [raw_dataset_folder / os.path.expandvars(image) for image in listed[case]["images"]]
        for case in sorted(listed)
    }


def files_a_case(cases: Iterable[Sequence[Path]], channels: int) -> int:
    """Of how many image files a complete case is made: as many as any of ``cases`` has, at most one a channel.

    There are fewer files than channels where one holds several of them; without cases, one a channel is expected.
    """
    return min(channels, max(map(len, cases), default=channels))


def read_splits(preprocessed_dataset_folder: Path) -> list[dict[str, list[str]]]:
    """All folds of nnU-Net's split file; none where there is no file.

    Raises:
        DualCLError: the file is no valid JSON, no list of folds, or has a misspelled ``unlabeled``.
    """
    path = preprocessed_dataset_folder / SPLITS_FILE
    if not path.is_file():
        return []
    try:
        splits: list[dict[str, list[str]]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise DualCLError(f"{path} is no valid JSON ({error}). Write it anew with: dualcl split") from None
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise DualCLError(f"{path} must hold a list with one object a fold. Write it anew with: dualcl split")
    for fold, split in enumerate(splits):
        for role, cases in split.items():
            if role not in ROLES and difflib.get_close_matches(role.lower(), ["unlabeled"], cutoff=0.9):
                raise DualCLError(f"{path}, fold {fold}: unknown key '{role}'. Did you mean 'unlabeled'?")
            if role in ROLES and not (isinstance(cases, list) and all(isinstance(case, str) for case in cases)):
                raise DualCLError(f"{path}, fold {fold}: '{role}' must be a list of case names.")
    return splits


def read_split(preprocessed_dataset_folder: Path, fold: int | str) -> dict[str, list[str]] | None:
    """The entry of a fold in nnU-Net's split file, or None where there is no file, no such fold, or fold is "all".

    Of all three nnU-Net decides itself: it draws five folds, an 80:20 split, or takes all labeled cases.
    """
    splits = [] if fold == "all" else read_splits(preprocessed_dataset_folder)
    return splits[int(fold)] if fold != "all" and int(fold) < len(splits) else None


def check_disjoint(unlabeled: Iterable[str], split: Mapping[str, list[str]], *, where: str) -> None:
    """Refuse a case that is unlabeled and at the same time labeled for training or used for validation.

    Raises:
        DualCLError: naming the cases and the file to mend.
    """
    pool = set(unlabeled)
    for role in ("train", "val"):
        both = sorted(pool & set(split.get(role, [])))
        if both:
            meaning = "a labeled training case" if role == "train" else "a validation case"
            raise DualCLError(
                f"{where}: {first_few(both)} listed as unlabeled and as "
                f"{meaning} ('{role}'). A case has one role: take it out of one of the lists."
            )


def unlabeled_case_images(
    raw_dataset_folder: Path, dataset_json: Mapping[str, Any], listed: Iterable[str]
) -> CaseImages:
    """Images of all unlabeled cases: those in ``imagesUnlabeled`` and those ``listed`` by name in the split file.

    A case is made of as many files as the labeled ones; where these are not at hand (a compute node), of as many as
    the others. How many channels are in them shows when they are read.

    Raises:
        DualCLError: a listed name has no image, a name stands for two different images, a case has a wrong number of
            files, or an image in ``imagesUnlabeled`` is not named as nnU-Net wants it.
    """
    training = raw_training_images(raw_dataset_folder, dataset_json)
    own_folder = list_case_images(raw_dataset_folder / IMAGES_UNLABELED, dataset_json["file_ending"])
    refuse_misnamed(raw_dataset_folder / IMAGES_UNLABELED, dataset_json["file_ending"])
    twice = sorted(set(training) & set(own_folder))
    if twice:
        raise DualCLError(
            f"{raw_dataset_folder}: {first_few(twice)} in imagesTr and in {IMAGES_UNLABELED}. "
            f"A case that got its label belongs to imagesTr alone: delete it from {IMAGES_UNLABELED}. Where these are "
            "different scans, rename one; cases are told apart by name."
        )
    missing = sorted(set(listed) - set(training) - set(own_folder))
    if missing:
        raise DualCLError(
            f"{raw_dataset_folder}: no image for {first_few(missing)}, listed as unlabeled in {SPLITS_FILE}. "
            f"Expected files such as imagesTr/{missing[0]}_0000{dataset_json['file_ending']}."
        )
    cases = {**{case: training[case] for case in listed if case in training}, **own_folder}
    shadowed = sorted(case for case in cases if f"{case}_seg" in cases)
    if shadowed:
        raise DualCLError(
            f"{raw_dataset_folder}: {shadowed[0]}_seg is a case beside {shadowed[0]}, and nnU-Net stores the "
            f"segmentation of {shadowed[0]} under that name. Rename it, or take it out if it is a segmentation."
        )
    channels = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    labeled = [files for case, files in training.items() if case not in cases]
    number = files_a_case(labeled or cases.values(), len(channels))
    expected = [f"_{file:04d}{dataset_json['file_ending']}" for file in range(number)]
    wrong = [
        f"{case} ({', '.join(path.name for path in files)} in {files[0].parent})"
        for case, files in sorted(cases.items())
        # names of the author's own (listed under 'dataset' in dataset.json) say nothing about the channel
        if len(files) != len(expected) or (case in own_folder and [p.name[len(case) :] for p in files] != expected)
    ]
    if wrong:
        raise DualCLError(
            f"Unlabeled cases with missing or surplus image files: {first_few(wrong, '; ')}. "
            f"dataset.json names {len(channels)} channel(s): {', '.join(str(name) for name in channels.values())}; "
            f"expected files end in {', '.join(expected)}, as those of {'labeled' if labeled else 'other'} cases do. "
            "Add the missing channels or take the cases out."
        )
    return dict(sorted(cases.items()))


def misnamed_files(folder: Path, file_ending: str) -> list[str]:
    """Files of a folder that nnU-Net's naming rule passes over and that may be images, sorted.

    Left out: hidden files, documents, and files beside an image of the same name (the ``.raw`` of an ``.mhd``).
    """
    files = [path.name for path in sorted(folder.iterdir()) if not path.is_dir()] if folder.is_dir() else []
    pattern = _case_file(file_ending)
    images = {name.removesuffix(file_ending) for name in files if pattern.fullmatch(name)}
    others = [name for name in files if not (pattern.fullmatch(name) or name.startswith(_HIDDEN))]
    return [
        name
        for name in others
        if os.path.splitext(name)[0] not in images and not name.lower().endswith(_DOCUMENT_ENDINGS)
    ]


def refuse_misnamed(folder: Path, file_ending: str) -> None:
    """An image that nnU-Net's naming rule passes over would be missing from training without a word.

    Raises:
        DualCLError: naming files as :func:`misnamed_files` does, and folders with files in them.
    """
    wrong = misnamed_files(folder, file_ending)
    for inner in sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(_HIDDEN)):
        if any(path.is_file() for path in inner.rglob("[!.]*")):
            wrong.append(f"{inner.name}{os.sep}")
    if wrong:
        raise DualCLError(
            f"{folder}: {first_few(wrong)} would be passed over. Name images like "
            f"CASE_0000{file_ending}, CASE_0001{file_ending} for a second channel, all in the folder itself; or take "
            "them out of it."
        )
