"""``dualcl doctor``: look at an installation and say the fix for each fault."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from nnunet_dualcl.layout import EXT_TRAINER_VARIABLE, trainers_folder

Status = Literal["ok", "note", "fault"]
_LEAST_NNUNET, _FIRST_UNTESTED_NNUNET = (2, 8, 1), (2, 9)


@dataclass(frozen=True)
class Finding:
    """One checked thing; ``fix`` is empty where nothing is to be done."""

    status: Status
    what: str
    fix: str = ""


def diagnose() -> Iterator[Finding]:
    """Findings in the order in which a new installation meets them."""
    yield _nnunet_version()
    yield _torchvision()
    yield _device()
    yield _trainer_variable()
    yield _trainer_lookup()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        yield _folder(name)


def _nnunet_version() -> Finding:
    try:
        found = version("nnunetv2")
    except PackageNotFoundError:
        return Finding("fault", "nnunetv2 is not installed", "pip install 'nnunetv2>=2.8.1,<2.9'")
    release = re.match(r"\d+(\.\d+)*", found)
    numbers = tuple(int(part) for part in release[0].split(".")) if release else ()
    if not _LEAST_NNUNET <= numbers < _FIRST_UNTESTED_NNUNET:
        return Finding(
            "fault",
            f"nnunetv2 {found} is not of the tested 2.8 series (2.8.1 or later)",
            "pip install 'nnunetv2>=2.8.1,<2.9'",
        )
    return Finding("ok", f"nnunetv2 {found}")


def _torchvision() -> Finding:
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Finding(
            "fault",
            f"torchvision does not load ({reason}); nnU-Net's trainer search needs it",
            "torch and torchvision come from different builds: pip install --force-reinstall torch torchvision",
        )
    return Finding("ok", f"torch {version('torch')} and torchvision {version('torchvision')} fit together")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("ok", f"CUDA device: {torch.cuda.get_device_name()}")
    return Finding("note", "no CUDA device", "add '-device cpu' (slow) to training and prediction")


def _trainer_variable() -> Finding:
    entries = [Path(entry) for entry in os.environ.get(EXT_TRAINER_VARIABLE, "").split(os.pathsep) if entry.strip()]
    if trainers_folder() in [entry.resolve() for entry in entries]:
        return Finding("ok", f"{EXT_TRAINER_VARIABLE} names our trainer folder")
    return Finding(
        "note",
        f"{EXT_TRAINER_VARIABLE} does not name our trainer folder: stock nnUNetv2_train will not find DualCLTrainer",
        'eval "$(dualcl env)", or use dualcl train and dualcl predict',
    )


def _trainer_lookup() -> Finding:
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    try:
        found = recursive_find_python_class(
            str(trainers_folder()), "DualCLTrainer", None, cleanup_imports_from_base_folder=True
        )
    except Exception as error:
        return Finding(
            "fault", f"nnU-Net cannot import our trainers: {error}", "pip install --force-reinstall nnunet-dualcl"
        )
    if found is None:
        return Finding(
            "fault", f"no DualCLTrainer in {trainers_folder()}", "pip install --force-reinstall nnunet-dualcl"
        )
    return Finding("ok", "nnU-Net can import DualCLTrainer from our trainer folder")


def _folder(name: str) -> Finding:
    value = os.environ.get(name)
    if not value:
        return Finding("fault", f"{name} is not set", f"export {name}=/path/to/{name}")
    path = Path(value)
    if path.exists() and not path.is_dir():
        return Finding("fault", f"{name}={value} is a file", f"export {name}=/path/to/{name}")
    if not path.is_dir():
        return Finding("fault", f"{name}={value} is no folder", f"mkdir -p {shlex.quote(value)}")
    if not os.access(path, os.W_OK) and name != "nnUNet_raw":  # training only reads raw data
        return Finding(
            "fault", f"{name}={value} cannot be written to", f"chmod u+w {shlex.quote(value)}, or choose another folder"
        )
    return Finding("ok", f"{name}={value}")
