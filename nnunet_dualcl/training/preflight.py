"""Refuse at the start, with the reason and the fix, what would fail or mislead later."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from nnunet_dualcl.data.cases import ROLES, read_split, read_splits
from nnunet_dualcl.errors import DualCLError, first_few
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


def check_split(
    base: Path, labeled_folder: Path, fold: int | str, *, raw: Collection[str], preprocess: str
) -> list[str]:
    """Refuse a fold that nnU-Net could not draw, or one without training or validation cases.

    Beyond the folds of the split file nnU-Net draws a seeded 80:20 split of all labeled cases. Where the file lists
    unlabeled cases that would use their labels, and is refused.

    Args:
        base: preprocessed dataset, with the split file.
        labeled_folder: preprocessed labeled cases of the plans.
        fold: number, or "all".
        raw: labeled cases of the raw dataset; none where it is not at hand.
        preprocess: nnU-Net's command that makes ``labeled_folder``.

    Returns:
        What is no fault and may surprise all the same, a sentence each.

    Raises:
        DualCLError: naming the split file and the command that writes one, or cases that are not preprocessed.
    """
    splits, split = read_splits(base), read_split(base, fold)
    preprocessed = {path.stem for path in labeled_folder.glob("[!.]*.pkl")}
    unlabeled = {case for each in splits for case in each.get("unlabeled", [])}
    new = sorted(set(raw) - preprocessed - unlabeled)
    late = [f"Not preprocessed yet, and left out: {first_few(new)} of imagesTr. Run: {preprocess}"] if new else []
    if split is not None:
        for role in ("train", "val"):
            if not split.get(role):
                raise DualCLError(f"{base / SPLITS_FILE}, fold {fold}: no '{role}' case. Write it anew: dualcl split")
        missing = sorted({*split["train"], *split["val"]} - preprocessed)
        if missing:
            raise DualCLError(
                f"{labeled_folder} lacks {first_few(missing)} of fold {fold} in {base / SPLITS_FILE}. Preprocess with: "
                f"{preprocess}; or, if these cases are gone, write the split anew: dualcl split"
            )
        left_out = sorted(preprocessed - {case for role in ROLES for case in split.get(role, [])})
        both = sorted({*split["train"]} & {*split["val"]})
        notes = (
            (left_out, f"In no list of fold {fold}, and left out: {len(left_out)} labeled case(s), "),
            (both, f"Fold {fold} validates on training cases, which says nothing of new ones: "),
        )
        return late + [f"{note}{first_few(cases)}." for cases, note in notes if cases]
    if fold == "all":
        note = (
            f"Fold all trains on the labels of all cases in labelsTr, also of {len(unlabeled)} that {SPLITS_FILE} "
            f"lists as unlabeled: {first_few(sorted(unlabeled))}."
        )
        return late + ([note] if unlabeled else [])
    if unlabeled:
        raise DualCLError(
            f"{base / SPLITS_FILE} has no fold {fold}: it holds folds 0 to {len(splits) - 1}, and beyond them nnU-Net "
            "would use the labels of cases that it lists as unlabeled. Train one of these, or write more draws with: "
            "dualcl split --draws N --force"
        )
    if not (base / SPLITS_FILE).is_file() and len(preprocessed) < _STOCK_FOLDS:
        raise DualCLError(
            f"{len(preprocessed)} preprocessed labeled case(s) in {labeled_folder} are too few for nnU-Net's own "
            f"{_STOCK_FOLDS}-fold split. Write one with: dualcl split -d {base.name} --labeled N --val M"
        )
    return late


def check_unseen(seen: Collection[str], validation: Collection[str], fold: int | str) -> None:
    """Refuse to validate cases that the training saw, with their labels or as unlabeled ones.

    Args:
        seen: cases of the training so far.
        validation: cases of the split file now.
        fold: for the message.

    Raises:
        DualCLError: naming them; the split was drawn anew since.
    """
    both = sorted(set(seen) & set(validation))
    if both:
        raise DualCLError(
            f"{SPLITS_FILE} lists {first_few(both)} as validation of fold {fold}, and the training of that fold saw "
            f"{'it' if len(both) == 1 else 'them'}: the split was drawn anew since. Put its split file back, or move "
            "the folder of that fold away and train it anew."
        )


def check_validation_folder(folder: Path, validation: Collection[str], file_ending: str) -> None:
    """Refuse a validation folder with predictions of other cases, which nnU-Net would count into its summary.

    Raises:
        DualCLError: naming them.
    """
    others = sorted({path.name.removesuffix(file_ending) for path in folder.glob(f"*{file_ending}")} - set(validation))
    if others:
        raise DualCLError(
            f"{folder} holds {first_few(others)}, no validation case of this fold now: the split was drawn anew since. "
            "Move that folder away and repeat the command, with --val where the training is finished."
        )
