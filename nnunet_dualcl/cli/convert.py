"""``dualcl convert KIND IN -d ID -n NAME``: the converters of ``dataset_conversion`` as commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from nnunet_dualcl.data.cases import ROLES, list_case_images, raw_training_images, read_splits
from nnunet_dualcl.data.plans import read_json
from nnunet_dualcl.data.splits import check_patients
from nnunet_dualcl.errors import DualCLError, first_few
from nnunet_dualcl.layout import IMAGES_UNLABELED, SPLITS_FILE, folder_if_set, required_folder

KINDS = {
    "folder": "any tree of NIfTI, NRRD or MetaImage files, with or without labels",
    "dicom": "a DICOM export, segmentations as RTSTRUCT or SEG",
    "msd": "a task of the Medical Segmentation Decathlon",
    "la2018": "the 2018 Left Atrium challenge: NRRD folders or h5 files",
    "pancreas_ct": "NIH Pancreas-CT: DICOM series with NIfTI labels",
    "acdc": "the ACDC challenge's patients",
    "mnms": "the M&Ms challenge's patients, with its unlabeled ones",
    "brats": "a release of BraTS",
    "flare22": "FLARE 2022: 50 labeled and 2,000 unlabeled scans",
}
"""Modules of ``dataset_conversion`` and what they read."""
_AGAIN = (
    "Then make the labeled cases anew: nnUNetv2_preprocess with the plans that are there, or "
    "nnUNetv2_plan_and_preprocess ... --clean for new plans. Move the folders of folds that are trained already away."
)
_NEXT = "Next: nnUNetv2_plan_and_preprocess -d {} -c 3d_fullres --verify_dataset_integrity"


def convert(argv: Sequence[str]) -> int:
    """Parse and run; 0 where all cases came through, 1 where some failed."""
    from nnunet_dualcl.dataset_conversion.plan import Options
    from nnunet_dualcl.dataset_conversion.write import dry_run, write_dataset

    arguments, unknown = _parser(argv).parse_known_args(argv)
    if unknown:
        raise DualCLError(
            f"Not understood: {' '.join(unknown)}. Put patterns with * into quotes, or the shell fills them in; "
            f"dualcl convert {arguments.kind} -h lists the options."
        )
    module = _module(arguments.kind)
    options = Options(
        processes=arguments.np,
        resume=arguments.resume,
        resample_labels=arguments.resample_labels,
        copy_label_headers=arguments.copy_label_headers,
        resample_channels=arguments.resample_channels,
        empty_labels=arguments.empty_labels,
        other_values=arguments.other_values,
        folds=arguments.folds,
        seed=arguments.seed,
        key_list=arguments.key_list,
    )
    if not 1 <= arguments.d <= 999:
        raise DualCLError(f"-d must be 1 to 999, got {arguments.d}.")
    target = required_folder("nnUNet_raw") / f"Dataset{arguments.d:03d}_{arguments.n}"
    plan = module.plan(arguments.source, **module.keywords(arguments))
    if arguments.dry_run:
        print(dry_run(plan, target, options))
        return 1 if plan.damaged else 0
    try:
        report = write_dataset(plan, target, options)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished cases are kept in {target}; repeat the command with --resume to go on.")
        return 130
    print(report.summary())
    if report.exit_code:
        print("To mend what failed: repair the source, or choose other options, and repeat the command with --resume.")
    if report.redone:
        print(f"{len(report.redone)} case(s) whose files have changed were converted anew: {first_few(report.redone)}.")
    if report.folds:
        notes = _before_planning(target, report.redone)
        print("\n".join(notes) if notes else _NEXT.format(arguments.d))
    return int(report.exit_code)


def _before_planning(target: Path, redone: Sequence[str]) -> list[str]:
    """What a dataset that was planned before needs; nnU-Net stops, without a word, at a split that is not its own."""
    planned = folder_if_set("nnUNet_preprocessed") / target.name / SPLITS_FILE
    if not planned.is_file():
        return []
    notes = []
    if redone:
        notes.append(f"Of changed cases nnU-Net still has what it preprocessed before. {_AGAIN}")
    own = target / SPLITS_FILE
    if own.is_file():
        if planned.read_bytes() == own.read_bytes():
            return notes
        notes.append(
            "This dataset was planned before, with another split, and nnU-Net will not plan again with both. Copy "
            f"{own} over {planned}, which trainings of before may need: keep it elsewhere then. {_AGAIN}"
        )
        return notes
    try:
        splits = read_splits(planned.parent)
    except DualCLError as error:
        return [*notes, str(error)]
    listed = {case for split in splits for role in ROLES for case in split.get(role, [])}
    dataset_json = read_json(target / "dataset.json")
    unlabeled = list_case_images(target / IMAGES_UNLABELED, dataset_json["file_ending"])
    try:
        check_patients(unlabeled, splits, target)
    except DualCLError as error:
        notes.append(str(error))
    labeled = raw_training_images(target, dataset_json)
    if new := sorted(set(labeled) - listed):
        notes.append(
            f"{len(new)} labeled case(s) are in no fold of {planned}, which dualcl split wrote: {first_few(new)}. "
            f"Unless they were left out on purpose, draw again with: dualcl split ... --force. {_AGAIN}"
        )
    return notes


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all kinds; only the module of the one that is asked for is imported."""
    parser = argparse.ArgumentParser(prog="dualcl convert", description="Clinical data to nnU-Net's raw format.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, what in KINDS.items():
        command = kinds.add_parser(kind, help=what, description=f"From {what}.")
        command.add_argument("source", type=Path, metavar="IN", help="folder that holds the data")
        command.add_argument("-d", type=int, required=True, metavar="ID", help="dataset number, 1 to 999")
        command.add_argument("-n", required=True, metavar="NAME", help="dataset name")
        if kind in argv:
            _module(kind).add_arguments(command)
        _add_common_arguments(command)
    return parser


def _add_common_arguments(command: argparse.ArgumentParser) -> None:
    from nnunet_dualcl.dataset_conversion.plan import EMPTY_LABELS, OTHER_VALUES

    command.add_argument("-np", type=int, default=2, metavar="PROCESSES", help="cases at a time (default 2)")
    command.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    command.add_argument("--resume", action="store_true", help="go on with a dataset that exists: do what is missing")
    command.add_argument("--resample-labels", action="store_true", help="labels on another grid: nearest neighbor")
    command.add_argument(
        "--copy-label-headers", action="store_true", help="labels whose header was lost: voxel for voxel"
    )
    command.add_argument("--resample-channels", action="store_true", help="channels on another grid: linear")
    command.add_argument("--empty-labels", choices=EMPTY_LABELS, default="refuse", help="default: %(default)s")
    command.add_argument(
        "--other-values", choices=OTHER_VALUES, default="refuse", help="label values not named (default: %(default)s)"
    )
    command.add_argument("--folds", type=int, default=5, help="of a split drawn over patients (default 5)")
    command.add_argument("--seed", type=int, default=0, help="of that split (default 0)")
    command.add_argument("--key-list", type=Path, metavar="FILE", help="also write which case is which patient")


def _module(kind: str) -> Any:
    try:
        return import_module(f"nnunet_dualcl.dataset_conversion.{kind}")
    except ModuleNotFoundError as error:
        raise DualCLError(f"{error}. Install this package again: pip install .") from None
