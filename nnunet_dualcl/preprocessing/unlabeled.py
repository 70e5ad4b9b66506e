"""Run unlabeled images through nnU-Net's preprocessor, with the plans and normalization of the labeled ones."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping
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
    PREPROCESSED_STAMP_FILE,
    SPLITS_FILE,
    dataset_name,
    required_folder,
    unlabeled_preprocessed_folder,
)
from nnunet_dualcl.parallel import results

_PROPERTIES_ENDING = ".pkl"
"""Properties move last, so a case whose properties file exists is complete."""


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
    cases: CaseImages = {}
    for fold, split in enumerate(splits or [{}]):
        found_cases = unlabeled_case_images(
            required_folder("nnUNet_raw") / name, dataset_json, split.get("unlabeled", [])
        )
        check_disjoint(found_cases, split, where=f"{preprocessed / SPLITS_FILE}, fold {fold}")
        cases.update(found_cases)
    if not cases:
        raise DualCLError(no_unlabeled_message(required_folder("nnUNet_raw") / name))
    return preprocess_unlabeled(
        cases,
        plans,
        configuration,
        dataset_json,
        preprocessed,
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

    Where the raw dataset is not at hand (a compute node with preprocessed data only), the cases already
    preprocessed are used. Unless ``required``, there may be none.

    Returns:
        The folder of preprocessed unlabeled cases, and the sorted names of those that belong to the fold.

    Raises:
        DualCLError: no unlabeled case, an inconsistent split, or a case that cannot be preprocessed.
    """
    split = read_split(preprocessed_dataset_folder, fold) or {}
    listed = split.get("unlabeled", [])
    raw = Path(os.environ.get("nnUNet_raw", "")) / preprocessed_dataset_folder.name
    where = f"{preprocessed_dataset_folder / SPLITS_FILE}, fold {fold}"
    if os.environ.get("nnUNet_raw") and raw.is_dir():
        cases = unlabeled_case_images(raw, dataset_json, listed)
        check_disjoint(cases, split, where=where)
        if not cases:
            if not required:
                return raw, []
            raise DualCLError(no_unlabeled_message(raw))
        report = preprocess_unlabeled(
            cases, plans, configuration, dataset_json, preprocessed_dataset_folder, num_processes=num_processes
        )
        if report.failed:
            faults = "; ".join(f"{case} ({fault})" for case, fault in sorted(report.failed.items()))
            raise DualCLError(f"Unlabeled cases that cannot be used: {faults}. Mend them or take them out.")
        return report.folder, list(cases)
    manager = PlansManager(plans).get_configuration(configuration)
    folder = unlabeled_preprocessed_folder(preprocessed_dataset_folder, manager.data_identifier)
    _refuse_other_plans(folder, _decisive(plans, manager.configuration))
    present = {path.name.removesuffix(_PROPERTIES_ENDING) for path in folder.glob(f"[!.]*{_PROPERTIES_ENDING}")}
    labeled_folder = preprocessed_dataset_folder / manager.data_identifier
    from_images_tr = {
        path.name.removesuffix(_PROPERTIES_ENDING) for path in labeled_folder.glob(f"*{_PROPERTIES_ENDING}")
    }
    names = sorted((present - from_images_tr) | (present & set(listed)))
    missing = sorted(set(listed) - present)
    if missing or (required and not names):
        raise DualCLError(
            f"{folder} holds no preprocessed images of {', '.join(missing[:5]) or 'unlabeled cases'}, and the raw "
            f"dataset is not at nnUNet_raw={os.environ.get('nnUNet_raw')}. Run dualcl preprocess where it is."
        )
    check_disjoint(names, split, where=where)
    return folder, names


def no_unlabeled_message(raw_dataset_folder: Path) -> str:
    """What to do where a dataset has no unlabeled case."""
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
    num_processes: int,
    force: bool = False,
    show_progress: bool = True,
) -> PreprocessReport:
    """Preprocess ``cases`` into the folder beside the labeled ones; resumable, each case all or nothing.

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
    write_text(folder / PREPROCESSED_STAMP_FILE, json.dumps(decisive, indent=1) + "\n")
    report = PreprocessReport(folder)
    report.skipped = [case for case in cases if (folder / f"{case}{_PROPERTIES_ENDING}").is_file()]
    remaining = {case: files for case, files in cases.items() if case not in report.skipped}
    job = _Job(plans, configuration, dataset_json, folder)
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
        _checked_run, preprocessor.run_case_npy, channels, len(configuration.patch_size)
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


def _checked_run(run_case_npy: Any, channels: int, patch_dimension: int, data: np.ndarray, *rest: Any) -> Any:
    """nnU-Net's ``run_case_npy`` behind a look at the image (channels, z, y, x)."""
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
    return run_case_npy(data, *rest)


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
    stamp = folder / PREPROCESSED_STAMP_FILE
    if not stamp.is_file():
        return []
    stamped = json.loads(stamp.read_text(encoding="utf-8"))
    return [key for key, value in decisive.items() if stamped.get(key) != value]


def _refuse_other_plans(folder: Path, decisive: Mapping[str, Any]) -> None:
    """Never mix cases of different plans in one folder."""
    if other := _other_values(folder, decisive):
        raise DualCLError(
            f"{folder} was made with other plans: they differ in {', '.join(other)}. Give the new plans a name of "
            "their own (nnUNetv2_plan_experiment -overwrite_plans_name), or make this folder anew with: "
            "dualcl preprocess ... --force"
        )
