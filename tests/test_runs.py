import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.runs import dice_per_case, predict, train

CONFIG = DualCLConfig(
    num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=3, initial_lr=2e-3, contrastive_samples=64
)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often nnU-Net's steps run; ours call them too. No process is started for unlabeled cases."""
    monkeypatch.setattr("nnunetv2.configuration.default_num_processes", 1)  # read when nnU-Net imports our trainer
    counts = {"train_step": 0, "validation_step": 0}
    for name in counts:
        original = getattr(nnUNetTrainer, name)

        def step(self: Any, batch: Any, name: str = name, original: Any = original) -> Any:
            counts[name] += 1
            return original(self, batch)

        monkeypatch.setattr(nnUNetTrainer, name, step)
    return counts


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "DualCLTrainer"])
def test_a_training_takes_our_numbers_runs_once_and_predicts(
    toy: Any, steps: dict[str, int], trainer: str, tmp_path: Path
) -> None:
    config_file = tmp_path / "config.yaml"
    model = train(toy.raw.name, "toyPlans", trainer, CONFIG, config_file)
    assert model == toy.results / toy.raw.name / f"{trainer}__toyPlans__3d_fullres"
    assert (model / "plans.json").is_file()
    assert DualCLConfig.from_yaml(config_file) == CONFIG
    assert steps == {"train_step": 2, "validation_step": 3}
    final = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(final, map_location="cpu", weights_only=False)
    assert (checkpoint["trainer_name"], checkpoint["current_epoch"]) == (trainer, 1)
    assert checkpoint["logging"]["lrs"] == [CONFIG.initial_lr]

    before = final.stat().st_mtime_ns
    assert train(toy.raw.name, "toyPlans", trainer, CONFIG, config_file) == model
    assert final.stat().st_mtime_ns == before
    assert steps["train_step"] == 2

    predictions = tmp_path / "predictions"
    predictions.mkdir()
    (predictions / "unl_0.nii.gz").write_bytes(b"kept")
    predict(model, toy.raw / "imagesUnlabeled", predictions)
    assert (predictions / "unl_0.nii.gz").read_bytes() == b"kept"
    image = sitk.ReadImage(str(toy.raw / "imagesUnlabeled" / "unl_1_0000.nii.gz"))
    prediction = sitk.ReadImage(str(predictions / "unl_1.nii.gz"))
    assert prediction.GetSize() == image.GetSize()
    assert prediction.GetDirection() == pytest.approx(image.GetDirection())
    assert set(np.unique(sitk.GetArrayFromImage(prediction))) <= {0, 1, 2}


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "DualCLTrainer"])
def test_a_stopped_training_goes_on(
    toy: Any, steps: dict[str, int], trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (toy.raw.name, "toyPlans", trainer, replace(CONFIG, num_epochs=2))
    original = nnUNetTrainer.on_epoch_end

    def stop(self: Any) -> None:
        original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nnUNetTrainer, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(*arguments, tmp_path / "config.yaml")
    assert len(list(Path(os.environ["nnUNet_results"]).glob("*/*/fold_0/checkpoint_latest.pth"))) == 1
    model = train(*arguments, tmp_path / "config.yaml")
    assert steps["train_step"] == 4
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert len(checkpoint["logging"]["train_losses"]) == 2


def test_dice_by_hand(tmp_path: Path) -> None:
    reference, prediction = np.zeros((2, 3, 4, 5), np.uint8)
    reference[0, 0, :4] = 1
    prediction[0, 0, 1:3] = 1  # 2 of 4 found, nothing wrong: 2 * 2 / (4 + 2)
    reference[2, 2, 0] = 2
    prediction[2, 2, 1:4] = 2  # missed: 0; label 3 is nowhere
    for name, array in (("references", reference), ("predictions", prediction)):
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name / "scan.1.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(reference), str(tmp_path / "references" / "not_predicted.nii.gz"))
    (tmp_path / "predictions" / "dataset.json").touch()
    labels = {"background": 0, "upper": 1, "lower": 2, "absent": 3}
    scores = dice_per_case(
        tmp_path / "predictions", tmp_path / "references", {"labels": labels, "file_ending": ".nii.gz"}
    )
    assert scores == {"scan.1": pytest.approx({1: 2 / 3, 2: 0, 3: np.nan}, nan_ok=True)}


def test_another_configuration_is_not_taken_for_a_finished_one(toy: Any, tmp_path: Path) -> None:
    CONFIG.write_yaml(tmp_path / "config.yaml")
    with pytest.raises(DualCLError, match=r"config\.yaml belongs to trainings with another configuration"):
        train(toy.raw.name, "toyPlans", "nnUNetTrainer", replace(CONFIG, seed=9), tmp_path / "config.yaml")


def test_an_empty_prediction_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DualCLError, match=r"holds no \*\.nii\.gz to evaluate"):
        dice_per_case(tmp_path, tmp_path, {"file_ending": ".nii.gz"})
