"""Names of cases and patients on resuming: what is there keeps its name, whoever came between."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nnunet_dualcl.dataset_conversion.one_case import CASES_FOLDER, Record, identity_of, read_record
from nnunet_dualcl.dataset_conversion.plan import Plan, SourceCase


def with_kept_names(plan: Plan, target: Path) -> Plan:
    """The plan with the names that its cases and its numbered patients have in ``target``; free ones for what is new.

    Names that follow from the order of a source (``case_0003``) or from what else is in it (``Muller-2``) would go to
    others where scans come later, and splits and trained models go by names.
    """
    records = [read_record(target, path.stem) for path in sorted((target / CASES_FOLDER).glob("*.json"))]
    before = {record.identity: record for record in records if record is not None}
    if not before:
        return plan
    taken = {record.name for record in before.values()}
    patients = _kept_patients(plan, before)
    cases = []
    for case in plan.cases:
        record = before.get(identity_of(case))
        name = _free(case.name, taken) if record is None else record.name
        cases.append(replace(case, name=name, patient=patients[case.patient]))
    return replace(plan, cases=tuple(sorted(cases, key=lambda case: case.name)))


def _kept_patients(plan: Plan, before: Mapping[str, Record]) -> dict[str, str]:
    """Patient of the plan -> what the dataset is to call it; a source that names its patients has the last word."""
    patients = {case.patient: case.patient for case in plan.cases}
    if not plan.private:
        return patients
    known = {case.patient: before[key].patient for case in plan.cases if (key := identity_of(case)) in before}
    taken = set(known.values())
    return {patient: known.get(patient) or _free(patient, taken) for patient in patients}


def distinct(cases: list[SourceCase]) -> list[SourceCase]:
    """Cases whose identity another one has as well get their number among these."""
    seen: Counter[str] = Counter()
    result = []
    for case in cases:
        seen[case.identity] += 1
        result.append(replace(case, identity=f"{case.identity} {seen[case.identity]}"))
    return result


def _free(name: str, taken: set[str]) -> str:
    """A name that nobody has, and nobody gets after: the next number for ``case_0003``, or else ``NAME-2``."""
    lower = {other.lower() for other in taken}  # one file on many disks
    numbered = re.fullmatch(r"((?:case|patient)_)(\d{4,})", name)
    if numbered is not None and name.lower() in lower:
        alike = [re.fullmatch(re.escape(numbered[1]) + r"(\d+)", other) for other in taken]
        name = f"{numbered[1]}{max(int(match[1]) for match in alike if match) + 1:04d}"
    base, number = name, 2
    while name.lower() in lower:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    return name
