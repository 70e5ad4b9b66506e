"""nnU-Net's own entry points, run in this process with our trainers in reach."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from nnunet_dualcl.layout import EXT_TRAINER_VARIABLE, with_trainers_folder

DEFAULT_TRAINER = "DualCLTrainer"


def run_with_arguments(entry: Callable[[], object], program: str, arguments: Sequence[str]) -> None:
    """Call an entry point that reads ``sys.argv``; ``-tr`` defaults to our trainer."""
    from nnunet_dualcl.training.environment import variable  # imports torch, which `dualcl env` does without

    arguments = list(arguments)
    if not any(argument == "-tr" or argument.startswith("-tr=") for argument in arguments):
        arguments += ["-tr", DEFAULT_TRAINER]
    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        with variable(EXT_TRAINER_VARIABLE, with_trainers_folder(os.environ.get(EXT_TRAINER_VARIABLE))):
            entry()
    finally:
        sys.argv = before
