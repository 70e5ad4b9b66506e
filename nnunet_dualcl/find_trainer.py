"""Trainers by the name that ``-tr`` takes."""

from __future__ import annotations

import difflib
import importlib
import io
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import EXT_TRAINER_VARIABLE, trainers_folder, with_trainers_folder
from nnunet_dualcl.training.environment import variable


def find_trainer(name: str) -> type[Any]:
    """The class that nnU-Net trains: its own, this package's, or one of a folder that ``nnUNet_extTrainer`` names.

    Raises:
        DualCLError: no trainer has this name; says which there are.
    """
    if name in packaged_trainers():
        found: type[Any] = getattr(importlib.import_module(f"nnunet_dualcl.trainers.{name}"), name)
        return found
    searched = with_trainers_folder(os.environ.get(EXT_TRAINER_VARIABLE))
    try:
        with variable(EXT_TRAINER_VARIABLE, searched), redirect_stdout(io.StringIO()):  # it tells of every file
            found = recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        if "Could not find requested nnunet trainer" not in str(error):
            raise
        folders = {folder: _stems(Path(folder)) for folder in searched.split(os.pathsep)}
        close = difflib.get_close_matches(name, [stem for stems in folders.values() for stem in stems], 1)
        raise DualCLError(
            f"There is no trainer {name}.{f' Did you mean {close[0]}?' if close else ''} nnU-Net's own were looked "
            f"through, and {EXT_TRAINER_VARIABLE}: "
            + "; ".join(f"{folder} has {', '.join(stems) or 'none'}" for folder, stems in folders.items())
            + "."
        ) from None
    return found


def packaged_trainers() -> list[str]:
    """Names of this package's trainers."""
    return _stems(trainers_folder())


def reads_config(trainer: type[Any]) -> bool:
    """Whether it takes a configuration file: this package's trainers and those that inherit from them."""
    return hasattr(trainer, "config_class")


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("[!_]*.py"))
