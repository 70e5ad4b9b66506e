"""Folds over patients: no patient on two sides, and none whose unlabeled scans train is validated on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Fold = dict[str, list[str]]


def patient_folds(
    patient_of: Mapping[str, str], *, folds: int, seed: int, never_validate: Iterable[str] = ()
) -> list[Fold]:
    """Cross-validation folds of nnU-Net's split file.

    Args:
        patient_of: labeled case -> patient.
        folds: at most so many; fewer where there are fewer patients.
        seed: the same seed gives the same folds.
        never_validate: patients that stay in ``train``, because unlabeled scans of theirs are trained on in every fold.

    Returns:
        Folds with sorted ``train`` and ``val``. Where fewer than two patients can be told apart there is one fold whose
        ``val`` repeats ``train``, since nnU-Net needs one.
    """
    patients = sorted(set(patient_of.values()))
    turn = [patient for patient in patients if patient not in set(never_validate)]
    shuffled = [str(patient) for patient in np.random.default_rng(seed).permutation(turn)]
    count = min(folds, len(shuffled))
    if count < 1 or len(patients) < 2:
        return [{"train": sorted(patient_of), "val": sorted(patient_of)}]
    result = []
    for fold in range(count):
        validated = set(shuffled[fold::count]) if count > 1 else set(shuffled)
        result.append(
            {
                "train": sorted(case for case, patient in patient_of.items() if patient not in validated),
                "val": sorted(case for case, patient in patient_of.items() if patient in validated),
            }
        )
    return result


def without(split: Sequence[Mapping[str, list[str]]], gone: Iterable[str]) -> list[Fold]:
    """The published ``split`` less cases that are not there; ``val`` repeats ``train`` where nothing is left of it."""
    missing = set(gone)
    folds = [{role: [case for case in cases if case not in missing] for role, cases in fold.items()} for fold in split]
    return [{**fold, "val": fold["val"] or list(fold["train"])} for fold in folds]
