"""Prepare a benchmark's data, once: raw dataset without the test cases, plans, preprocessed cases and splits."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.benchmark.protocol import Protocol
from nnunet_dualcl.benchmark.results import PREPARED_FILE
from nnunet_dualcl.data.cases import list_case_images
from nnunet_dualcl.data.splits import draw_splits, write_splits
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import IMAGES_UNLABELED, SPLITS_FILE
from nnunet_dualcl.preprocessing import preprocess_dataset
from nnunet_dualcl.small_plans import write_small_plans
from nnunet_dualcl.training.environment import nnunet_folders, variable


def prepare(protocol: Protocol, source: Path, folder: Path) -> None:
    """Fill ``folder`` where that was not done; what an interrupt left half done is done anew.

    Args:
        protocol: says what to hold back and how to plan.
        source: see :func:`nnunet_dualcl.benchmark.run.run_benchmark`.
        folder: of the benchmark, which nnU-Net's variables name already.

    Raises:
        DualCLError: an unlabeled case cannot be preprocessed.
    """
    stamp = folder / PREPARED_FILE
    if stamp.is_file():
        return
    raw = folder / "nnUNet_raw" / protocol.dataset
    preprocessed = folder / "nnUNet_preprocessed" / protocol.dataset
    for unfinished in (raw, preprocessed):
        shutil.rmtree(unfinished, ignore_errors=True)
    test = _raw_dataset(protocol, source, raw)
    extract_fingerprints([protocol.dataset_id], num_processes=2, check_dataset_integrity=True)
    with variable("nnUNet_n_proc_DA", "1"):  # the planner takes it for torch's number of threads, and 0 is none
        plan_experiments([protocol.dataset_id])
    if protocol.small_plans:
        write_small_plans(preprocessed, "nnUNetPlans", protocol.plans, **protocol.small_plans)
    preprocess([protocol.dataset_id], protocol.plans, [protocol.configuration], [2])
    write_splits(preprocessed / SPLITS_FILE, _splits(protocol, raw), force=True)
    report = preprocess_dataset(protocol.dataset_id, protocol.configuration, protocol.plans, num_processes=2)
    if report.failed:
        raise DualCLError(f"Unlabeled cases that cannot be used: {report.failed}")
    write_text(stamp, json.dumps({"source": source.name, "test": test}, indent=2) + "\n")


def check_source(protocol: Protocol, source: Path) -> None:
    """Raise a :class:`DualCLError` where the source has not the layout, or too few cases for the protocol."""
    if not (source / "imagesTr").is_dir() or not (source / "labelsTr").is_dir():
        raise DualCLError(f"{source} has no imagesTr and labelsTr. Give a dataset in nnU-Net's or the MSD's layout.")
    if not protocol.dataset_json and not (source / "dataset.json").is_file():
        raise DualCLError(f"{source} has no dataset.json. Add one, or 'dataset_json' to the protocol.")
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


def _splits(protocol: Protocol, raw: Path) -> list[dict[str, list[str]]]:
    """Draws of each labeled count, then one fold with the whole pool labeled; the validation cases are the same."""
    dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    pool = list(list_case_images(raw / "imagesTr", dataset_json["file_ending"]))
    folds = []
    for count in protocol.labeled:
        folds += draw_splits(
            pool, labeled=count, validation=protocol.validation_cases, draws=protocol.draws, seed=protocol.seed
        )
    first = folds[0]
    return [*folds, {"train": sorted(first["train"] + first["unlabeled"]), "val": first["val"]}]


def _raw_dataset(protocol: Protocol, source: Path, raw: Path) -> list[str]:
    """Write the raw dataset with the test cases in ``imagesTs`` and ``labelsTs``; returns their names."""
    with tempfile.TemporaryDirectory() as scratch:
        if _is_decathlon(source):
            source = _converted(protocol, source, Path(scratch))
        dataset_json = dict(protocol.dataset_json)
        if (source / "dataset.json").is_file():
            dataset_json = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
        ending = dataset_json["file_ending"]
        cases = list_case_images(source / "imagesTr", ending)
        test = _test_cases(protocol, sorted(cases))
        for role in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (raw / role).mkdir(parents=True)
        for case, images in cases.items():
            side = "Ts" if case in test else "Tr"
            for image in images:
                shutil.copyfile(image, raw / f"images{side}" / image.name)
            shutil.copyfile(source / "labelsTr" / f"{case}{ending}", raw / f"labels{side}" / f"{case}{ending}")
        for name in (IMAGES_UNLABELED, "unlabeled"):
            if (source / name).is_dir():
                shutil.copytree(source / name, raw / IMAGES_UNLABELED)
        content = {**dataset_json, "numTraining": len(cases) - len(test)}
        (raw / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return test


def _test_cases(protocol: Protocol, cases: list[str]) -> list[str]:
    if isinstance(protocol.test_cases, int):
        chosen = np.random.default_rng(protocol.seed).permutation(cases)[: protocol.test_cases]
        return sorted(str(case) for case in chosen)
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
        convert_msd_dataset(str(task), num_processes=2)
    return scratch / "nnUNet_raw" / protocol.dataset
