"""Mean Teacher, uncertainty-aware Mean Teacher and cross pseudo supervision: what each shares and where it differs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_dualcl.config import PRESETS, DualCLConfig
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import TERM_LOG_FILE, trainers_folder
from nnunet_dualcl.losses import normalized_entropy
from nnunet_dualcl.trainers.CPSTrainer import CPSTrainer
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer
from nnunet_dualcl.trainers.MeanTeacherTrainer import MeanTeacherTrainer
from nnunet_dualcl.trainers.UAMTTrainer import UAMTTrainer
from nnunet_dualcl.training import SemiSupervisedLoss
from nnunet_dualcl.training.objective import Half

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
    meaningless = {name for name, value in row.items() if np.isnan(float(value))}
    assert meaningless == (set() if method is CPSTrainer else {"supervised_b", "disagreement_share", "winner_is_a"})


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
    labels, reliable = trainer.teacher_labels(images)
    assert len(looks) == 8
    noises = torch.stack(looks) - images
    assert float(noises.abs().max()) <= 0.2 + 1e-6
    assert float(noises.std()) == pytest.approx(0.096, rel=0.05)  # of a normal deviate of 0.1, cut off at 0.2
    assert noises.flatten(1).unique(dim=0).shape[0] == 8
    mean = torch.stack([original(look).softmax(1) for look in looks]).mean(0)
    assert torch.equal(labels[:, 0], mean.argmax(1))
    threshold = 0.75 + 0.25 * 0.006737947  # exp(-5) at step 0
    assert torch.equal(reliable[:, 0], normalized_entropy(mean) < threshold)


def test_uncertain_voxels_are_taught_on_demand(toy: Any, configure: Any) -> None:
    images = torch.randn(2, 2, 6, 12, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for on in ("reliable", "all"):
        configure(**SHORT, rampup_fraction=1.0, pseudo_label_on=on)
        trainer = toy.trainer(UAMTTrainer)
        trainer.on_train_start()
        torch.manual_seed(0)  # the noise
        found.append(trainer.teacher_labels(images))
    assert torch.equal(found[0].labels, found[1].labels)
    assert not found[0].reliable.all()
    assert found[1].reliable.all()


def test_presets_are_valid_and_leave_the_rest_alone() -> None:
    for name, values in PRESETS.items():
        assert DualCLConfig.preset(name) == replace(DualCLConfig.preset("dualcl"), **values)
    assert DualCLConfig.preset("dualcl") == DualCLConfig()


@dataclass(frozen=True)
class OwnConfig(DualCLConfig):
    own_weight: float = 0.5


class OwnLoss(SemiSupervisedLoss):
    config: OwnConfig
    terms = (*SemiSupervisedLoss.terms, "own")

    @property
    def weights(self) -> dict[str, float]:
        return {**super().weights, "own": self.config.own_weight}

    def part(self, half: Half) -> dict[str, torch.Tensor]:
        return {**super().part(half), "own": half.logits[0].float().square().mean()}


class OwnTrainer(DualCLTrainer):
    preset: ClassVar[Mapping[str, Any]] = {**PRESETS["mean_teacher"], "own_weight": 0.25}
    config_class = OwnConfig
    loss_class = OwnLoss


def test_options_terms_and_preset_of_ones_own_hold_in_file_checkpoint_and_log(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    assert toy.trainer(OwnTrainer).config == OwnConfig.preset(OwnTrainer.preset, **SHORT)
    configure(**{**SHORT, "num_epochs": 2}, own_weight=0.125)
    trainer = toy.trainer(OwnTrainer)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    (row, _) = csv.DictReader((folder / TERM_LOG_FILE).open())
    assert (float(row["own"]) > 0, float(row["weight_own"])) == (True, 0.125)
    assert f"own {float(row['own']):.4f}" in next(folder.glob("training_log*.txt")).read_text(encoding="utf-8")

    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    checkpoint["current_epoch"] = 1
    for row in checkpoint["dualcl"]["term_log"]:  # as if the term were newer than the training
        del row["own"], row["weight_own"]
    torch.save(checkpoint, folder / "checkpoint_latest.pth")
    (folder / "checkpoint_final.pth").unlink()
    configure(**SHORT)
    again = toy.trainer(OwnTrainer, continue_training=True)
    again.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert again.config == trainer.config
    again.run_training()
    rows = [float(row["own"]) for row in csv.DictReader((folder / TERM_LOG_FILE).open())]
    assert np.isnan(rows[0])
    assert rows[1] > 0


def test_a_trainer_with_an_unknown_preset_says_which_there_are(toy: Any) -> None:
    with pytest.raises(DualCLError, match=r"There is no preset 'fixmatch'\. Take one of dualcl, paper"):
        toy.trainer(type("Trainer", (DualCLTrainer,), {"preset": "fixmatch"}))
