"""Every folder and file name this package reads or writes beside nnU-Net's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunet_dualcl.errors import DualCLError

IMAGES_UNLABELED = "imagesUnlabeled"
"""Folder of a raw dataset that holds images without labels, named like those in ``imagesTr``."""

STOCK_TRAINER = "nnUNetTrainer"
PATIENTS_FILE = Path("conversion") / "patients.csv"
"""In a converted raw dataset: each case, unlabeled ones too, and its patient."""

SPLITS_FILE = "splits_final.json"
"""nnU-Net's split file; a fold may carry an ``unlabeled`` list, which nnU-Net itself ignores."""

REPLACED_SPLITS_FILE = "splits_of_conversion.json"
"""Where a raw dataset keeps the split that it came with, once ``dualcl split`` has drawn another."""

CONFIG_FILE = "dualcl_config.yaml"
TRAINING_LOCK_FILE = "training.lock"
TERM_LOG_FILE = "dualcl_terms.csv"
TERM_PICTURE_FILE = "dualcl_progress.png"
PREPROCESSED_STAMP_FILE = "dualcl_preprocessed.json"
PROVENANCE_FILE = "dualcl_provenance.json"

EXT_TRAINER_VARIABLE = "nnUNet_extTrainer"
CONFIG_VARIABLE = "DUALCL_CONFIG"


def trainers_folder() -> Path:
    """Folder that ``nnUNet_extTrainer`` must name: it holds trainer modules and nothing else."""
    return Path(__file__).resolve().parent / "trainers"


def with_trainers_folder(current: str | None) -> str:
    """The value of ``nnUNet_extTrainer`` with our folder first, keeping what was there."""
    ours = str(trainers_folder())
    others = [entry for entry in (current or "").split(os.pathsep) if entry.strip() and entry != ours]
    return os.pathsep.join([ours, *others])


def dataset_name(name_or_id: str | int) -> str:
    """Full name (``DatasetXXX_NAME``) of a dataset given by name or number.

    Raises:
        DualCLError: no dataset, or more than one, has this number.
    """
    if not str(name_or_id).isdigit():
        if not str(name_or_id).startswith("Dataset"):
            raise DualCLError(f"'{name_or_id}' is neither a dataset number nor a name such as Dataset004_Hippocampus.")
        return str(name_or_id)
    candidates = [str(name) for name in find_candidate_datasets(int(name_or_id))]
    if len(candidates) != 1:
        found = f"found {', '.join(candidates)}" if candidates else "found none"
        unset = [name for name in ("nnUNet_raw", "nnUNet_preprocessed") if not os.environ.get(name)]
        fix = f"Set {' and '.join(unset)}" if unset else f"There are: {', '.join(_datasets()) or 'no datasets'}"
        raise DualCLError(
            f"Dataset {name_or_id}: {found}. Looked in nnUNet_raw={nnUNet_raw.get()}, "
            f"nnUNet_preprocessed={nnUNet_preprocessed.get()} and "
            f"nnUNet_results={os.environ.get('nnUNet_results')}. {fix}; or give the full name."
        )
    return candidates[0]


def _datasets() -> list[str]:
    folders = [Path(os.environ[name]) for name in ("nnUNet_raw", "nnUNet_preprocessed")]
    return sorted({path.name for folder in folders for path in folder.glob("Dataset*") if path.is_dir()})


def required_folder(variable: str) -> Path:
    """Folder named by one of nnU-Net's three path variables.

    Raises:
        DualCLError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise DualCLError(f"The variable {variable} is not set. Run: export {variable}=/path/to/{variable}")
    return Path(value)


def folder_if_set(variable: str) -> Path:
    """Folder named by one of nnU-Net's three path variables; nothing lies below it where the variable is not set."""
    return Path(os.environ.get(variable) or os.devnull)


def is_fold(name: str) -> bool:
    """Whether nnU-Net takes a folder of this name for a fold; ``fold_0_old`` is one that was moved aside."""
    return re.fullmatch(r"fold_(\d+|all)", name) is not None


def unlabeled_preprocessed_folder(preprocessed_dataset_folder: Path, data_identifier: str) -> Path:
    """Preprocessed unlabeled cases lie beside the labeled ones of the same configuration."""
    return preprocessed_dataset_folder / f"{data_identifier}_unlabeled"
