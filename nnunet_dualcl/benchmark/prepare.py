"""Prepare a benchmark's data, once: raw dataset without the test cases, plans, preprocessed cases and splits."""

from __future__ import annotations

import glob
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

from nnunet_dualcl.atomic import alone, write_text
from nnunet_dualcl.benchmark.protocol import Protocol
from nnunet_dualcl.benchmark.results import PREPARED_FILE
from nnunet_dualcl.data.cases import CaseImages, list_case_images, refuse_misnamed
from nnunet_dualcl.data.splits import Split, draw_splits, known_groups, of_groups, write_splits
from nnunet_dualcl.dataset_conversion.one_case import hash_of
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.evaluation.metrics import check_geometry, read_header
from nnunet_dualcl.layout import IMAGES_UNLABELED, SPLITS_FILE
from nnunet_dualcl.preprocessing import preprocess_dataset
from nnunet_dualcl.small_plans import write_small_plans
from nnunet_dualcl.training.environment import nnunet_folders, variable

_LOCK_FILE = "prepare.lock"
_LABELED_FILE = "labeled.json"
"""What the labeled cases were planned and preprocessed from; there only as long as the preparation is not finished."""
_PROCESSES = min(default_num_processes, os.cpu_count() or 1)
_NO_SPACING = (".tif", ".tiff")
"""nnU-Net keeps the voxel size of these in a JSON file of its own."""


def prepare(protocol: Protocol, source: Path, folder: Path) -> None:
    """Fill ``folder`` where that was not done, in as many processes as ``nnUNet_def_n_proc`` and processors allow.

    After an interrupt the raw dataset is written anew, so that a source mended since counts. The labeled cases are kept
    if they were finished and are the same; each finished unlabeled case is kept if its images are the same.

    Args:
        protocol: says what to hold back and how to plan.
        source: see :func:`nnunet_dualcl.benchmark.run.run_benchmark`.
        folder: of the benchmark, which nnU-Net's variables name already.

    Raises:
        DualCLError: another process is at it, the folder was prepared from another source, or a case will not do.
    """
    with alone(folder / _LOCK_FILE, f"Another process prepares {folder}. Wait for it, or end it."):
        _prepare(protocol, source, folder)


def _prepare(protocol: Protocol, source: Path, folder: Path) -> None:
    stamp = folder / PREPARED_FILE
    if stamp.is_file():
        prepared = json.loads(stamp.read_text(encoding="utf-8"))["source"]
        if prepared != source.name:
            raise DualCLError(f"{folder} was prepared from {prepared}, not from {source.name}. Give -o another folder.")
        return
    raw = folder / "nnUNet_raw" / protocol.dataset
    preprocessed = folder / "nnUNet_preprocessed" / protocol.dataset
    shutil.rmtree(raw, ignore_errors=True)
    test, splits = _raw_dataset(protocol, source, raw)
    made_of = _made_of(raw)
    labeled_stamp = folder / _LABELED_FILE
    if not labeled_stamp.is_file() or json.loads(labeled_stamp.read_text(encoding="utf-8")) != made_of:
        labeled_stamp.unlink(missing_ok=True)
        shutil.rmtree(preprocessed, ignore_errors=True)
        _plan_and_preprocess(protocol, preprocessed)
        write_text(labeled_stamp, json.dumps(made_of, indent=1) + "\n")
    write_splits(preprocessed / SPLITS_FILE, splits, force=True)
    report = preprocess_dataset(protocol.dataset_id, protocol.configuration, protocol.plans, num_processes=_PROCESSES)
    if report.failed:
        faults = first_few([f"{case} ({fault})" for case, fault in sorted(report.failed.items())], "; ")
        raise DualCLError(f"{len(report.failed)} unlabeled case(s) of {source} cannot be used: {faults}. Mend them.")
    write_text(stamp, json.dumps({"source": source.name, "test": test}, indent=2) + "\n")
    labeled_stamp.unlink()


def _made_of(raw: Path) -> dict[str, str]:
    """All that decides what planning and preprocessing make of the labeled cases, beside the protocol."""
    files = [raw / "dataset.json", *(path for role in ("imagesTr", "labelsTr") for path in (raw / role).iterdir())]
    return {"nnunetv2": version("nnunetv2"), "files": hash_of(sorted(files))}


def _plan_and_preprocess(protocol: Protocol, preprocessed: Path) -> None:
    """The labeled cases, as nnU-Net does it."""
    extract_fingerprints([protocol.dataset_id], num_processes=_PROCESSES, check_dataset_integrity=True)
    with variable("nnUNet_n_proc_DA", "1"):  # the planner takes it for torch's number of threads, and 0 is none
        plan_experiments([protocol.dataset_id], protocol.planner)
    if protocol.small_plans:
        options = {**protocol.small_plans, "configuration": protocol.configuration}
        write_small_plans(preprocessed, protocol.planned, protocol.plans, **options)
    preprocess([protocol.dataset_id], protocol.plans, [protocol.configuration], [_PROCESSES])


def check_source(protocol: Protocol, source: Path) -> None:
    """Raise a :class:`DualCLError` where the source has not the layout, or too few cases for the protocol."""
    if not (source / "imagesTr").is_dir() or not (source / "labelsTr").is_dir():
        raise DualCLError(f"{source} has no imagesTr and labelsTr. Give a dataset in nnU-Net's or the MSD's layout.")
    if not protocol.dataset_json and not (source / "dataset.json").is_file():
        raise DualCLError(f"{source} has no dataset.json. Add one, or 'dataset_json' to the protocol.")
    if (source / "unlabeled").is_dir() and (source / IMAGES_UNLABELED).is_dir():
        raise DualCLError(f"{source} has both unlabeled and {IMAGES_UNLABELED}. Put all such images into one of them.")
    names = {path.name for path in (source / "labelsTr").iterdir() if not path.name.startswith(".")}
    needed = protocol.num_test_cases + protocol.validation_cases + max(protocol.labeled) + 1
    if len(names) < needed:
        raise DualCLError(
            f"{source}: {len(names)} labeled cases are too few; the protocol needs {needed} ({protocol.num_test_cases} "
            f"test, {protocol.validation_cases} validation, {max(protocol.labeled)} labeled and at least 1 unlabeled). "
            "Lower test_cases, validation_cases or labeled."
        )
    if not isinstance(protocol.test_cases, int):
        missing = sorted(case for case in protocol.test_cases if not any(name.split(".")[0] == case for name in names))
        if missing or len(set(protocol.test_cases)) < len(protocol.test_cases):
            raise DualCLError(f"{source / 'labelsTr'} lacks test_cases, or they repeat: {', '.join(missing)}.")


def _splits(protocol: Protocol, pool: list[str], groups: Mapping[str, str] | None) -> list[Split]:
    """Draws of each labeled count, then one fold with the whole pool labeled; the validation cases are the same."""
    folds = []
    for count in protocol.labeled:
        folds += draw_splits(
            pool,
            labeled=count,
            validation=protocol.validation_cases,
            draws=protocol.draws,
            seed=protocol.seed,
            groups=groups,
        )
    first = folds[0]
    return [*folds, {"train": sorted(first["train"] + first["unlabeled"]), "val": first["val"]}]


def _raw_dataset(protocol: Protocol, source: Path, raw: Path) -> tuple[list[str], list[Split]]:
    """Write the raw dataset with the test cases in ``imagesTs`` and ``labelsTs``; returns their names and the splits.

    Further unlabeled images of a patient who is tested or validated are left out.
    """
    others = source / ("unlabeled" if (source / "unlabeled").is_dir() else IMAGES_UNLABELED)
    groups = known_groups(source)
    with tempfile.TemporaryDirectory() as scratch:
        if _is_decathlon(source):
            source = _converted(protocol, source, Path(scratch))
        dataset_json = dict(protocol.dataset_json)
        if (source / "dataset.json").is_file():
            dataset_json = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
        ending = dataset_json["file_ending"]
        if ending.lower() in _NO_SPACING:
            raise DualCLError(
                f"{source}: {ending} files hold no voxel size that metrics in mm could go by. Convert them to .nii.gz."
            )
        cases = list_case_images(source / "imagesTr", ending)
        labels = {case: source / "labelsTr" / f"{case}{ending}" for case in cases}
        _check_labels(cases, labels)
        refuse_misnamed(others, ending)
        test = _test_cases(protocol, sorted(cases), groups)
        splits = _splits(protocol, sorted(set(cases) - set(test)), groups)
        unlabeled = list_case_images(others, ending)
        for case in of_groups(unlabeled, [*test, *splits[0]["val"]], groups or {}):
            del unlabeled[case]
        for role in ("imagesTr", "labelsTr", "imagesTs", "labelsTs", *([IMAGES_UNLABELED] if unlabeled else [])):
            (raw / role).mkdir(parents=True)
        for case, images in cases.items():
            side = "Ts" if case in test else "Tr"
            for image in images:
                _copy(image, raw / f"images{side}", ending)
            _copy(labels[case], raw / f"labels{side}", ending)
        for image in itertools.chain(*unlabeled.values()):
            _copy(image, raw / IMAGES_UNLABELED, ending)
        content = {**dataset_json, "numTraining": len(cases) - len(test)}
        (raw / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return test, splits


def _copy(image: Path, folder: Path, ending: str) -> None:
    """With its voxels, where they lie in a file beside it (``.raw`` of an ``.mhd``)."""
    for path in sorted(image.parent.glob(f"{glob.escape(image.name.removesuffix(ending))}.*")):
        shutil.copyfile(path, folder / path.name)


def _check_labels(cases: CaseImages, labels: Mapping[str, Path]) -> None:
    """Each case has a label on the voxels of its image; scoring, at the very end, would stop otherwise."""
    missing = [case for case, label in labels.items() if not label.is_file()]
    if missing:
        raise DualCLError(
            f"No label for {first_few(missing)} in {labels[missing[0]].parent}. "
            f"Move images without labels into {IMAGES_UNLABELED}."
        )
    for case, label in labels.items():
        image = cases[case][0]
        check_geometry(read_header(image), read_header(label), image, label)


def _test_cases(protocol: Protocol, cases: list[str], groups: Mapping[str, str] | None) -> list[str]:
    """Sorted; of a number, whole patients until there are as many cases."""
    group_of = {case: (groups or {}).get(case, case) for case in cases}
    if isinstance(protocol.test_cases, int):
        chosen: list[str] = []
        for group in np.random.default_rng(protocol.seed).permutation(sorted(set(group_of.values()))):
            if len(chosen) < protocol.test_cases:
                chosen += [case for case in cases if group_of[case] == group]
        return sorted(chosen)
    split = sorted(set(of_groups(cases, protocol.test_cases, group_of)) - set(protocol.test_cases))
    if split:
        raise DualCLError(f"test_cases leaves out other scans of its patients: {', '.join(split)}. Add them.")
    return sorted(protocol.test_cases)


def _is_decathlon(source: Path) -> bool:
    path = source / "dataset.json"
    return path.is_file() and "training" in json.loads(path.read_text(encoding="utf-8"))


def _converted(protocol: Protocol, source: Path, scratch: Path) -> Path:
    """nnU-Net's own converter, which wants an ``imagesTs`` folder and a name such as Task04_Hippocampus."""
    task = scratch / f"Task{protocol.dataset_id:02d}_{protocol.dataset_name}"
    task.mkdir()
    (task / "imagesTs").mkdir()
    for name in ("imagesTr", "labelsTr", "dataset.json"):
        (task / name).symlink_to(source / name)
    with nnunet_folders(scratch, results=scratch / "unused"):
        convert_msd_dataset(str(task), num_processes=_PROCESSES)
    return scratch / "nnUNet_raw" / protocol.dataset
