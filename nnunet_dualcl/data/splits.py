"""Draw few labeled, many unlabeled and validation cases: nnU-Net's split file with an ``unlabeled`` list."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_dualcl.atomic import replacing, write_text
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.layout import IMAGES_UNLABELED, PATIENTS_FILE, REPLACED_SPLITS_FILE, SPLITS_FILE, is_fold

Split = dict[str, list[str]]
_HEADER = ("case", "patient")
"""First line of what ``dualcl convert`` writes; a case may be called case, too."""


def draw_splits(
    cases: Sequence[str],
    *,
    labeled: int,
    validation: float | int,
    draws: int,
    seed: int,
    groups: Mapping[str, str] | None = None,
    excluded: Sequence[str] = (),
    never_validate: Iterable[str] = (),
) -> list[Split]:
    """One fold for each draw of the labeled cases; the validation cases are the same in all of them.

    Whole groups (patients) are drawn, so no patient is on two sides. Without ``groups`` each case is a group.

    Args:
        cases: all cases with images and labels.
        labeled: number of groups in ``train``.
        validation: number of groups in ``val``; below 1, a share of all groups (rounded).
        draws: number of folds.
        seed: the same seed gives the same splits.
        groups: case -> group.
        excluded: cases in no list at all (a test set); their groups are left out whole.
        never_validate: groups that are not drawn into ``val``, because further scans of theirs are trained on.

    Returns:
        Folds with sorted ``train``, ``val`` and ``unlabeled``.

    Raises:
        DualCLError: too few cases, or names in ``groups`` or ``excluded`` that do not match.
    """
    group_of = {case: case for case in cases} if groups is None else dict(groups)
    check_groups(cases, group_of)
    unknown = sorted(set(excluded) - set(cases))
    if unknown:
        raise DualCLError(f"The excluded case {first_few(unknown)} is not among the dataset's cases.")
    left_out = {group_of[case] for case in excluded}
    pool = sorted({group_of[case] for case in cases} - left_out)
    if not np.isfinite(validation) or (validation >= 1 and validation != int(validation)):
        raise DualCLError(f"validation must be a share below 1 or a whole number, got {validation}.")
    if seed < 0:
        raise DualCLError(f"seed must not be negative, got {seed}.")
    num_validation = round(validation * len(pool)) if 0 < validation < 1 else int(validation)
    if labeled < 1 or num_validation < 1 or draws < 1:
        raise DualCLError("At least one labeled case, one validation case and one draw are needed.")
    if labeled + num_validation > len(pool):
        raise DualCLError(
            f"{labeled} labeled and {num_validation} validation out of {len(pool)} "
            f"{'cases' if groups is None else 'groups'}: too many. Lower --labeled or --val."
        )
    shuffled = list(np.random.default_rng(seed).permutation(pool))
    trained_on = set(never_validate)
    may_validate = [group for group in shuffled if group not in trained_on]
    if num_validation > len(may_validate):
        raise DualCLError(
            f"{num_validation} groups are to be validated on, and only {len(may_validate)} of {len(pool)} have no "
            "further unlabeled scans, which training would see. Lower --val, or take scans of some patients out of "
            f"{IMAGES_UNLABELED}."
        )
    val_groups = set(may_validate[:num_validation])
    train_pool = [group for group in shuffled if group not in val_groups]
    folds = []
    for draw in range(draws):
        order = np.random.default_rng([seed, draw]).permutation(train_pool)
        train_groups, unlabeled_groups = set(order[:labeled]), set(order[labeled:])
        folds.append(
            {
                role: sorted(case for case in cases if group_of[case] in chosen)
                for role, chosen in (("train", train_groups), ("val", val_groups), ("unlabeled", unlabeled_groups))
            }
        )
    return folds


def read_groups(path: Path) -> dict[str, str]:
    """Case -> patient from a JSON object or from a CSV or TSV of two columns (a header line is allowed).

    Raises:
        DualCLError: unreadable, not UTF-8, no JSON object, a line without two columns, or a case with two groups.
    """
    text = _read_list(path, "the groups file")
    if path.suffix == ".json":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise DualCLError(f"{path} is no valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise DualCLError(f"{path} must hold an object of case: patient, found {type(content).__name__}.")
        return {case: "" if group is None else str(group) for case, group in content.items()}
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))
    groups: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if not any(column.strip() for column in row) or (number == 1 and tuple(row) == _HEADER):
            continue
        if len(row) != 2:
            raise DualCLError(f"{path}, line {number}: expected 'case,patient', found {','.join(row)!r}.")
        case, group = (column.strip() for column in row)
        if groups.setdefault(case, group) != group:
            raise DualCLError(f"{path}, line {number}: {case} is of {groups[case]} and of {group}. Keep one line.")
    return groups


def read_case_list(path: Path) -> list[str]:
    """Cases of a text file, one a line; blank lines count not.

    Raises:
        DualCLError: unreadable, or not UTF-8.
    """
    lines = _read_list(path, "the list of excluded cases").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _read_list(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark first
    except OSError as error:
        raise DualCLError(f"Cannot read {what} {path}: {error.strerror}.") from None
    except UnicodeError:
        raise DualCLError(f"Cannot read {what} {path}: it is not UTF-8. Save it again with that encoding.") from None


def known_groups(raw_dataset_folder: Path) -> dict[str, str] | None:
    """Case -> patient as ``dualcl convert`` wrote it beside a dataset; None where there is no such file."""
    path = raw_dataset_folder / PATIENTS_FILE
    return read_groups(path) if path.is_file() else None


def check_groups(cases: Iterable[str], groups: Mapping[str, str]) -> None:
    """Refuse cases whose patient is not known.

    Raises:
        DualCLError: naming them.
    """
    if without := _without_group(cases, groups):
        raise DualCLError(
            f"No group given for {first_few(without)}. Every case, unlabeled ones too, needs one line in the "
            "groups file."
        )


def of_groups(cases: Iterable[str], held: Iterable[str], groups: Mapping[str, str]) -> list[str]:
    """Those of ``cases`` that share a patient with one of ``held``, sorted."""
    theirs = {groups.get(case, case) for case in held}
    return sorted(case for case in cases if groups.get(case, case) in theirs)


def check_patients(
    unlabeled: Iterable[str], splits: Iterable[Mapping[str, list[str]]], raw_dataset_folder: Path
) -> None:
    """Refuse unlabeled scans of validation patients, as far as patients are known.

    Validation cases that are trained on, as in fold ``all`` and where a conversion could hold nobody back, keep nobody
    out.

    Raises:
        DualCLError: naming the scans.
    """
    groups = known_groups(raw_dataset_folder)
    held = {case for split in splits for case in set(split.get("val", ())) - set(split.get("train", ()))}
    if groups is not None and (shared := of_groups(unlabeled, held, groups)):
        raise DualCLError(
            f"{raw_dataset_folder / PATIENTS_FILE}: unlabeled scans are of validation patients, and training would see "
            f"them: {first_few(shared)}. Move these out of {raw_dataset_folder / IMAGES_UNLABELED}, draw the split "
            "again over whole patients (dualcl split --force), or correct that file where they are other persons."
        )


def of_unknown_patients(cases: Iterable[str], raw_dataset_folder: Path) -> list[str]:
    """Those of ``cases`` that have no line in the list of patients, sorted; none where there is no such list."""
    groups = known_groups(raw_dataset_folder)
    return [] if groups is None else _without_group(cases, groups)


def _without_group(cases: Iterable[str], groups: Mapping[str, str]) -> list[str]:
    return sorted(case for case in set(cases) if not groups.get(case))  # a blank is no patient


def trained_folds(results_dataset_folder: Path) -> list[str]:
    """Folds with a checkpoint below a dataset's results, ``TRAINER__PLANS__CONFIGURATION/fold_N``, sorted.

    ``fold_all`` is not among them: it has no split.
    """
    folders = {path.parent for path in results_dataset_folder.glob("*/fold_[0-9]*/checkpoint_*.pth")}
    return sorted(path.relative_to(results_dataset_folder).as_posix() for path in folders if is_fold(path.name))


def replace_splits(
    raw_dataset_folder: Path, path: Path, splits: Sequence[Split], *, force: bool, trained: bool = False
) -> None:
    """Write a split file where nnU-Net looks for it, in place of the one that the raw dataset came with.

    nnU-Net copies the raw dataset's split file when it plans, and stops if another one is there by then. So that file
    is kept under another name.

    Args:
        raw_dataset_folder: of the dataset.
        path: split file in the preprocessed dataset.
        splits: to be written.
        force: replace ``path`` whatever it holds.
        trained: whether folds of this dataset were trained, so that ``path`` belongs to them.

    Raises:
        DualCLError: ``path`` holds another split than the raw dataset's, or one that was trained with, and ``force`` is
            off; or the raw dataset's cannot be renamed.
    """
    came_with = raw_dataset_folder / SPLITS_FILE
    is_copy = came_with.is_file() and path.is_file() and path.read_bytes() == came_with.read_bytes()
    refuse_existing(path, force=force or (is_copy and not trained))
    with replacing(path) as partial:  # if it cannot be written, the other one keeps its name
        write_splits(partial, splits)
        if came_with.is_file():
            try:
                came_with.replace(raw_dataset_folder / REPLACED_SPLITS_FILE)
            except OSError as error:
                raise DualCLError(
                    f"{came_with} cannot be renamed to {REPLACED_SPLITS_FILE} ({error.strerror}), and nnU-Net refuses "
                    "two different splits. Make that folder writable, or rename the file by hand. Nothing was changed."
                ) from None


def refuse_existing(path: Path, *, force: bool) -> None:
    """Keep an existing split file, unless ``force``."""
    if path.exists() and not force:
        raise DualCLError(
            f"{path} exists and may belong to finished trainings. Keep a copy and repeat with --force to replace it."
        )


def write_splits(path: Path, splits: Sequence[Split], *, force: bool = False) -> None:
    """Write nnU-Net's split file.

    Raises:
        DualCLError: the file exists and ``force`` is off; it may define trainings that already ran.
    """
    refuse_existing(path, force=force)
    write_text(path, json.dumps(list(splits), indent=2) + "\n")
