import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.ensembling.ensemble import ensemble_folders
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.runs import dice_per_case, predict, predict_cases, train

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
    assert sorted(path.name for path in predictions.iterdir()) == ["unl_0.nii.gz", "unl_1.nii.gz"]


def test_predictions_have_the_datasets_file_ending_and_are_made_once(
    toy: Any, steps: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = train(toy.raw.name, "toyPlans", "nnUNetTrainer", CONFIG, tmp_path / "config.yaml")
    dataset_json = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**dataset_json, "file_ending": ".nrrd"}))
    cases = {case: [tmp_path / f"{case}_{channel:04d}.nrrd" for channel in range(2)] for case in ("one", "two")}
    for channel in range(2):
        image = sitk.ReadImage(str(toy.raw / "imagesUnlabeled" / f"unl_0_{channel:04d}.nii.gz"))
        for files in cases.values():
            sitk.WriteImage(image, str(files[channel]))
    predictions = tmp_path / "predictions"
    export = predict_from_raw_data.export_prediction_from_logits

    def second_stops_halfway(*arguments: Any) -> None:
        if "two" not in arguments[5]:
            return export(*arguments)
        Path(f"{arguments[5]}.nrrd").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_from_raw_data, "export_prediction_from_logits", second_stops_halfway)
    with pytest.raises(KeyboardInterrupt):
        predict_cases(model, cases, predictions)
    assert [path.name for path in predictions.iterdir()] == ["one.nrrd"]
    before = (predictions / "one.nrrd").stat().st_mtime_ns
    monkeypatch.undo()
    monkeypatch.setattr("nnunetv2.configuration.default_num_processes", 1)
    predict_cases(model, cases, predictions)
    assert sorted(path.name for path in predictions.iterdir()) == ["one.nrrd", "two.nrrd"]
    assert (predictions / "one.nrrd").stat().st_mtime_ns == before
    monkeypatch.setattr("nnunet_dualcl.runs._predictor", lambda *_: pytest.fail("a model for nothing"))
    predict_cases(model, cases, predictions)


def test_the_folds_asked_for_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset.json").write_text('{"file_ending": ".nii.gz"}', encoding="utf-8")
    loaded: list[tuple[str, tuple[int, ...]]] = []
    predictor = predict_from_raw_data.nnUNetPredictor
    monkeypatch.setattr(
        predictor, "initialize_from_trained_model_folder", lambda _, folder, folds: loaded.append((folder, folds))
    )
    monkeypatch.setattr(
        predictor,
        "predict_from_files_sequential",
        lambda _, images, targets, **__: Path(f"{targets[0]}.nii.gz").touch(),
    )
    predict_cases(tmp_path, {"a": [tmp_path / "a_0000.nii.gz"]}, tmp_path / "out", folds=[1, 3])
    assert loaded == [(str(tmp_path), (1, 3))]


def test_several_models_are_averaged_as_nnunets_command_does_it(
    toy: Any, steps: dict[str, int], tmp_path: Path
) -> None:
    config = replace(CONFIG, num_epochs=1, num_iterations_per_epoch=1)
    models = []
    for seed in (1, 2):
        variables = tmp_path / f"config_{seed}.yaml"
        trained = train(toy.raw.name, "toyPlans", "nnUNetTrainer", replace(config, seed=seed), variables)
        models.append(trained.rename(tmp_path / f"model_{seed}"))
    unlabeled = toy.raw / "imagesUnlabeled"
    cases = {key: [unlabeled / f"{key}_{channel:04d}.nii.gz" for channel in (0, 1)] for key in ("unl_0", "unl_1")}
    parts = [tmp_path / f"part_{number}" for number in (0, 1)]
    for model, part in zip(models, parts, strict=True):
        predictor = predict_from_raw_data.nnUNetPredictor(device=torch.device("cpu"))
        predictor.initialize_from_trained_model_folder(str(model), (0,))
        part.mkdir()
        for key, images in cases.items():
            predictor.predict_from_files_sequential(
                [list(map(str, images))], [str(part / key)], save_probabilities=True
            )
    shutil.copy(models[0] / "plans.json", parts[0])
    shutil.copy(models[0] / "dataset.json", parts[0])
    ensemble_folders(list(map(str, parts)), str(tmp_path / "theirs"), num_processes=1)
    predict_cases(models, cases, tmp_path / "ours")
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [f"{key}.nii.gz" for key in sorted(cases)]
    alone = []
    for key in cases:
        ours, theirs, *each = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{key}.nii.gz")))
            for folder in (tmp_path / "ours", tmp_path / "theirs", *parts)
        )
        assert (ours == theirs).all()
        alone += [bool((ours != other).any()) for other in each]
    assert all(alone)  # neither model by itself says the same


def test_a_stop_while_a_checkpoint_is_written_leaves_the_last(
    toy: Any, steps: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, num_epochs=2)
    save = torch.save

    def half(content: Any, file: Any, *rest: Any, **options: Any) -> None:
        save(content, file, *rest, **options)
        if content.get("current_epoch") == 2:
            Path(file).write_bytes(Path(file).read_bytes()[:100])
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        train(toy.raw.name, "toyPlans", "nnUNetTrainer", config, tmp_path / "config.yaml")
    monkeypatch.setattr(torch, "save", save)
    model = train(toy.raw.name, "toyPlans", "nnUNetTrainer", config, tmp_path / "config.yaml")
    assert torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 2
    assert steps["train_step"] == 2 * 2 + 2  # the second epoch twice


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


def test_a_continued_training_is_an_uninterrupted_one(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with nnU-Net's own trainer, which seeds nothing by itself."""
    monkeypatch.setattr("nnunetv2.configuration.default_num_processes", 1)
    seen: list[float] = []
    original = nnUNetTrainer.train_step
    ended = nnUNetTrainer.on_epoch_end

    def step(self: Any, batch: Any) -> Any:
        seen.append(float(batch["data"].sum()))
        return original(self, batch)

    def stop(self: Any) -> None:
        ended(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(nnUNetTrainer, "train_step", step)
    config = replace(CONFIG, num_epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(nnUNetTrainer, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(toy.raw.name, "toyPlans", "nnUNetTrainer", config, tmp_path / "config.yaml")
    models = [train(toy.raw.name, "toyPlans", "nnUNetTrainer", config, tmp_path / "config.yaml")]
    continued, seen[:] = list(seen), []
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "again"))
    models.append(train(toy.raw.name, "toyPlans", "nnUNetTrainer", config, tmp_path / "config.yaml"))
    assert len(set(seen)) == 4
    assert continued == seen
    weights, expected = (
        torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"] for model in models
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_clock_starts_again_with_each_latest_checkpoint(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end, now, forced = nnUNetTrainer.on_train_epoch_start, nnUNetTrainer.on_epoch_end, [0.0], []

    def ten_minutes(self: Any) -> None:
        start(self)
        now[0] += 600

    def note(self: Any) -> None:
        if self.save_every == 1:
            forced.append(self.current_epoch)
        end(self)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(nnUNetTrainer, "on_train_epoch_start", ten_minutes)
    monkeypatch.setattr(nnUNetTrainer, "on_epoch_end", note)
    monkeypatch.setattr("nnunet_dualcl.runs._SAVES", 1)
    config = DualCLConfig(num_epochs=7, num_iterations_per_epoch=1, num_val_iterations_per_epoch=1)
    train(toy.raw.name, "toyPlans", "DualCLTrainer", config, tmp_path / "config.yaml")
    assert forced == [1, 3, 5]


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
