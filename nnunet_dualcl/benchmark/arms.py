"""The ways of training that a benchmark compares, each a trainer with settings, or a procedure of several trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Procedure = Literal["train", "ensemble", "self_training"]

_NO_TERMS = {"pseudo_label_weight": 0.0, "verification_weight": 0.0, "contrastive_weight": 0.0}
_PAPER = {"pseudo_label_source": "winner", "pseudo_label_loss": "ce", "mixing": "none", "reliability": "global"}


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Attributes:
        title: for tables.
        trainer: class name.
        config: fields of ``DualCLConfig`` that differ from its defaults.
        labels: whether the arm sees the few labels or those of the whole pool.
        procedure: one training; two of other seeds whose predictions are averaged; or training, labeling the
            unlabeled cases with it, and training anew on all of them.
    """

    title: str
    trainer: str = "DualCLTrainer"
    config: Mapping[str, Any] = field(default_factory=dict)
    labels: Literal["few", "all"] = "few"
    procedure: Procedure = "train"


ARMS: Mapping[str, Arm] = {
    "stock": Arm("stock nnU-Net", "nnUNetTrainer"),
    "stock_all": Arm("stock nnU-Net, all labels", "nnUNetTrainer", labels="all"),
    "stock_ensemble": Arm("two stock nnU-Nets", "nnUNetTrainer", procedure="ensemble"),
    "self_training": Arm("stock self-training", "nnUNetTrainer", procedure="self_training"),
    "dual_decoder": Arm("two decoders, no unlabeled term", config=_NO_TERMS),
    "mean_teacher": Arm(
        "Mean Teacher",
        config={**_NO_TERMS, "second_decoder": False, "pseudo_label_weight": 1.0, "mixing": "none"},
    ),
    "mean_teacher_mixing": Arm(
        "Mean Teacher with copy-paste",
        config={**_NO_TERMS, "second_decoder": False, "pseudo_label_weight": 1.0},
    ),
    "cps": Arm(
        "Cross pseudo supervision",
        "DualCLTwoNetTrainer",
        config={
            **_NO_TERMS,
            "pseudo_label_weight": 1.0,
            "pseudo_label_source": "cross",
            "pseudo_label_loss": "ce",
            "mixing": "none",
            "unreliable_fraction_start": 0.0,
        },
    ),
    "dualcl": Arm("DualCL"),
    "dualcl_two_networks": Arm("DualCL, two networks", "DualCLTwoNetTrainer"),
    "dualcl_paper": Arm("DualCL, the paper's form", config=_PAPER),
    "dualcl_minus_verification": Arm("DualCL without L_reg", config={"verification_weight": 0.0}),
    "dualcl_minus_contrastive": Arm("DualCL without L_c", config={"contrastive_weight": 0.0}),
    "dualcl_minus_pseudo_labels": Arm("DualCL without L_u", config={"pseudo_label_weight": 0.0}),
    "dualcl_minus_mixing": Arm("DualCL without copy-paste", config={"mixing": "none"}),
    "dualcl_minus_teacher": Arm(
        "DualCL without the teacher", config={"pseudo_label_source": "winner", "mixing": "none"}
    ),
}
"""Keys name arms in protocols, files and tables."""
