"""Nobody on two sides: patients of the test set, scans under two names, and people under two identifiers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from nnunet_dualcl.dataset_conversion.one_case import Record
from nnunet_dualcl.dataset_conversion.plan import Plan, Refusal, Role

_ROLE_ORDER = (Role.TEST, Role.LABELED, Role.UNLABELED)
"""Of cases that are the same scan, the one of the earliest role stays."""
Dropped = list[tuple[Record, str]]
"""Cases to leave out, and why."""


def without_test_patients(plan: Plan) -> Plan:
    """The plan less training cases of patients in the test set, sorted by name."""
    tested = {case.patient for case in plan.cases if case.role is Role.TEST}
    leaks = [case for case in plan.cases if case.role is not Role.TEST and case.patient in tested]
    refused = [Refusal(case.where, "left out of training: its patient is in the test set") for case in leaks]
    names = {case.name for case in leaks}
    cases = tuple(sorted((case for case in plan.cases if case.name not in names), key=lambda case: case.name))
    return replace(plan, cases=cases, refused=(*plan.refused, *refused))


def without_leaks(
    records: Sequence[Record], split: Sequence[Mapping[str, list[str]]] | None, there: Collection[str] = ()
) -> tuple[list[Record], Dropped]:
    """Records to keep, under one patient for everybody who shares a scan, and those to leave out.

    Args:
        records: of all finished cases.
        split: the published one, which fixes who is validated on.
        there: cases that a resumed conversion found; of two with the same voxels and role the one that was there stays.
    """
    patient_of = _one_person(records)
    records = [replace(record, patient=patient_of[record.patient]) for record in records]
    tested = {record.patient for record in records if record.role is Role.TEST}
    validated = {name for fold in split or () for name in fold["val"] if set(fold["val"]) != set(fold["train"])}
    held_back = {record.patient for record in records if record.name in validated}
    owner: dict[str, str] = {}
    kept: list[Record] = []
    dropped: Dropped = []
    earlier = set(there)
    order = sorted(records, key=lambda each: (_ROLE_ORDER.index(each.role), each.name not in earlier, each.name))
    for record in order:
        twins = [owner[pixels] for pixels in record.pixel_hashes if pixels in owner]
        if twins:
            dropped.append((record, f"{record.name} has the same voxels as {twins[0]}"))
        elif record.role is not Role.TEST and record.patient in tested:
            dropped.append((record, f"{record.name}: its patient is in the test set by another identifier"))
        elif record.role is Role.UNLABELED and record.planned_role is Role.LABELED and record.patient in held_back:
            dropped.append((record, f"{record.name} has an empty label, and its patient is validated on"))
        else:
            kept.append(record)
            owner.update(dict.fromkeys(record.pixel_hashes, record.name))
    return sorted(kept, key=lambda record: record.name), sorted(dropped, key=lambda pair: pair[0].name)


def _one_person(records: Sequence[Record]) -> dict[str, str]:
    """Patient -> the first by name of all patients that are linked by equal scans."""
    person = {record.patient: record.patient for record in records}

    def first(patient: str) -> str:
        while person[patient] != patient:
            patient = person[patient]
        return patient

    seen: dict[str, str] = {}
    for record in records:
        for pixels in record.pixel_hashes:
            one, other = sorted((first(record.patient), first(seen.setdefault(pixels, record.patient))))
            person[other] = one
    return {patient: first(patient) for patient in person}
