"""Run unlabeled images through nnU-Net's preprocessor, with the plans and normalization of the labeled ones."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.data.cases import CaseImages, check_disjoint, read_split, read_splits, unlabeled_case_images
from nnunet_dualcl.data.plans import check_configuration, read_plans
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import (
    IMAGES_UNLABELED,
    PREPROCESSED_STAMP_FILE,
    SPLITS_FILE,
    dataset_name,
    required_folder,
    unlabeled_preprocessed_folder,
)
from nnunet_dualcl.parallel import results

_PROPERTIES_ENDING = ".pkl"
"""Properties move last, so a case whose properties file exists is complete."""

_MADE_OF = "dualcl_images"
"""Entry of a case's properties: the image files it was made of."""

_LEFTOVER_SECONDS = 24 * 60 * 60


@dataclass
class PreprocessReport:
    """What happened to each case, by name."""

    folder: Path
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """Everything a worker needs, in plain values."""

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    folder: Path


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
    dataset_json = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))
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
    raw = Path(os.environ.get("nnUNet_raw", "")) / preprocessed_dataset_folder.name
    check_configuration(plans, configuration)
    manager = PlansManager(plans).get_configuration(configuration)
    folder = unlabeled_preprocessed_folder(preprocessed_dataset_folder, manager.data_identifier)
    kept = _without_raw_images(raw, dataset_json, folder, listed)
    cases = unlabeled_case_images(raw, dataset_json, sorted(set(listed) - kept)) if raw.is_dir() else {}
    names = sorted(kept | set(cases))
    missing = sorted(set(listed) - set(names))
    if missing or (required and not names):
        if raw.is_dir():
            raise DualCLError(no_unlabeled_message(raw, all_labeled=fold == "all"))
        raise DualCLError(
            f"{folder} holds no preprocessed images of {', '.join(missing[:5]) or 'unlabeled cases'}, and the raw "
            f"dataset is not at nnUNet_raw={os.environ.get('nnUNet_raw')}. Run dualcl preprocess where it is."
        )
    check_disjoint(names, split, where=f"{preprocessed_dataset_folder / SPLITS_FILE}, fold {fold}")
    if kept:
        _refuse_other_plans(folder, _decisive(plans, manager.configuration))
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
        )
        if report.failed:
            faults = "; ".join(f"{case} ({fault})" for case, fault in sorted(report.failed.items()))
            raise DualCLError(f"Unlabeled cases that cannot be used: {faults}. Mend them or take them out.")
    return folder, names


def _without_raw_images(raw: Path, dataset_json: Mapping[str, Any], folder: Path, listed: Sequence[str]) -> set[str]:
    """Unlabeled cases that are preprocessed and whose folder of images is not at hand."""
    present = {path.name.removesuffix(_PROPERTIES_ENDING) for path in folder.glob(f"[!.]*{_PROPERTIES_ENDING}")}
    kept: set[str] = set()
    if not (raw / IMAGES_UNLABELED).is_dir():
        kept |= present & set(_stamp(folder).get(IMAGES_UNLABELED, []))
    if not raw.is_dir() or ("dataset" not in dataset_json and not (raw / "imagesTr").is_dir()):
        kept |= present & set(listed)
    return kept


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
) -> PreprocessReport:
    """Preprocess ``cases`` into the folder beside the labeled ones; resumable, each case all or nothing.

    A case whose images have changed since it was preprocessed is done anew.

    Args:
        in_folder: the cases of ``imagesUnlabeled``, recorded for machines without raw data; None leaves the record.

    Raises:
        DualCLError: the plans do not hold the configuration, or the folder was made with other plans.
    """
    check_configuration(plans, configuration)
    manager = PlansManager(plans).get_configuration(configuration)
    folder = unlabeled_preprocessed_folder(preprocessed_dataset_folder, manager.data_identifier)
    decisive = _decisive(plans, manager.configuration)
    if force:
        # What is to be redone counts as missing from now on: an interrupt or a fault must not leave it in use.
        outdated = [folder / f"{case}{_PROPERTIES_ENDING}" for case in cases]
        if _other_values(folder, decisive):
            outdated += folder.glob(f"[!.]*{_PROPERTIES_ENDING}")
        for path in outdated:
            path.unlink(missing_ok=True)
    else:
        _refuse_other_plans(folder, decisive)
    recorded = _stamp(folder).get(IMAGES_UNLABELED, []) if in_folder is None else sorted(in_folder)
    stamp = {**decisive, IMAGES_UNLABELED: recorded}
    if stamp != _stamp(folder):  # a finished folder may be read-only
        write_text(folder / PREPROCESSED_STAMP_FILE, json.dumps(stamp, indent=1) + "\n")
    report = PreprocessReport(folder)
    # seconds, unless all files were copied and their contents have to be read
    compared = tqdm(cases.items(), desc="Comparing unlabeled images", delay=5, disable=not show_progress)
    for case, files in compared:
        properties = folder / f"{case}{_PROPERTIES_ENDING}"
        if properties.is_file() and _changed(properties, files):
            tqdm.write(f"{case}: its images have changed since they were preprocessed; done anew.")
            properties.unlink()
        elif properties.is_file():
            report.skipped.append(case)
    remaining = {case: files for case, files in cases.items() if case not in report.skipped}
    job = _Job(plans, configuration, dataset_json, folder)
    if remaining:
        _remove_leftovers(folder)
    show_progress = show_progress and bool(remaining)
    with tqdm(total=len(remaining), desc="Preprocessing unlabeled cases", disable=not show_progress) as progress:
        for case, fault in results(partial(_fault_of, job), remaining, num_processes):
            progress.update()
            if fault is None:
                report.done.append(case)
            else:  # an exception is the system's: a worker killed for lack of memory
                report.failed[case] = fault if isinstance(fault, str) else f"{type(fault).__name__}: {fault}"
                progress.write(f"FAILED {case}: {report.failed[case]}")
    report.done.sort()
    return report


def _fault_of(job: _Job, case: str, files: list[Path]) -> str | None:
    printed = io.StringIO()  # nnU-Net's readers print the reason and raise an empty error
    try:
        with contextlib.redirect_stdout(printed):
            _preprocess_case(job, case, files)
    except Exception as error:
        names = ", ".join(str(path) for path in files)
        return f"{names}: {str(error).strip() or printed.getvalue().strip() or type(error).__name__}"
    sys.stdout.write(printed.getvalue())
    return None


def _preprocess_case(job: _Job, case: str, files: list[Path]) -> None:
    plans_manager = PlansManager(job.plans)
    configuration = plans_manager.get_configuration(job.configuration)
    preprocessor = configuration.preprocessor_class(verbose=False)
    for path in files:
        _check_nifti_voxels(path)
    # run_case_save reads, processes and saves; the check sits between reading and processing
    channels = len(job.dataset_json.get("channel_names", job.dataset_json.get("modality", {})))
    preprocessor.run_case_npy = partial(
        _checked_run, preprocessor.run_case_npy, channels, len(configuration.patch_size), _identity(files)
    )
    with tempfile.TemporaryDirectory(dir=job.folder, prefix=f".{case}.partial-") as partial_folder:
        preprocessor.run_case_save(
            os.path.join(partial_folder, case),
            [str(path) for path in files],
            None,
            plans_manager,
            configuration,
            job.dataset_json,
        )
        written = sorted(Path(partial_folder).iterdir(), key=lambda path: path.suffix == _PROPERTIES_ENDING)
        for path in written:
            os.replace(path, job.folder / path.name)


def _check_nifti_voxels(path: Path) -> None:
    """Look at the stored numbers of a floating point NIfTI: SimpleITK hands out NaN and infinity as 0."""
    if not path.name.endswith((".nii", ".nii.gz")):
        return
    stored = nibabel.load(path).dataobj  # type: ignore[attr-defined]
    if stored.dtype.kind == "f":
        _check_finite(np.asanyarray(stored.get_unscaled()))


def _check_finite(voxels: np.ndarray) -> None:
    finite = np.isfinite(voxels)
    if not finite.all():
        raise ValueError(f"{finite.size - finite.sum()} voxels are NaN or infinite; mend the image or take it out")


def _identity(files: Sequence[Path]) -> list[dict[str, Any]]:
    """What tells later whether the images are still the same."""
    return [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "modified_ns": path.stat().st_mtime_ns,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    ]


def _changed(properties_file: Path, files: Sequence[Path]) -> bool:
    """Whether a preprocessed case was made of other images; contents are read where only the time differs."""
    with properties_file.open("rb") as stream:
        made_of = pickle.load(stream).get(_MADE_OF, [])
    now = [(path.name, path.stat().st_size) for path in files]
    if now != [(image["name"], image["bytes"]) for image in made_of]:
        return True
    touched = any(path.stat().st_mtime_ns != image["modified_ns"] for path, image in zip(files, made_of, strict=True))
    return touched and [image["sha256"] for image in _identity(files)] != [image["sha256"] for image in made_of]


def _remove_leftovers(folder: Path) -> None:
    """What a killed process left half written; another one may be writing now, so only what is a day old."""
    for path in folder.glob(".*.partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _checked_run(
    run_case_npy: Any,
    channels: int,
    patch_dimension: int,
    made_of: list[dict[str, Any]],
    data: np.ndarray,
    *rest: Any,
) -> Any:
    """nnU-Net's ``run_case_npy`` behind a look at the image (channels, z, y, x); notes which files it came from."""
    if data.shape[0] != channels:
        raise ValueError(
            f"{data.shape[0]} channels in these files, dataset.json names {channels}; split 4D images into one file "
            "a channel"
        )
    if patch_dimension == 3 and 1 in data.shape[1:]:
        raise ValueError(
            f"a single slice (shape {data.shape[1:]}) among 3D images; take it out or use a 2d configuration"
        )
    _check_finite(data)
    data, segmentation, properties = run_case_npy(data, *rest)
    return data, segmentation, {**properties, _MADE_OF: made_of}


def _decisive(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in the plans that decides what a preprocessed case looks like, as JSON gives it back.

    The patch size is not among it: plans of several presets share one folder of labeled cases, as they do in nnU-Net.
    """
    decisive = {
        "spacing": configuration["spacing"],
        "normalization": [configuration["normalization_schemes"], configuration["use_mask_for_norm"]],
        "preprocessor": configuration["preprocessor_name"],
        "resampling": {key: configuration[key] for key in sorted(configuration) if key.startswith("resampling_fn")},
        "transposition": plans["transpose_forward"],
        "intensities": plans["foreground_intensity_properties_per_channel"],
    }
    plain: dict[str, Any] = json.loads(json.dumps(decisive))
    return plain


def _other_values(folder: Path, decisive: Mapping[str, Any]) -> list[str]:
    """What the plans say otherwise than those that the folder is stamped with; nothing where it has no stamp."""
    stamped = _stamp(folder)
    return [key for key, value in decisive.items() if stamped.get(key) != value] if stamped else []


def _stamp(folder: Path) -> dict[str, Any]:
    """What the folder says of itself; nothing where it has no stamp."""
    path = folder / PREPROCESSED_STAMP_FILE
    stamp: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return stamp


def _refuse_other_plans(folder: Path, decisive: Mapping[str, Any]) -> None:
    """Never mix cases of different plans in one folder."""
    if other := _other_values(folder, decisive):
        raise DualCLError(
            f"{folder} was made with other plans: they differ in {', '.join(other)}. Give the new plans a name of "
            "their own (nnUNetv2_plan_experiment -overwrite_plans_name), or make this folder anew with: "
            "dualcl preprocess ... --force"
        )
