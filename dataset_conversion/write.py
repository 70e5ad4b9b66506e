"""From a plan to a dataset in nnU-Net's raw format: the same checks, files and report for every source of data."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_dualcl import __version__
from nnunet_dualcl.atomic import write_table, write_text
from nnunet_dualcl.dataset_conversion.folds import Fold, patient_folds, without
from nnunet_dualcl.dataset_conversion.one_case import (
    CASES_FOLDER,
    FILE_ENDING,
    Record,
    bytes_of,
    convert_case,
    is_finished,
    read_record,
    remove,
)
from nnunet_dualcl.dataset_conversion.plan import Options, Plan, Refusal, Role, SourceCase
from nnunet_dualcl.dataset_conversion.report import ConversionReport, write_report
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import REPLACED_SPLITS_FILE, SPLITS_FILE
from nnunet_dualcl.parallel import results

PLAN_FILE = Path("conversion") / "plan.json"
"""What the dataset is made with; a resumed conversion must ask for the same."""
PATIENTS_FILE = Path("conversion") / "patients.csv"
"""case,patient: the groups file of ``dualcl split``."""

_ROOM = 1.1
"""Disk space asked for, as a multiple of the sources' size: the target is compressed as most sources are."""
_STRICT = {"resample_labels": False, "resample_channels": False, "empty_labels": "refuse"}
"""Options as they are before they are loosened for cases that failed; those that came through stay as they are."""
_ROLE_ORDER = (Role.TEST, Role.LABELED, Role.UNLABELED)
"""Of cases that are the same scan, the one of the earliest role stays."""


def write_dataset(plan: Plan, target: Path, options: Options | None = None) -> ConversionReport:
    """Convert every case of a plan; one that fails is reported and the others go on.

    Args:
        plan: see :class:`Plan`.
        target: dataset folder to make, ``DatasetXXX_NAME``.
        options: see :class:`Options`; None for the defaults.

    Returns:
        What became of every case, also written to ``target/conversion`` as ``report.json`` and ``report.html``.

    Raises:
        DualCLError: before any image is read, where the plan or the target will not do, or the disk is too full.
    """
    options = options or Options()
    plan = _without_leaks(plan)
    check_plan(plan)
    _check_target(plan, target, options)
    stored = {case.name: read_record(target, case.name) for case in plan.cases}
    finished: dict[str, Record] = {}
    for case in plan.cases:
        record = stored[case.name]
        if is_finished(record, target, case, len(plan.channels)):
            finished[case.name] = record
    remaining = {case.name: case for case in plan.cases if case.name not in finished}
    _check_disk(target, list(remaining.values()))
    _begin(plan, target, options)
    for outdated in (stored[name] for name in remaining):
        if outdated is not None:  # of a source that has changed; it must not outlive a failure
            remove(outdated, target, len(plan.channels))
    failed = _convert(plan, target, options, remaining, finished)
    kept, repeated = _without_repeats(list(finished.values()))
    for record, _ in repeated:
        remove(record, target, len(plan.channels))
    report = ConversionReport(
        plan=replace(plan, cases=()),
        target=target,
        records=tuple(kept),
        failed=(*plan.damaged, *failed),
        repeated=tuple(
            Refusal(record.where, f"{record.name} has the same voxels as {twin}") for record, twin in repeated
        ),
        folds=tuple(_folds(plan, kept, options)),
        options=options,
    )
    _finish(plan, report)
    return report


def converter(plan: Callable[..., Plan]) -> Callable[..., ConversionReport]:
    """The ``convert(source, target, *, options=None, ...)`` of a source; further keywords are those of its ``plan``."""

    def convert(source: Path, target: Path, *, options: Options | None = None, **found_by: Any) -> ConversionReport:
        return write_dataset(plan(source, **found_by), target, options)

    convert.__doc__ = (
        "Convert to nnU-Net's raw format.\n\n"
        "    Args:\n"
        "        source: as of :func:`plan`.\n"
        "        target: dataset folder to make, ``DatasetXXX_NAME``.\n"
        "        options: of every conversion; see :class:`Options`.\n"
        "        found_by: keywords of :func:`plan`."
    )
    return convert


def check_plan(plan: Plan) -> None:
    """Raise a :class:`DualCLError` for a plan that gives no dataset nnU-Net could train on."""
    names = [case.name for case in plan.cases]
    odd = [name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if odd or twice:
        raise DualCLError(
            f"Case names must be unique and of letters, digits, underscores and hyphens; got "
            f"{', '.join((odd + twice)[:5])}."
        )
    if any(name.lower() == "background" for name in plan.labels):
        raise DualCLError("background is label 0 of every dataset and is not to be named. Leave it out of the labels.")
    values = sorted(plan.label_values)
    if values != list(range(len(values))) or len(values) < 2:
        raise DualCLError(f"nnU-Net wants labels 0, 1, 2 and so on without a gap, got {values}. Renumber them.")
    if not any(case.role is Role.LABELED for case in plan.cases):
        raise DualCLError(
            "No labeled case for training was found, and nnU-Net plans from labeled cases. "
            + "; ".join(f"{each.where}: {each.reason}" for each in (*plan.damaged, *plan.refused)[:5])
        )


def dry_run(plan: Plan, target: Path) -> str:
    """What a conversion would do, as text; no image is read and nothing is written."""
    plan = _without_leaks(plan)
    lines = [f"{target} would get {len(plan.cases)} cases, channels {', '.join(plan.channels)}, labels {plan.labels}."]
    for role in Role:
        cases = [case for case in plan.cases if case.role is role]
        lines.append(f"{role.value}: {len(cases)} of {len({case.patient for case in cases})} patient(s)")
        lines += [f"  {case.name}  <- {case.where}" for case in cases]
    lines += [f"damaged: {each.where}: {each.reason}" for each in plan.damaged]
    lines += [f"left out: {each.where}: {each.reason}" for each in plan.refused]
    lines += [*plan.notes, *plan.screen]
    size = bytes_of({path for case in plan.cases for path in case.files})
    lines.append(f"Sources: {size / 2**30:.2f} GiB; the target needs about as much at most.")
    return "\n".join(lines)


def _without_leaks(plan: Plan) -> Plan:
    """The plan less training cases of patients in the test set."""
    tested = {case.patient for case in plan.cases if case.role is Role.TEST}
    leaks = [case for case in plan.cases if case.role is not Role.TEST and case.patient in tested]
    refused = [Refusal(case.where, "left out of training: its patient is in the test set") for case in leaks]
    names = {case.name for case in leaks}
    cases = tuple(sorted((case for case in plan.cases if case.name not in names), key=lambda case: case.name))
    return replace(plan, cases=cases, refused=(*plan.refused, *refused))


def _check_target(plan: Plan, target: Path, options: Options) -> None:
    match = re.fullmatch(r"Dataset(\d{3})_[A-Za-z0-9_-]+", target.name)
    if match is None:
        raise DualCLError(f"{target.name}: nnU-Net wants a folder such as Dataset042_Liver (letters, digits, _ and -).")
    others = [path for path in sorted(target.parent.glob(f"Dataset{match[1]}_*")) if path.name != target.name]
    if others:
        raise DualCLError(f"{others[0]} has the number {match[1]} already. Choose another with -d.")
    if options.key_list is not None and target.resolve() in options.key_list.resolve().parents:
        raise DualCLError(f"{options.key_list}: the key list must lie outside the dataset, or it travels with it.")
    if options.key_list is not None and options.key_list.exists() and not options.resume:
        raise DualCLError(f"{options.key_list} exists. Name another file for the key list.")
    if not target.exists():
        return
    if not options.resume:
        raise DualCLError(f"{target} exists. Go on with it by --resume, or choose another -d or -n.")
    stored = target / PLAN_FILE
    if not stored.is_file():
        raise DualCLError(f"{target} was not made by this program (no {PLAN_FILE}). Choose another -d or -n.")
    before, now = json.loads(stored.read_text(encoding="utf-8")), _settings(plan, options)
    differing = sorted(key for key in now if before.get(key) not in (now[key], _STRICT.get(key, now[key])))
    if differing:
        raise DualCLError(
            f"{target} was made with other options: "
            + "; ".join(f"{key} {before.get(key)!r}, now {now[key]!r}" for key in differing)
            + ". Repeat with those of before, or convert into a new dataset."
        )
    planned = {case.name for case in plan.cases}
    gone = [path.stem for path in sorted((target / CASES_FOLDER).glob("*.json")) if path.stem not in planned]
    if gone:
        raise DualCLError(
            f"{target} holds {', '.join(gone[:5])}, which the source has no more. Put the files back, or convert "
            "into a new dataset."
        )


def _settings(plan: Plan, options: Options) -> dict[str, Any]:
    """What decides how a case comes out, in JSON's types."""
    decisive = {
        "kind": plan.kind,
        "channels": plan.channels,
        "labels": plan.labels,
        "value_map": {str(value): mapped for value, mapped in sorted(plan.value_map.items())},
        "regions_class_order": plan.regions_class_order,
        "settings": {name: _settled(text, plan.private) for name, text in plan.settings.items()},
        **{name: getattr(options, name) for name in ("resample_labels", "resample_channels", "empty_labels")},
    }
    settings: dict[str, Any] = json.loads(json.dumps(decisive))
    return settings


def _settled(text: str, private: bool) -> str:
    """A setting to compare later; what was typed for private data (names of structures, of people) is hashed."""
    return hashlib.sha256(text.encode()).hexdigest()[:16] if private else text


def _check_disk(target: Path, cases: Sequence[SourceCase]) -> None:
    needed = _ROOM * bytes_of({path for case in cases for path in case.files})
    existing = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise DualCLError(f"{existing} cannot be written to. Set nnUNet_raw to a folder of yours.")
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DualCLError(
            f"{existing}: {free / 2**30:.1f} GiB free, up to {needed / 2**30:.1f} GiB needed. Make room, or set "
            "nnUNet_raw to another disk."
        )


def _begin(plan: Plan, target: Path, options: Options) -> None:
    for leftover in sorted(target.rglob(".*.partial-*")) if target.exists() else []:
        leftover.unlink()  # of a run that was killed
    write_text(target / PLAN_FILE, json.dumps(_settings(plan, options), indent=2, ensure_ascii=False) + "\n")
    (target / CASES_FOLDER).mkdir(parents=True, exist_ok=True)


def _convert(
    plan: Plan,
    target: Path,
    options: Options,
    cases: Mapping[str, SourceCase],
    finished: dict[str, Record],
) -> list[Refusal]:
    """Convert ``cases``, put their records into ``finished``, and return the failures in order of case names."""
    failures: dict[str, Refusal] = {}
    work = partial(_work, replace(plan, cases=()), options, target)
    with tqdm(total=len(cases), desc="Converting", unit="case", disable=not cases) as progress:
        for name, outcome in results(work, cases, options.processes):
            progress.update()
            if isinstance(outcome, Record):
                finished[name] = outcome
                continue
            reason = str(outcome) if isinstance(outcome, DualCLError) else _unforeseen(outcome, plan.private)
            failures[name] = Refusal(f"{name} ({cases[name].where})", reason)
            if reason != str(outcome):  # what the report does not say
                progress.write(f"FAILED {name}: {outcome!r}")
    return [failures[name] for name in sorted(failures)]


def _work(plan: Plan, options: Options, target: Path, _: str, case: SourceCase) -> Record:
    return convert_case(plan, options, target, case)


def _unforeseen(error: Exception, private: bool) -> str:
    """Text for a fault that no check foresaw; it may name anything, so a private report names its kind alone."""
    return type(error).__name__ if private else f"{type(error).__name__}: {error}"


def _without_repeats(records: Sequence[Record]) -> tuple[list[Record], list[tuple[Record, str]]]:
    """Records to keep, and those that repeat a scan of a kept one, with its name."""
    owner: dict[str, str] = {}
    kept, repeated = [], []
    for record in sorted(records, key=lambda record: (_ROLE_ORDER.index(record.role), record.name)):
        twins = [owner[pixels] for pixels in record.pixel_hashes if pixels in owner]
        if twins:
            repeated.append((record, twins[0]))
            continue
        kept.append(record)
        owner.update(dict.fromkeys(record.pixel_hashes, record.name))
    return sorted(kept, key=lambda record: record.name), sorted(repeated, key=lambda pair: pair[0].name)


def _folds(plan: Plan, records: Sequence[Record], options: Options) -> list[Fold]:
    labeled = {record.name: record.patient for record in records if record.role is Role.LABELED}
    if plan.split is not None:
        present = {record.name for record in records}
        listed = {case for fold in plan.split for cases in fold.values() for case in cases}
        moved = {record.name for record in records if record.role is not record.planned_role}
        folds: list[Fold] = without(plan.split, (listed - present) | moved)
        if all(fold["train"] for fold in folds):
            return folds
    if not labeled:
        return []
    unlabeled = {record.patient for record in records if record.role is Role.UNLABELED}
    folds = patient_folds(labeled, folds=options.folds, seed=options.seed, never_validate=unlabeled)
    return folds


def _finish(plan: Plan, report: ConversionReport) -> None:
    target = report.target
    if report.folds:  # without a labeled case there is nothing to plan from, and no dataset.json that says there is
        redrawn = (target / REPLACED_SPLITS_FILE).is_file()
        split_file = target / (REPLACED_SPLITS_FILE if redrawn else SPLITS_FILE)
        write_text(split_file, json.dumps(list(report.folds), indent=2) + "\n")
        write_text(
            target / "dataset.json", json.dumps(_dataset_json(plan, report), indent=2, ensure_ascii=False) + "\n"
        )
    if report.records:
        write_table(target / PATIENTS_FILE, [{"case": each.name, "patient": each.patient} for each in report.records])
    write_report(report)


def _dataset_json(plan: Plan, report: ConversionReport) -> dict[str, Any]:
    content: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(plan.channels)},
        "labels": {"background": 0, **plan.labels},
        "numTraining": report.count(Role.LABELED),
        "file_ending": FILE_ENDING,
        "name": report.target.name.split("_", 1)[1],
        **plan.about,
        "converted_by": f"nnunet-dualcl {__version__}, dualcl convert {plan.kind}",
    }
    if plan.regions_class_order is not None:
        content["regions_class_order"] = list(plan.regions_class_order)
    return content


def write_key_list(path: Path, cases: Sequence[SourceCase], records: Sequence[Record]) -> None:
    """New name -> patient and source, as CSV; it identifies people, so it is readable by its owner alone."""
    present = {record.name for record in records}
    rows = [
        {"case": case.name, "patient": case.patient, "source": case.where, **case.key}
        for case in cases
        if case.name in present
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if rows:
        write_table(path, [{column: row.get(column, "") for column in columns} for row in rows])
        path.chmod(0o600)
