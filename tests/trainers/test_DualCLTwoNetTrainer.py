from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from nnunet_dualcl.export import export_stock_model
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer
from nnunet_dualcl.trainers.DualCLTwoNetTrainer import DualCLTwoNetTrainer

SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "contrastive_samples": 64}


def test_it_differs_in_the_network_alone() -> None:
    own = {name for name, value in vars(DualCLTwoNetTrainer).items() if callable(getattr(DualCLTwoNetTrainer, name))}
    assert own - {"__class__"} == {"build_network_architecture"}
    signatures = [
        inspect.signature(cls.build_network_architecture).parameters for cls in (DualCLTrainer, DualCLTwoNetTrainer)
    ]
    assert signatures[0] == signatures[1]


def test_it_trains_both_networks_and_exports_nnunets(
    toy: Any, configure: Any, train_and_list_moved: Any, tmp_path: Path
) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTwoNetTrainer)
    moved = train_and_list_moved(trainer)
    assert moved == {"encoder", "decoder", "encoder_b", "decoder_b"}
    export_stock_model(Path(trainer.output_folder_base), tmp_path / "stock")
    weights = torch.load(tmp_path / "stock" / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert {name.split(".")[0] for name in weights} == {"encoder", "decoder"}
