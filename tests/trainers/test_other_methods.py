"""Mean Teacher, uncertainty-aware Mean Teacher and cross pseudo supervision: what each shares and where it differs."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_dualcl.config import PRESETS, DualCLConfig
from nnunet_dualcl.layout import TERM_LOG_FILE, trainers_folder
from nnunet_dualcl.losses import normalized_entropy
from nnunet_dualcl.trainers.CPSTrainer import CPSTrainer
from nnunet_dualcl.trainers.MeanTeacherTrainer import MeanTeacherTrainer
from nnunet_dualcl.trainers.UAMTTrainer import UAMTTrainer

SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "contrastive_samples": 64}
METHODS = [MeanTeacherTrainer, UAMTTrainer, CPSTrainer]


@pytest.mark.parametrize("method", METHODS)
def test_nnunet_finds_it_and_its_preset_holds_where_the_file_is_silent(
    toy: Any, configure: Any, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    configure(seed=4, rampup_fraction=0.2)
    trainer = get_trainer_from_args(
        toy.raw.name, "3d_fullres", 0, method.__name__, "toyPlans", device=torch.device("cpu")
    )
    assert trainer.config == DualCLConfig.preset(method.preset, seed=4, rampup_fraction=0.2)
    monkeypatch.delenv("DUALCL_CONFIG")
    assert toy.trainer(method).config == DualCLConfig.preset(method.preset)


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_moves_what_it_should_and_logs(
    toy: Any, configure: Any, train_and_list_moved: Any, method: Any
) -> None:
    configure(**SHORT)
    trainer = toy.trainer(method)
    moved = train_and_list_moved(trainer)
    two = {"encoder", "decoder", "encoder_b", "decoder_b"}
    assert moved == (two if method is CPSTrainer else {"encoder", "decoder"})
    (row,) = csv.DictReader((Path(trainer.output_folder) / TERM_LOG_FILE).open())
    assert float(row["pseudo_label"]) > 0
    assert float(row["verification"]) == float(row["contrastive"]) == 0


def test_uncertainty_is_the_entropy_of_the_mean_of_noisy_looks(
    toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(**SHORT, rampup_fraction=1.0)
    trainer = toy.trainer(UAMTTrainer)
    trainer.on_train_start()
    looks: list[torch.Tensor] = []
    original = trainer.teacher.logits

    def look(images: torch.Tensor) -> torch.Tensor:
        looks.append(images)
        return original(images)

    monkeypatch.setattr(trainer.teacher, "logits", look)
    images = torch.randn(2, 2, 6, 12, 16, generator=torch.Generator().manual_seed(0))
    labels, reliable = trainer._teacher_labels(images)
    assert len(looks) == 8
    noises = torch.stack(looks) - images
    assert float(noises.abs().max()) <= 0.2 + 1e-6
    assert float(noises.std()) == pytest.approx(0.096, rel=0.05)  # of a normal deviate of 0.1, cut off at 0.2
    assert noises.flatten(1).unique(dim=0).shape[0] == 8
    mean = torch.stack([original(look).softmax(1) for look in looks]).mean(0)
    assert torch.equal(labels[:, 0], mean.argmax(1))
    threshold = 0.75 + 0.25 * 0.006737947  # exp(-5) at step 0
    assert torch.equal(reliable[:, 0], normalized_entropy(mean) < threshold)


def test_presets_are_valid_and_leave_the_rest_alone() -> None:
    for name, values in PRESETS.items():
        assert DualCLConfig.preset(name) == replace(DualCLConfig.preset("dualcl"), **values)
    assert DualCLConfig.preset("dualcl") == DualCLConfig()
