"""Preprocessed unlabeled cases in the shape that nnU-Net's data loader reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2


class UnlabeledDataset:
    """Reads what nnU-Net's preprocessor writes, with nnU-Net's own class, and adds the one property that only labels
    could give.

    nnU-Net's loader looks up ``class_locations`` to place patches on foreground. There is none here: patches of
    unlabeled cases are placed uniformly.
    """

    def __init__(self, folder: Path, identifiers: list[str]) -> None:
        self._cases = nnUNetDatasetBlosc2(str(folder), sorted(identifiers))
        self.identifiers: list[str] = self._cases.identifiers

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image (channels, z, y, x), mask of the image's nonzero part (not a label), None, properties."""
        image, nonzero_mask, previous_stage, properties = self._cases.load_case(identifier)
        return image, nonzero_mask, previous_stage, {**properties, "class_locations": {}}
