"""The ways of training that a benchmark compares, each a trainer with settings, or a procedure of several trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nnunet_dualcl.config import PRESETS
from nnunet_dualcl.layout import STOCK_TRAINER
from nnunet_dualcl.networks import Network

Procedure = Literal["train", "twice_the_batch", "ensemble", "self_training", "labeled_only", "export"]


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Attributes:
        title: for tables.
        trainer: class name.
        config: settings that differ from the trainer's preset.
        labels: whether the arm sees the few labels or those of the whole pool, less its validation cases.
        procedure: one training; one with twice the plans' batch; two of other seeds whose predictions are averaged;
            training, labeling the unlabeled cases with it, and training anew on all of them, half of the patches from
            labeled ones; one training whose unlabeled images are those of the labeled cases; or the export of another
            arm's model.
        exports: the arm whose model is exported.
        networks: those of it that are exported and, if both, averaged as ``nnUNetv2_ensemble`` does.
    """

    title: str
    trainer: str = "DualCLTrainer"
    config: Mapping[str, Any] = field(default_factory=dict)
    labels: Literal["few", "all"] = "few"
    procedure: Procedure = "train"
    exports: str = ""
    networks: Sequence[Network] = ("a",)


def _of_two_networks(what: str, *networks: Network) -> Arm:
    return Arm(
        f"DualCL, two networks, exported: {what}",
        "DualCLTwoNetTrainer",
        procedure="export",
        exports="dualcl_two_networks",
        networks=networks,
    )


ARMS: Mapping[str, Arm] = {
    "stock": Arm("stock nnU-Net", STOCK_TRAINER),
    "stock_all": Arm("stock nnU-Net, all labels", STOCK_TRAINER, labels="all"),
    "stock_twice_the_batch": Arm("stock nnU-Net, twice the batch", STOCK_TRAINER, procedure="twice_the_batch"),
    "stock_ensemble": Arm("two stock nnU-Nets", STOCK_TRAINER, procedure="ensemble"),
    "self_training": Arm("stock self-training", STOCK_TRAINER, procedure="self_training"),
    "dual_decoder": Arm("two decoders, no unlabeled term", config=PRESETS["supervised"]),
    "mean_teacher": Arm("Mean Teacher", "MeanTeacherTrainer"),
    "mean_teacher_mixing": Arm(
        "Mean Teacher with copy-paste",
        "MeanTeacherTrainer",
        {"mixing": "copy_paste", "pseudo_label_loss": "dice_ce"},
    ),
    "ua_mt": Arm("Uncertainty-aware Mean Teacher", "UAMTTrainer"),
    "cps": Arm("Cross pseudo supervision", "CPSTrainer"),
    "dualcl": Arm("DualCL"),
    "dualcl_exported": Arm("DualCL, exported: decoder A alone", procedure="export", exports="dualcl"),
    "dualcl_labeled_only": Arm("DualCL, labeled scans in place of unlabeled ones", procedure="labeled_only"),
    "dualcl_all": Arm(
        "DualCL, all labels",
        config={"pseudo_label_weight": 0.0, "contrastive_weight": 0.0},  # nothing is unlabeled
        labels="all",
    ),
    "dualcl_two_networks": Arm("DualCL, two networks", "DualCLTwoNetTrainer"),
    "dualcl_two_networks_exported": _of_two_networks("both, averaged", "a", "b"),
    "dualcl_two_networks_exported_a": _of_two_networks("network A alone", "a"),
    "dualcl_two_networks_exported_b": _of_two_networks("network B alone", "b"),
    "dualcl_paper": Arm("DualCL, the paper's form", config=PRESETS["paper"]),
    "dualcl_minus_verification": Arm("DualCL without L_reg", config={"verification_weight": 0.0}),
    "dualcl_minus_contrastive": Arm("DualCL without L_c", config={"contrastive_weight": 0.0}),
    "dualcl_minus_pseudo_labels": Arm("DualCL without L_u", config={"pseudo_label_weight": 0.0}),
    "dualcl_minus_mixing": Arm("DualCL without copy-paste", config={"mixing": "none"}),
    "dualcl_minus_teacher": Arm(
        "DualCL without the teacher", config={"pseudo_label_source": "winner", "mixing": "none"}
    ),
}
"""Keys name arms in protocols, files and tables."""

LOWER_BOUND, UPPER_BOUND = "stock", "stock_all"
"""Ends of the gap whose share the tables give."""
