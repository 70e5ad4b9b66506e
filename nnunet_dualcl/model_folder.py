"""What a trained model folder holds, and whether its folds can be used together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nnunet_dualcl.data.plans import read_json, refuse_other_meaning
from nnunet_dualcl.errors import DualCLError


def trained_checkpoints(model_folder: Path, folds: Sequence[int | str] | None, checkpoint_name: str) -> list[Path]:
    """Checkpoints of a trained model folder, of the folds given or of all that have one.

    Raises:
        DualCLError: no such model, or no such checkpoint.
    """
    if not (model_folder / "plans.json").is_file():
        raise DualCLError(f"{model_folder} holds no trained model (no plans.json). Check -d, -c, -p and -tr.")
    if folds is None:
        paths = sorted(model_folder.glob(f"fold_*/{checkpoint_name}"))
        if not paths:
            raise DualCLError(
                f"No {checkpoint_name} in any fold of {model_folder}. Train to the end, or name one with -chk."
            )
        return paths
    paths = [model_folder / f"fold_{fold}" / checkpoint_name for fold in dict.fromkeys(map(str, folds))]
    for path in paths:
        if not path.is_file():
            raise DualCLError(f"{path} does not exist. Train this fold to the end, or name another with -f or -chk.")
    return paths


def check_folds(model_folder: Path, checkpoints: Sequence[Path]) -> None:
    """Refuse folds that nnU-Net would predict with as if they were alike: it takes plans, labels and mirror axes once.

    Weights are not read.

    Args:
        model_folder: with ``plans.json`` and ``dataset.json``, which the last training wrote.
        checkpoints: of its folds.

    Raises:
        DualCLError: a fold trained with other plans, labels or mirror axes, or a file that is no checkpoint.
    """
    plans, dataset_json = (read_json(model_folder / name) for name in ("plans.json", "dataset.json"))
    axes = {}
    for path in checkpoints:
        checkpoint = _read(path)
        refuse_other_meaning(checkpoint, plans, dataset_json, str(path))
        mirrored = checkpoint.get("inference_allowed_mirroring_axes")
        axes[path] = None if mirrored is None else tuple(mirrored)
    first = next(iter(axes.values()), None)
    other = [path for path in axes if axes[path] != first]
    if other:
        raise DualCLError(
            f"{other[0]} was trained with mirroring of axes {axes[other[0]]}, {checkpoints[0]} with {first}; nnU-Net "
            "predicts all folds with the axes of the first. Use one of them at a time, with -f."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except OSError:
        raise
    except Exception:  # torch raises many kinds
        raise DualCLError(
            f"{path} cannot be read: it is cut off, or no checkpoint. Copy it again, or name another with -chk."
        ) from None
    return checkpoint
