"""Published lists of patients: who is labeled, who is taken as unlabeled, who is for validation and who for testing."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_dualcl.dataset_conversion.folds import Fold
from nnunet_dualcl.dataset_conversion.plan import Refusal, Role, SourceCase
from nnunet_dualcl.errors import DualCLError, first_few

ROLES = {"train": Role.LABELED, "val": Role.LABELED, "unlabeled": Role.UNLABELED, "test": Role.TEST}
"""Part of a list -> what its cases are for."""
UNLISTED = "is in neither the training nor the test list"


@dataclass(frozen=True)
class Lists:
    """Patients of a published split, in its order, which decides who stays labeled.

    Attributes:
        train: labeled or, beyond the first so many, taken as unlabeled.
        test: never trained on.
        val: for validation; empty where the publication has none.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    val: tuple[str, ...] = ()


def read_lists(train_list: Path | None, test_list: Path | None, pattern: str) -> Lists | None:
    """Lists of the user: a name a line, in which ``pattern`` finds the patient; None where neither file is given.

    Raises:
        DualCLError: one file without the other, a file that cannot be read, a line without a patient.
    """
    if train_list is None and test_list is None:
        return None
    if train_list is None or test_list is None:
        raise DualCLError("Give both --train-list and --test-list (an empty file for no test case), or neither.")
    return Lists(_patients(train_list, pattern), _patients(test_list, pattern))


def _patients(path: Path, pattern: str) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DualCLError(f"Cannot read the list {path}: {error}") from None
    found: dict[str, None] = {}  # keeps the order
    for line in lines:
        if line.strip():
            match = re.search(pattern, line)
            if match is None:
                raise DualCLError(f"{path}: {line.strip()!r} names no case of this dataset ({pattern}).")
            found[match[0]] = None
    return tuple(found)


def parts_of(lists: Lists, *, labeled: int | None, val: int) -> dict[str, str]:
    """Patient -> ``train``, ``val``, ``unlabeled`` or ``test``.

    Args:
        lists: published or the user's.
        labeled: the first so many of the training list stay labeled, the rest is taken as unlabeled; None: all stay.
        val: the last so many of the training list are for validation, where the lists have nobody for it.

    Raises:
        DualCLError: more patients are asked for than there are, or one is in two lists.
    """
    twice = [name for name, times in Counter((*lists.train, *lists.val, *lists.test)).items() if times > 1]
    if twice:
        raise DualCLError(f"{first_few(twice)}: in two lists. A patient belongs to one of training and test.")
    if not lists.train:
        raise DualCLError("Nobody is listed for training, so there is nothing to train on.")
    if val and lists.val:
        raise DualCLError(f"These lists have {len(lists.val)} patients for validation; leave --val out.")
    if val < 0 or val >= len(lists.train):
        raise DualCLError(f"--val must be from 0 to {len(lists.train) - 1}, got {val}.")
    kept = lists.train[: len(lists.train) - val]
    if labeled is not None and not 1 <= labeled <= len(kept):
        raise DualCLError(f"--labeled must be from 1 to {len(kept)}, got {labeled}.")
    few = len(kept) if labeled is None else labeled
    return {
        **dict.fromkeys(kept[:few], "train"),
        **dict.fromkeys(kept[few:], "unlabeled"),
        **dict.fromkeys((*lists.train[len(kept) :], *lists.val), "val"),
        **dict.fromkeys(lists.test, "test"),
    }


def published_split(
    cases: Sequence[SourceCase], part_of: Mapping[str, str], left_out: Sequence[Refusal] = ()
) -> tuple[Fold, tuple[str, ...]]:
    """The fold that the lists make of these cases, and notes on it for the report.

    Cases in ``imagesUnlabeled`` are unlabeled in every fold, so the fold names ``train`` and ``val`` alone.

    Args:
        cases: with a patient in ``part_of``.
        part_of: of :func:`parts_of`.
        left_out: what became no case.

    Raises:
        DualCLError: no case is for training.
    """
    fold: Fold = {"train": [], "val": []}
    for case in sorted(cases, key=lambda case: case.name):
        if case.role is Role.LABELED:
            fold[part_of[case.patient]].append(case.name)
    if not fold["train"]:
        listed = [name for name, part in part_of.items() if part == "train"]
        why = first_few([str(each) for each in left_out], "; ")
        raise DualCLError(
            f"No labeled case of the training list was found; it begins with {first_few(listed)}."
            + (f" Left out: {why}." if why else "")
        )
    notes = []
    present = {case.patient for case in cases}
    missing = [patient for patient in part_of if patient not in present]
    if missing:
        notes.append(f"{len(missing)} of {len(part_of)} listed were not found or not used: {first_few(missing)}")
    if not fold["val"]:
        fold["val"] = list(fold["train"])
        why = "no case for validation was found" if "val" in part_of.values() else "the list has nobody for validation"
        notes.append(
            f"{why}: val repeats the labeled training cases, so validation scores are those of cases trained on "
            "(--val N keeps the last N of the training list for it)"
        )
    return fold, tuple(notes)


def add_list_arguments(parser: argparse.ArgumentParser, few: str) -> None:
    """Options of every source with lists; ``few`` says how many labeled ones are usual."""
    parser.add_argument(
        "--labeled", type=int, metavar="N", help=f"first N of the list stay labeled ({few}); default all"
    )
    parser.add_argument("--val", type=int, default=0, metavar="N", help="last N of the training list for validation")
    parser.add_argument("--train-list", type=Path, metavar="FILE", help="your own list: a case a line, in order")
    parser.add_argument("--test-list", type=Path, metavar="FILE", help="your own list of test cases")


def list_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_list_arguments` parsed."""
    names = ("labeled", "val", "train_list", "test_list")
    return {name: getattr(arguments, name) for name in names}
