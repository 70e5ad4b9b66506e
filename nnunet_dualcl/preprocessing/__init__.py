"""Unlabeled cases through nnU-Net's own preprocessor."""

from nnunet_dualcl.preprocessing.unlabeled import (
    PreprocessReport,
    ensure_unlabeled,
    preprocess_dataset,
    preprocess_unlabeled,
)

__all__ = ["PreprocessReport", "ensure_unlabeled", "preprocess_dataset", "preprocess_unlabeled"]
