"""Refuse at the start, with the reason and the fix, what would fail or mislead later."""

from __future__ import annotations

from pathlib import Path

import torch

from nnunet_dualcl.data.cases import read_split, read_splits
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import SPLITS_FILE

_STOCK_FOLDS = 5


def check_supported(is_cascaded: bool, configuration: str, device: torch.device) -> None:
    """Refuse cascades and Apple's devices.

    Raises:
        DualCLError: naming the alternative.
    """
    if is_cascaded:
        raise DualCLError(
            f"Configuration {configuration} is the second stage of a cascade; its input needs first-stage predictions "
            "of the unlabeled cases, which do not exist. Train 3d_fullres, or this stage with -tr nnUNetTrainer."
        )
    if device.type == "mps":
        raise DualCLError(
            "Training on Apple's mps device is not supported: nobody has tested it. Use -device cuda or -device cpu."
        )


def check_shares(batch_size: int, num_gpus: int, *, batch_dice: bool) -> None:
    """Refuse GPUs that share a batch unevenly where its Dice is pooled: nnU-Net gathers a value of each patch from all
    of them at once, and processes with different numbers of patches abort or wait for ever.

    Raises:
        DualCLError: naming a number of GPUs that works.
    """
    if batch_dice and batch_size % num_gpus:
        fitting = max(number for number in range(1, num_gpus) if batch_size % number == 0)
        raise DualCLError(
            f"{num_gpus} GPUs cannot share a batch of {batch_size} evenly, which nnU-Net's Dice needs with batch_dice, "
            f"as these plans have it. Use -num_gpus {fitting}, or plans with another batch_size."
        )


def check_split(preprocessed_base: str, preprocessed_folder: str, fold: int | str) -> list[str]:
    """Refuse a fold that nnU-Net could not draw, or one without training or validation cases.

    Returns:
        Cases that the split file lists as unlabeled and this fold uses with their labels all the same: fold "all" does.

    Raises:
        DualCLError: naming the split file and the command that writes one.
    """
    base = Path(preprocessed_base)
    split = read_split(base, fold)
    if split is not None:
        for role in ("train", "val"):
            if not split.get(role):
                raise DualCLError(f"{base / SPLITS_FILE}, fold {fold}: no '{role}' case. Write it anew: dualcl split")
        return []
    if fold == "all":
        return sorted({case for split in read_splits(base) for case in split.get("unlabeled", [])})
    if (base / SPLITS_FILE).is_file():
        raise DualCLError(
            f"{base / SPLITS_FILE} has no fold {fold}: it holds folds 0 to {len(read_splits(base)) - 1}. Train one of "
            "these, or write more draws with: dualcl split --draws N --force"
        )
    labeled = sum(1 for _ in Path(preprocessed_folder).glob("*.pkl"))
    if labeled < _STOCK_FOLDS:
        raise DualCLError(
            f"{labeled} preprocessed labeled case(s) in {preprocessed_folder} are too few for nnU-Net's own "
            f"{_STOCK_FOLDS}-fold split. Write one with: dualcl split -d {base.name} --labeled N --val M"
        )
    return []
