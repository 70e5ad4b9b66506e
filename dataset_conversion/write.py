"""From a plan to a dataset in nnU-Net's raw format: the same checks, files and report for every source of data."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_dualcl import __version__
from nnunet_dualcl.atomic import alone, replacing, write_rows, write_table, write_text
from nnunet_dualcl.dataset_conversion.folds import Fold, patient_folds, without
from nnunet_dualcl.dataset_conversion.kept_names import with_kept_names
from nnunet_dualcl.dataset_conversion.leaks import without_leaks, without_test_patients
from nnunet_dualcl.dataset_conversion.one_case import (
    CASES_FOLDER,
    FILE_ENDING,
    Record,
    bytes_of,
    convert_case,
    is_finished,
    read_record,
    remove,
    write_record,
)
from nnunet_dualcl.dataset_conversion.plan import Options, Plan, Refusal, Role, SourceCase
from nnunet_dualcl.dataset_conversion.report import ConversionReport, write_report
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.layout import PATIENTS_FILE, REPLACED_SPLITS_FILE, SPLITS_FILE
from nnunet_dualcl.parallel import results

PLAN_FILE = Path("conversion") / "plan.json"
"""What the dataset is made with; a resumed conversion must ask for the same."""

_ROOM = 1.1
"""Disk space asked for, as a multiple of the sources' size: the target is compressed as most sources are."""
_STRICT = {
    "resample_labels": False,
    "copy_label_headers": False,
    "resample_channels": False,
    "empty_labels": "refuse",
    "other_values": "refuse",
}
"""Options as they are before they are loosened for cases that failed; those that came through stay as they are."""
_OF_THE_SPLIT = ("folds", "seed")


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
    plan = _of_target(plan, target, options)
    finished = _finished(plan, target)
    remaining = {case.name: case for case in plan.cases if case.name not in finished}
    _check_disk(target, list(remaining.values()))
    with _alone(target):
        return _write_dataset(plan, target, options, remaining, finished)


def _of_target(plan: Plan, target: Path, options: Options) -> Plan:
    """The plan as it will be carried out there; a :class:`DualCLError` where it or the target will not do."""
    plan = without_test_patients(with_kept_names(plan, target) if options.resume else plan)
    check_plan(plan)
    _check_target(plan, target, options)
    return plan


def _finished(plan: Plan, target: Path) -> dict[str, Record]:
    """Records of finished cases, by name, under the patient and place that the source names now."""
    found = {}
    # seconds, unless there are many large sources: their contents are read
    for case in tqdm(plan.cases, desc="Comparing converted cases", unit="case", delay=5):
        record = read_record(target, case.name)
        if is_finished(record, target, case, len(plan.channels)):
            found[case.name] = replace(record, patient=case.patient, where=case.where)
    return found


def _write_dataset(
    plan: Plan, target: Path, options: Options, remaining: Mapping[str, SourceCase], finished: dict[str, Record]
) -> ConversionReport:
    before = {name for name in remaining if read_record(target, name) is not None}
    _begin(plan, target, options, list(remaining))
    for record in finished.values():
        write_record(target, record)
    there = set(finished)
    failed = _convert(plan, target, options, remaining, finished)
    kept, dropped = without_leaks(list(finished.values()), plan.split, there)
    for name in (*remaining.keys() - finished.keys(), *(record.name for record, _ in dropped)):
        remove(target, name, len(plan.channels))
    report = ConversionReport(
        plan=replace(plan, cases=()),
        target=target,
        records=tuple(kept),
        failed=(*plan.damaged, *failed),
        repeated=tuple(Refusal(record.where, reason) for record, reason in dropped),
        folds=tuple(_folds(plan, kept, options)),
        options=options,
        redone=tuple(record.name for record in kept if record.name in before),
    )
    _finish(plan, report)
    if options.key_list is not None:
        _write_key_list(options.key_list, plan.cases, report.records)
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
    """Raise a :class:`DualCLError` for a plan that gives no dataset nnU-Net could train on.

    One without any label is let through: its cases are to join a dataset that has labels.
    """
    names = [case.name for case in plan.cases]
    odd = [name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]
    count = Counter(name.lower() for name in names)  # which is one file on many disks
    twice = [name for name in names if count[name.lower()] > 1]
    if odd or twice:
        raise DualCLError(
            "Case names must be unique and of letters, digits, underscores and hyphens, and differ by more than upper "
            f"and lower case; got {first_few(odd + twice)}."
        )
    if not plan.labels and not plan.cases:
        faults = [str(each) for each in (*plan.damaged, *plan.refused)]
        raise DualCLError(f"No case was found. {first_few(faults, '; ')}")
    if not plan.labels and not any(case.role is Role.LABELED for case in plan.cases):
        return  # unlabeled cases for a dataset that there is
    if any(name.lower() == "background" for name in plan.labels):
        raise DualCLError("background is label 0 of every dataset and is not to be named. Leave it out of the labels.")
    values = sorted(plan.label_values)
    if values != list(range(len(values))) or len(values) < 2:
        raise DualCLError(f"nnU-Net wants labels 0, 1, 2 and so on without a gap, got {values}. Renumber them.")
    if plan.labels.get("ignore", values[-1]) != values[-1]:
        raise DualCLError("ignore must have the highest value of all labels for nnU-Net. Name it last.")
    if not any(case.role is Role.LABELED for case in plan.cases):
        tested = sum(case.role is Role.TEST for case in plan.cases)
        raise DualCLError(
            "No labeled case for training was found, and nnU-Net plans from labeled cases. "
            + (f"{tested} case(s) are for testing. " if tested else "")
            + first_few([str(each) for each in (*plan.damaged, *plan.refused)], "; ")
        )


def dry_run(plan: Plan, target: Path, options: Options | None = None) -> str:
    """What a conversion would do, as text; no image is read and nothing is written.

    Raises:
        DualCLError: where the plan or the target will not do.
    """
    plan = _of_target(plan, target, options or Options())
    _check_disk(target, plan.cases)
    lines = [
        f"{target} would get {len(plan.cases)} case(s), channels {', '.join(plan.channels)}, labels {plan.labels}."
    ]
    for role in Role:
        cases = [case for case in plan.cases if case.role is role]
        lines.append(f"{role.value}: {len(cases)} of {len({case.patient for case in cases})} patient(s)")
        lines += [f"  {case.name}  <- {case.where}" for case in cases]
    lines += [f"damaged: {each}" for each in plan.damaged]
    lines += [f"left out: {each}" for each in plan.refused]
    lines += [*plan.notes, *plan.screen]
    size = bytes_of({path for case in plan.cases for path in case.files})
    lines.append(f"Sources: {size / 2**30:.2f} GiB; the target needs about as much at most.")
    return "\n".join(lines)


def _check_target(plan: Plan, target: Path, options: Options) -> None:
    match = re.fullmatch(r"Dataset(\d{3})_[A-Za-z0-9_-]+", target.name)
    if match is None:
        raise DualCLError(f"{target.name}: nnU-Net wants a folder such as Dataset042_Liver (letters, digits, _ and -).")
    others = [path for path in sorted(target.parent.glob(f"Dataset{match[1]}_*")) if path.name != target.name]
    if others:
        raise DualCLError(f"{others[0]} has the number {match[1]} already. Choose another with -d.")
    if options.key_list is not None and target.resolve() in options.key_list.resolve().parents:
        raise DualCLError(f"{options.key_list}: the key list must lie outside the dataset, or it travels with it.")
    if options.key_list is not None:
        _check_key_list(options.key_list, options.resume)
    if not target.exists():
        return
    if not options.resume:
        raise DualCLError(f"{target} exists. Go on with it by --resume, or choose another -d or -n.")
    stored = target / PLAN_FILE
    if not stored.is_file():
        raise DualCLError(f"{target} was not made by this program (no {PLAN_FILE}). Choose another -d or -n.")
    before, now = json.loads(stored.read_text(encoding="utf-8")), _settings(plan, options)
    before = {**{name: now[name] for name in _OF_THE_SPLIT}, **_STRICT, **before}  # older ones lack some
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
            f"{target} holds {first_few(gone)}, which the source has no more. Put the files back, or convert "
            "into a new dataset."
        )


def _check_key_list(path: Path, resume: bool) -> None:
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DualCLError(f"{path}: its folder does not exist, or cannot be written to. Name another one.")
    if path.exists() and not (resume and path.read_bytes().startswith(b"case,patient,")):
        raise DualCLError(f"{path} exists. Name another file for the key list.")


def _settings(plan: Plan, options: Options) -> dict[str, Any]:
    """What decides how a case comes out, in JSON's types."""
    decisive = {
        "kind": plan.kind,
        "channels": plan.channels,
        "labels": plan.labels,
        "value_map": {str(value): mapped for value, mapped in sorted(plan.value_map.items())},
        "regions_class_order": plan.regions_class_order,
        "settings": {name: _settled(text, plan.private) for name, text in plan.settings.items()},
        **{name: getattr(options, name) for name in (*_STRICT, *_OF_THE_SPLIT)},
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


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Only one conversion at a time works on a target."""
    path = target / "conversion" / "lock"
    with alone(path, f"Another conversion is at work on {target}. Wait for it, or end it."):
        yield
        path.unlink(missing_ok=True)


def _begin(plan: Plan, target: Path, options: Options, remaining: Sequence[str]) -> None:
    """An unfinished dataset: without dataset.json, and without leftovers of killed runs and of changed sources."""
    for name in ("dataset.json", SPLITS_FILE):
        (target / name).unlink(missing_ok=True)
    for leftover in sorted(target.rglob(".*.partial-*")):
        leftover.unlink()
    for name in remaining:
        remove(target, name, len(plan.channels))
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


def _folds(plan: Plan, records: Sequence[Record], options: Options) -> list[Fold]:
    labeled = {record.name: record.patient for record in records if record.role is Role.LABELED}
    if plan.split is not None:
        present = {record.name for record in records}
        listed = {case for fold in plan.split for cases in fold.values() for case in cases}
        moved = {record.name for record in records if record.role is not record.planned_role}
        folds: list[Fold] = without(plan.split, (listed - present) | moved)
        return folds if all(fold["train"] for fold in folds) else []
    if not labeled:
        return []
    unlabeled = {record.patient for record in records if record.role is Role.UNLABELED}
    folds = patient_folds(labeled, folds=options.folds, seed=options.seed, never_validate=unlabeled)
    return folds


def _finish(plan: Plan, report: ConversionReport) -> None:
    target = report.target
    if report.records:
        write_table(target / PATIENTS_FILE, [{"case": each.name, "patient": each.patient} for each in report.records])
    write_report(report)
    if report.folds:  # without a labeled case there is nothing to plan from, and no dataset.json that says there is
        redrawn = (target / REPLACED_SPLITS_FILE).is_file()
        split_file = target / (REPLACED_SPLITS_FILE if redrawn else SPLITS_FILE)
        write_text(split_file, json.dumps(list(report.folds), indent=2) + "\n")
        write_text(
            target / "dataset.json", json.dumps(_dataset_json(plan, report), indent=2, ensure_ascii=False) + "\n"
        )


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


def _write_key_list(path: Path, cases: Sequence[SourceCase], records: Sequence[Record]) -> None:
    """New name -> patient and source, as CSV; it identifies people, so it is readable by its owner alone."""
    present = {record.name for record in records}
    rows = [
        {"case": case.name, "patient": case.patient, "source": case.where, **case.key}
        for case in cases
        if case.name in present
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if rows:
        with replacing(path) as partial:
            partial.touch(mode=0o600)
            write_rows(partial, [{column: row.get(column, "") for column in columns} for row in rows])
