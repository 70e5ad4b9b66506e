"""Run unlabeled images through nnU-Net's preprocessor, with the plans and normalization of the labeled ones."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.data.cases import CaseImages, check_disjoint, read_split, read_splits, unlabeled_case_images
from nnunet_dualcl.data.plans import check_configuration, read_json, read_plans, unlabeled_command
from nnunet_dualcl.data.splits import check_patients, of_unknown_patients
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.layout import (
    IMAGES_UNLABELED,
    PATIENTS_FILE,
    PREPROCESSED_STAMP_FILE,
    SPLITS_FILE,
    dataset_name,
    folder_if_set,
    required_folder,
    unlabeled_preprocessed_folder,
)
from nnunet_dualcl.parallel import results
from nnunet_dualcl.preprocessing.one_case import PROPERTIES_ENDING, Job, fault_of, of_the_disk
from nnunet_dualcl.preprocessing.record import changed, decisive_values, other_values, read_stamp, refuse_other_plans

_LEFTOVER_SECONDS = 24 * 60 * 60

_MANY = 10
"""Cases from which on it is worth saying beforehand what they need."""

_SURELY = 0.8
"""Share of the estimated disk space that must be free; unlabeled scans may be smaller than labeled ones."""


@dataclass
class PreprocessReport:
    """What happened to each case, by name."""

    folder: Path
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def preprocess_dataset(
    dataset: str | int,
    configuration: str,
    plans_name: str = "nnUNetPlans",
    *,
    num_processes: int = 4,
    force: bool = False,
    show_progress: bool = True,
) -> PreprocessReport:
    """Preprocess every unlabeled case of a dataset: those in ``imagesUnlabeled`` and those of all folds' splits.

    Cases already there are kept, unless ``force``. A case that fails is reported and the others go on.

    Raises:
        DualCLError: unknown dataset, plans or configuration, no unlabeled case, or an inconsistent split.
    """
    name = dataset_name(dataset)
    preprocessed = required_folder("nnUNet_preprocessed") / name
    plans = read_plans(preprocessed, plans_name)
    dataset_json = read_json(preprocessed / "dataset.json")
    splits = read_splits(preprocessed)
    raw = required_folder("nnUNet_raw") / name
    cases: CaseImages = {}
    for fold, split in enumerate(splits or [{}]):
        found_cases = unlabeled_case_images(raw, dataset_json, split.get("unlabeled", []))
        check_disjoint(found_cases, split, where=f"{preprocessed / SPLITS_FILE}, fold {fold}")
        cases.update(found_cases)
    if not cases:
        raise DualCLError(no_unlabeled_message(raw))
    return preprocess_unlabeled(
        cases,
        plans,
        configuration,
        dataset_json,
        preprocessed,
        in_folder=_in_folder(raw, cases),
        num_processes=num_processes,
        force=force,
        show_progress=show_progress,
    )


def ensure_unlabeled(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    preprocessed_dataset_folder: Path,
    fold: int | str,
    *,
    num_processes: int,
    required: bool = True,
) -> tuple[Path, list[str]]:
    """The unlabeled cases of a fold, preprocessed now where that was not done before.

    Of a raw folder that is not at hand (a compute node with preprocessed data only), the cases already preprocessed
    are used. Unless ``required``, there may be none.

    Returns:
        The folder of preprocessed unlabeled cases, and the sorted names of those that belong to the fold.

    Raises:
        DualCLError: no unlabeled case, an inconsistent split, or a case that cannot be preprocessed.
    """
    split = read_split(preprocessed_dataset_folder, fold) or {}
    listed = split.get("unlabeled", [])
    raw = folder_if_set("nnUNet_raw") / preprocessed_dataset_folder.name
    check_configuration(plans, configuration)
    manager = PlansManager(plans).get_configuration(configuration)
    folder = unlabeled_preprocessed_folder(preprocessed_dataset_folder, manager.data_identifier)
    labeled = preprocessed_dataset_folder / manager.data_identifier
    kept = _without_raw_images(raw, dataset_json, folder, listed, _finished(labeled))
    cases = unlabeled_case_images(raw, dataset_json, sorted(set(listed) - kept)) if raw.is_dir() else {}
    names = sorted(kept | set(cases))
    missing = sorted(set(listed) - set(names))
    if missing or (required and not names):
        if raw.is_dir():
            raise DualCLError(no_unlabeled_message(raw, all_labeled=fold == "all"))
        raise DualCLError(
            f"{folder} holds no preprocessed images of {first_few(missing) or 'unlabeled cases'}, and the raw "
            f"dataset is not at nnUNet_raw={os.environ.get('nnUNet_raw')}. Run dualcl preprocess where it is."
        )
    check_disjoint(names, split, where=f"{preprocessed_dataset_folder / SPLITS_FILE}, fold {fold}")
    check_patients(names, [split], raw)
    if unknown := of_unknown_patients(names, raw):
        tqdm.write(
            f"{raw / PATIENTS_FILE} has no line for {len(unknown)} unlabeled case(s): {first_few(unknown)}. "
            "Whether their patients are validated or tested on is not known. Add lines CASE,PATIENT."
        )
    if kept:
        refuse_other_plans(folder, decisive_values(plans, manager.configuration))
    if kept and raw.is_dir():
        tqdm.write(
            f"Images of {len(kept)} unlabeled cases are not at {raw}: what was preprocessed of them is used. "
            f"To leave out those of {IMAGES_UNLABELED}, empty that folder instead of removing it."
        )
    if cases:
        report = preprocess_unlabeled(
            cases,
            plans,
            configuration,
            dataset_json,
            preprocessed_dataset_folder,
            in_folder=_in_folder(raw, cases),
            num_processes=num_processes,
            beforehand=unlabeled_command(preprocessed_dataset_folder.name, plans["plans_name"], configuration),
        )
        if report.failed:
            faults = first_few([f"{case} ({fault})" for case, fault in sorted(report.failed.items())], "; ")
            raise DualCLError(
                f"{len(report.failed)} unlabeled case(s) cannot be used: {faults}. Mend them or take them out."
            )
    return folder, names


def _without_raw_images(
    raw: Path, dataset_json: Mapping[str, Any], folder: Path, listed: Sequence[str], labeled: Collection[str]
) -> set[str]:
    """Unlabeled cases that are preprocessed and whose folder of images is not at hand.

    One that got its label since is unlabeled only where the split lists it as that.
    """
    present = _finished(folder)
    kept: set[str] = set()
    if not (raw / IMAGES_UNLABELED).is_dir():
        kept |= present & set(read_stamp(folder).get(IMAGES_UNLABELED, [])) - set(labeled)
    if not raw.is_dir() or ("dataset" not in dataset_json and not (raw / "imagesTr").is_dir()):
        kept |= present & set(listed)
    return kept


def _finished(folder: Path) -> set[str]:
    """Cases that are preprocessed in a folder."""
    return {path.name.removesuffix(PROPERTIES_ENDING) for path in folder.glob(f"[!.]*{PROPERTIES_ENDING}")}


def _in_folder(raw: Path, cases: CaseImages) -> list[str] | None:
    """Those of ``cases`` that lie in ``imagesUnlabeled``; None where that folder is not at hand."""
    folder = raw / IMAGES_UNLABELED
    return [case for case, files in cases.items() if files[0].parent == folder] if folder.is_dir() else None


def no_unlabeled_message(raw_dataset_folder: Path, *, all_labeled: bool = False) -> str:
    """What to do where a dataset has no unlabeled case, or fold ``all`` takes every case of the splits as labeled."""
    if all_labeled:
        return (
            f"No unlabeled case for {raw_dataset_folder.name} in fold all, which trains on every label and leaves the "
            f"lists of {SPLITS_FILE} aside. Train a numbered fold, put images without labels into "
            f"{raw_dataset_folder / 'imagesUnlabeled'}, or use -tr nnUNetTrainer."
        )
    return (
        f"No unlabeled case for {raw_dataset_folder.name}. Put images without labels into "
        f"{raw_dataset_folder / 'imagesUnlabeled'} (named like imagesTr), or list cases as 'unlabeled' in "
        f"{SPLITS_FILE} (dualcl split writes it). To train without unlabeled data, use -tr nnUNetTrainer."
    )


def preprocess_unlabeled(
    cases: CaseImages,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    preprocessed_dataset_folder: Path,
    *,
    in_folder: Sequence[str] | None = None,
    num_processes: int,
    force: bool = False,
    show_progress: bool = True,
    beforehand: str | None = None,
) -> PreprocessReport:
    """Preprocess ``cases`` into the folder beside the labeled ones; resumable, each case all or nothing.

    A case whose images have changed since it was preprocessed is done anew. Processes may share the work: each goes
    through the cases in an order of its own and passes over what another has finished.

    Args:
        in_folder: the cases of ``imagesUnlabeled``, recorded for machines without raw data; None leaves the record.
        beforehand: a command to recommend where many cases are to be done.

    Raises:
        DualCLError: the plans do not hold the configuration, the folder was made with other plans, or its disk is or
            would be full.
    """
    check_configuration(plans, configuration)
    manager = PlansManager(plans).get_configuration(configuration)
    folder = unlabeled_preprocessed_folder(preprocessed_dataset_folder, manager.data_identifier)
    decisive = decisive_values(plans, manager.configuration)
    if force:
        # What is to be redone counts as missing from now on: an interrupt or a fault must not leave it in use.
        outdated = [folder / f"{case}{PROPERTIES_ENDING}" for case in cases]
        if other_values(folder, decisive):
            outdated += folder.glob(f"[!.]*{PROPERTIES_ENDING}")
        for path in outdated:
            path.unlink(missing_ok=True)
    else:
        refuse_other_plans(folder, decisive)
    before = read_stamp(folder)
    recorded = before.get(IMAGES_UNLABELED, []) if in_folder is None else sorted(in_folder)
    stamp = {**decisive, IMAGES_UNLABELED: recorded}
    # a finished folder may be read-only; what an older stamp does not hold comes with the next change
    if force or stamp != {**decisive, **before}:
        write_text(folder / PREPROCESSED_STAMP_FILE, json.dumps(stamp, indent=1) + "\n")
    remaining = {}
    # seconds, unless all files were copied and their contents have to be read
    compared = tqdm(cases.items(), desc="Comparing unlabeled images", delay=5, disable=not show_progress)
    for case, files in compared:
        properties = folder / f"{case}{PROPERTIES_ENDING}"
        if not properties.is_file():
            remaining[case] = files
        elif changed(properties, files):
            tqdm.write(f"{case}: its images have changed since they were preprocessed; done anew.")
            remaining[case] = files
    report = PreprocessReport(folder, skipped=[case for case in cases if case not in remaining])
    job = Job(plans, configuration, dataset_json, folder)
    if remaining:
        _remove_leftovers(folder)
    if len(remaining) >= _MANY:
        new = sum(not (folder / f"{case}.b2nd").is_file() for case in remaining)  # the others take their old place
        _check_room(folder, preprocessed_dataset_folder / manager.data_identifier, new)
        if beforehand is not None:
            tqdm.write(f"{beforehand}, run before the training on a machine without a GPU, keeps one from waiting.")
    show_progress = show_progress and bool(remaining)
    with tqdm(total=len(remaining), desc="Preprocessing unlabeled cases", disable=not show_progress) as progress:
        for case, fault in results(partial(fault_of, job), _shuffled(remaining), num_processes):
            progress.update()
            if of_the_disk(fault):
                raise DualCLError(
                    f"{folder} cannot be written to, or images not be read: {fault}. Make room there, or mend the "
                    f"disk, and repeat the command: what is finished is kept ({len(report.done)} cases now)."
                )
            if fault is None:
                report.done.append(case)
            else:  # an exception is the system's: a worker killed for lack of memory
                report.failed[case] = fault if isinstance(fault, str) else f"{type(fault).__name__}: {fault}"
                progress.write(f"FAILED {case}: {report.failed[case]}")
    report.done.sort()
    return report


def _shuffled(cases: CaseImages) -> CaseImages:
    """In an order of this process's own, whatever seed the training has: folds that start together share the work."""
    return dict(random.Random().sample(list(cases.items()), len(cases)))


def _check_room(folder: Path, labeled: Path, cases: int) -> None:
    """Say how much so many new cases will take, going by the labeled ones; refuse where that is clearly not free."""
    finished = len(_finished(labeled))
    if not finished or not cases:
        return
    needed = cases * sum(path.stat().st_size for path in labeled.glob("[!.]*")) / finished
    free = shutil.disk_usage(folder).free
    numbers = f"{cases} new unlabeled cases need about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    if free < _SURELY * needed:
        raise DualCLError(f"{folder}: {numbers}. Make room, or set nnUNet_preprocessed to another disk.")
    tqdm.write(f"{folder}: {numbers}.")


def _remove_leftovers(folder: Path) -> None:
    """What a killed process left half written; another one may be writing now, so only what is a day old."""
    for path in folder.glob(".*.partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
