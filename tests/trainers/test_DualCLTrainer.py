from __future__ import annotations

import csv
import inspect
import json
import multiprocessing
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.data.paired_loader import patches_of
from nnunet_dualcl.data.random_stream import seed_global_streams
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.export.stock_model import stock_checkpoint
from nnunet_dualcl.layout import CONFIG_FILE, TERM_LOG_FILE, TERM_PICTURE_FILE
from nnunet_dualcl.networks import check_layout
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "contrastive_samples": 64}

OVERRIDDEN = {
    "__init__", "build_network_architecture", "initialize", "_build_loss", "set_deep_supervision_enabled",
    "configure_rotation_dummyDA_mirroring_and_inital_patch_size", "get_dataloaders", "run_training",
    "configure_optimizers", "on_train_start", "on_train_epoch_start", "train_step",
    "on_train_epoch_end", "on_epoch_end", "perform_actual_validation", "save_checkpoint", "load_checkpoint",
}  # fmt: skip


def test_overrides_are_these_and_keep_nnunets_signatures() -> None:
    ours = {
        name for name in vars(DualCLTrainer) if hasattr(nnUNetTrainer, name) and callable(getattr(DualCLTrainer, name))
    }
    assert ours == OVERRIDDEN
    for name in sorted(ours):
        expected = list(inspect.signature(getattr(nnUNetTrainer, name)).parameters.values())
        found = list(inspect.signature(getattr(DualCLTrainer, name)).parameters.values())
        assert [(p.name, p.kind, p.default) for p in found] == [(p.name, p.kind, p.default) for p in expected], name


def test_configuration_sets_nnunets_own_numbers(toy: Any, configure: Any) -> None:
    configure(num_epochs=3, num_iterations_per_epoch=4, num_val_iterations_per_epoch=5, initial_lr="1e-3")
    trainer = toy.trainer(DualCLTrainer)
    numbers = (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch)
    assert numbers == (3, 4, 5)
    trainer.initialize()
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3
    trainer.loss.step = 6  # of 3 x 4
    assert trainer.loss.unreliable_fraction == pytest.approx(0.1)  # half of the way from 0.2 to 0


def test_a_faulty_configuration_leaves_no_folder(toy: Any, configure: Any) -> None:
    configure(sed=3)
    with pytest.raises(DualCLError, match="unknown key sed"):
        toy.trainer(DualCLTrainer)
    assert not toy.results.exists() or not any(toy.results.iterdir())


def test_mirroring_is_left_to_nnunet_or_off_in_training_and_at_prediction(toy: Any, configure: Any) -> None:
    axes = []
    for changes in ({}, {"mirroring": False}):
        configure(**changes)
        trainer = toy.trainer(DualCLTrainer)
        in_training = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3]
        axes.append((in_training, trainer.inference_allowed_mirroring_axes))
    assert axes == [((0, 1, 2), (0, 1, 2)), (None, None)]


def test_without_extras_a_step_is_stock_nnunets(toy: Any, configure: Any) -> None:
    configure(**{**DualCLConfig.stock().to_mapping(), **SHORT, "seed": 5})
    ours = toy.trainer(DualCLTrainer)
    ours.initialize()
    theirs = toy.trainer(nnUNetTrainer)
    seed_global_streams(5)
    theirs.num_epochs = SHORT["num_epochs"]
    theirs.initialize()
    assert_same_weights(ours, theirs)
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (2, 1, 6, 12, 16), generator=generator).short()
    batch = {
        "data": torch.randn(2, 2, 6, 12, 16, generator=generator),
        "target": [truth, truth[..., ::2, ::2]],
        "keys": ["a", "b"],
    }
    for trainer in (ours, theirs):
        trainer.network.train()
    ours._iteration = 0
    for _ in range(2):
        losses = [trainer.train_step(dict(batch))["loss"] for trainer in (ours, theirs)]
        assert losses[0] == losses[1]
        gradients = dict(ours.network.named_parameters())
        for name, parameter in theirs.network.named_parameters():
            # nnU-Net's deep supervision leaves the lowest segmentation layer out of the loss: no gradient at all
            both = (gradients[name].grad, parameter.grad)
            assert both == (None, None) if parameter.grad is None else torch.equal(*both), name
        assert_same_weights(ours, theirs)
    assert all(parameter.grad is None for parameter in ours.network.decoder_b.parameters())


def assert_same_weights(ours: Any, theirs: Any) -> None:
    weights = ours.network.state_dict()
    for name, value in theirs.network.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_labeled_batches_are_stock_nnunets(toy: Any, configure: Any) -> None:
    configure(**SHORT, seed=3)
    ours = toy.trainer(DualCLTrainer)
    ours.on_train_start()
    seed = int(np.random.SeedSequence([3, 0, 0]).generate_state(1)[0])
    theirs = toy.trainer(nnUNetTrainer)
    theirs.initialize()
    drawn = []
    for trainer in (theirs, ours):
        seed_global_streams(seed)
        loader, _ = trainer.get_dataloaders()
        drawn.append([next(loader) for _ in range(3)])
    for stock, paired in zip(*drawn, strict=True):
        labeled, unlabeled, _ = patches_of(paired)
        assert torch.equal(stock["data"], labeled)
        assert all(torch.equal(a, b) for a, b in zip(stock["target"], paired["target"], strict=True))
        assert list(stock["keys"]) == list(paired["keys"])
        assert unlabeled.shape == labeled.shape
        assert set(paired["unlabeled_keys"]) <= {"tr_0", "tr_1", "unl_0", "unl_1"}


def batches(toy: Any, count: int = 3) -> list[dict[str, Any]]:
    trainer = toy.trainer(DualCLTrainer)
    trainer.on_train_start()
    return [next(trainer.dataloader_train) for _ in range(count)]


def test_labels_of_unlabeled_cases_are_never_read(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    before = batches(toy)
    for case in ("tr_0", "tr_1"):
        (toy.raw / "labelsTr" / f"{case}.nii.gz").write_bytes(b"unreadable")
        (toy.preprocessed / "gt_segmentations" / f"{case}.nii.gz").unlink()
        for file in (toy.preprocessed / "toyPlans_3d_fullres").glob(f"{case}*"):
            file.write_bytes(b"unreadable")
    for file in (toy.preprocessed / "toyPlans_3d_fullres_unlabeled").iterdir():
        file.unlink()
    assert_same_batches(before, batches(toy))


def test_scrambled_labels_of_unlabeled_cases_change_no_batch(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    before = batches(toy)
    for case in ("tr_0", "tr_1"):
        path = toy.raw / "labelsTr" / f"{case}.nii.gz"
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        scrambled = sitk.GetImageFromArray(np.random.default_rng(0).permutation(array.ravel()).reshape(array.shape))
        scrambled.CopyInformation(image)
        sitk.WriteImage(scrambled, str(path))
    for file in (toy.preprocessed / "toyPlans_3d_fullres_unlabeled").iterdir():
        file.unlink()
    assert_same_batches(before, batches(toy))


def assert_same_batches(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    for one, two in zip(first, second, strict=True):
        assert list(one["unlabeled_keys"]) == list(two["unlabeled_keys"])
        assert torch.equal(one["data"], two["data"])


def test_unlabeled_batch_size_is_configurable(toy: Any, configure: Any) -> None:
    configure(**SHORT, unlabeled_batch_size=3)
    assert len(patches_of(batches(toy, 1)[0]).unlabeled) == 3


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
@pytest.mark.parametrize("residual", [False, True])
def test_training_from_start_to_end(
    toy: Any, configure: Any, architecture: Any, configuration: str, residual: bool
) -> None:
    configure(**SHORT)
    plans = toy.plans()
    dimension = 2 if configuration == "2d" else 3
    plans["configurations"][configuration]["architecture"] = architecture(dimension, residual=residual)
    trainer = toy.trainer(DualCLTrainer, configuration, plans=plans)
    trainer.on_train_start()
    start = {name: value.clone() for name, value in trainer.network.named_parameters()}
    trainer.run_training()
    folder = Path(trainer.output_folder)
    expected = ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png", CONFIG_FILE, TERM_LOG_FILE)
    for name in (*expected, TERM_PICTURE_FILE):
        assert (folder / name).is_file(), name
    assert not list(folder.glob(".*"))
    assert yaml.safe_load((folder / CONFIG_FILE).read_text()) == trainer.config.to_mapping()
    rows = list(csv.DictReader((folder / TERM_LOG_FILE).open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    losses = trainer.logger.get_value("train_losses", None)
    assert [float(row["total"]) for row in rows] == pytest.approx(losses)
    unmoved = [name for name, value in trainer.network.named_parameters() if torch.equal(start[name], value)]
    lowest = len(trainer.network.decoder.seg_layers) - 1
    assert all(f"seg_layers.{0}." in name and lowest > 0 for name in unmoved)  # nnU-Net gives the lowest no weight


def test_resume_continues_with_the_stored_configuration(toy: Any, configure: Any) -> None:
    configure(**{**SHORT, "num_epochs": 3}, verification_weight=0.25)
    trainer = toy.trainer(DualCLTrainer)
    trainer.save_every = 1
    trainer.on_epoch_end = stop_after(trainer, 2)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    configure(num_epochs=50)
    resumed = toy.trainer(DualCLTrainer, continue_training=True)
    resumed.load_checkpoint(str(latest))
    assert resumed.config.verification_weight == 0.25
    assert (resumed.num_epochs, resumed.current_epoch) == (3, 2)
    assert torch.equal(resumed.loss.prototypes, trainer.loss.prototypes)
    resumed.run_training()
    rows = list(csv.DictReader((Path(resumed.output_folder) / TERM_LOG_FILE).open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert resumed.optimizer.param_groups[0]["lr"] < 1e-2


def test_a_trainer_built_for_another_configuration_refuses_a_checkpoint(toy: Any, configure: Any) -> None:
    configure(**SHORT, pseudo_label_source="winner", mixing="none")
    trainer = toy.trainer(DualCLTrainer)
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    trainer.load_checkpoint(str(path))
    configure(**SHORT)
    other = toy.trainer(DualCLTrainer)
    other.initialize()
    message = r"checkpoint_latest\.pth: pseudo_label_source teacher \(stored: winner\), .*before initialize\(\)"
    with pytest.raises(DualCLError, match=message):
        other.load_checkpoint(str(path))
    assert other.config.pseudo_label_source == "teacher"


class OneEpochTrainer(DualCLTrainer):
    """Numbers and options of its own, set as nnU-Net's variants set theirs."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this very signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1
        self.probabilistic_oversampling = True


def test_what_a_subclass_sets_holds_and_is_stored(toy: Any, configure: Any) -> None:
    configure(**SHORT, split_batch=True)
    plans = toy.plans()
    plans["configurations"]["3d_fullres"]["batch_size"] = 4
    trainer = toy.trainer(OneEpochTrainer, plans=plans)
    trainer.run_training()
    assert trainer.probabilistic_oversampling
    folder = Path(trainer.output_folder)
    assert yaml.safe_load((folder / CONFIG_FILE).read_text())["num_epochs"] == 1
    again = toy.trainer(OneEpochTrainer, plans=plans, continue_training=True)
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert (again.num_epochs, again.current_epoch) == (1, 1)  # --c does not go on


def stop_after(trainer: Any, epochs: int) -> Any:
    original = trainer.on_epoch_end

    def stop() -> None:
        original()
        if trainer.current_epoch == epochs:
            raise KeyboardInterrupt

    return stop


def test_checkpoint_of_another_trainer_is_refused(toy: Any, configure: Any, tmp_path: Path) -> None:
    configure(**SHORT)
    stock = toy.trainer(nnUNetTrainer)
    stock.initialize()
    stock.save_checkpoint(str(tmp_path / "stock.pth"))
    trainer = toy.trainer(DualCLTrainer)
    with pytest.raises(DualCLError, match="written by nnUNetTrainer, not by DualCLTrainer"):
        trainer.load_checkpoint(str(tmp_path / "stock.pth"))


def test_interrupted_saving_keeps_the_old_checkpoint(toy: Any, configure: Any, monkeypatch: Any) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTrainer)
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()
    save = torch.save

    def fail(content: Any, target: Any) -> None:
        if not isinstance(target, Path):  # nnU-Net's part, in memory
            return save(content, target)
        target.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.glob("*checkpoint*")] == ["checkpoint_latest.pth"]
    assert not list(path.parent.glob(".*"))


def test_nan_stops_training_names_the_case_and_keeps_the_checkpoint(toy: Any, configure: Any) -> None:
    configure(**{**SHORT, "num_epochs": 3})
    trainer = toy.trainer(DualCLTrainer)
    trainer.save_every = 1
    original = trainer.on_epoch_end

    def poison_next_epoch() -> None:
        original()
        loader = trainer.dataloader_train.data_loader
        draw = loader.unlabeled.generate_train_batch

        def poisoned() -> Any:
            batch = draw()
            batch["data"][1] = float("nan")
            return batch

        loader.unlabeled.generate_train_batch = poisoned

    trainer.on_epoch_end = poison_next_epoch
    with pytest.raises(DualCLError, match=r"loss became nan in epoch 1, step 1: non-finite voxels in (tr|unl)_\d\."):
        trainer.run_training()
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_latest.pth", weights_only=False)
    assert checkpoint["current_epoch"] == 1
    assert all(torch.isfinite(v).all() for v in checkpoint["network_weights"].values() if torch.is_tensor(v))


def test_a_gradient_scaler_may_skip_steps_that_overflow(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTrainer)
    trainer.on_train_start()
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    trainer.on_train_epoch_start()
    good = next(trainer.dataloader_train)
    broken = {**good, "data": torch.full_like(good["data"], float("inf"))}
    before = {name: value.clone() for name, value in trainer.dual_network.named_parameters()}
    for _ in range(10):
        assert not np.isfinite(trainer.train_step(broken)["loss"])
    assert all(torch.equal(value, before[name]) for name, value in trainer.dual_network.named_parameters())
    assert np.isfinite(trainer.train_step(good)["loss"])
    assert all(torch.isfinite(value).all() for value in (trainer.loss.prototypes, *trainer.dual_network.parameters()))
    for _ in range(10):
        trainer.train_step(broken)
    trainer.on_train_epoch_start()  # an epoch may be shorter than that
    with pytest.raises(DualCLError, match="The loss became nan"):
        trainer.train_step(broken)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_workers_end_with_the_training(toy: Any, configure: Any, monkeypatch: Any, error: Any) -> None:
    configure(**SHORT)
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = toy.trainer(DualCLTrainer)

    def fail(batch: dict[str, Any]) -> None:
        assert len(multiprocessing.active_children()) == 3  # 2 for training, 1 for validation, as nnU-Net has it
        raise error

    trainer.train_step = fail
    with pytest.raises(error):
        trainer.run_training()
    assert multiprocessing.active_children() == []


def test_workers_of_training_and_validation_draw_from_seeds_of_their_own(
    toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[int]] = []

    def start(*, seeds: list[int], **_: Any) -> Any:
        started.append(seeds)
        return iter([None])

    monkeypatch.setattr("nnunet_dualcl.data.paired_loader.NonDetMultiThreadedAugmenter", start)
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    configure(**SHORT)
    toy.trainer(DualCLTrainer).on_train_start()
    training, validation = started
    assert len({*training, *validation}) == len(training) + len(validation) >= 2


def test_the_objective_lies_where_the_network_does(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTrainer)
    trainer.device = torch.device("meta")
    trainer.initialize()
    assert {buffer.device.type for buffer in trainer.loss.buffers()} == {"meta"}


def test_a_checkpoint_of_an_older_layout_is_refused(toy: Any, configure: Any, tmp_path: Path) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTrainer)
    trainer.initialize()
    path = tmp_path / "checkpoint_final.pth"
    trainer.save_checkpoint(str(path))
    stored = torch.load(path, weights_only=False)
    stored["network_weights"] = {
        name.replace("beside.seg_layers.decoder.", "decoder_b."): value
        for name, value in stored["network_weights"].items()
        if not name.endswith("_extra_state")
    }
    torch.save(stored, path)
    with pytest.raises(DualCLError, match=r"checkpoint_final\.pth holds the second decoder .* as an older version"):
        trainer.load_checkpoint(str(path))
    with pytest.raises(DualCLError, match="as an older version"):
        stock_checkpoint(stored, path)
    with pytest.raises(DualCLError, match="as an older version"):  # network B had an interpolating decoder
        check_layout({"encoder.a": 0, "beside.seg_layers.encoder.a": 0, "beside.seg_layers.decoder.b": 0}, path)


def test_cascades_and_apples_devices_are_refused(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTrainer)
    trainer.device = torch.device("mps")
    with pytest.raises(DualCLError, match="mps device is not supported"):
        trainer.run_training()
    plans = toy.plans()
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    with pytest.raises(DualCLError, match="second stage of a cascade"):
        toy.trainer(DualCLTrainer, plans=plans).run_training()
    assert not list(toy.preprocessed.glob("*_unlabeled"))  # before anything long


def test_patients_of_a_split_that_nnunet_draws_are_looked_at_too(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    (toy.preprocessed / "splits_final.json").unlink()
    patients = toy.raw / "conversion" / "patients.csv"
    patients.parent.mkdir()
    labeled = {path.name.removesuffix(".nii.gz"): "one" for path in (toy.raw / "labelsTr").iterdir()}
    for patient_of_unl_1, refused in (("other", False), ("one", True)):
        rows = {**labeled, "unl_0": "other", "unl_1": patient_of_unl_1}
        patients.write_text("".join(f"{case},{patient}\n" for case, patient in rows.items()), encoding="utf-8")
        trainer = toy.trainer(DualCLTrainer, fold=3)
        with pytest.raises(DualCLError, match="would see them: unl_1") if refused else nullcontext():
            trainer.on_train_start()


def test_fold_all_says_whose_labels_it_uses(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTrainer, fold="all")
    trainer.on_train_start()
    assert "tr_0" not in trainer.unlabeled_keys
    log = Path(trainer.log_file).read_text(encoding="utf-8")
    assert "also of 2 that splits_final.json lists as unlabeled: tr_0, tr_1" in log


def test_no_unlabeled_case_is_refused_before_training(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    splits = json.loads((toy.preprocessed / "splits_final.json").read_text())
    del splits[0]["unlabeled"]
    (toy.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    for file in (toy.raw / "imagesUnlabeled").iterdir():
        file.unlink()
    with pytest.raises(DualCLError, match=r"No unlabeled case for Dataset777_Toy.*imagesUnlabeled"):
        toy.trainer(DualCLTrainer).run_training()


def test_too_few_labeled_cases_for_nnunets_own_split(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    (toy.preprocessed / "splits_final.json").unlink()
    for case in ("tr_0", "tr_1"):
        (toy.preprocessed / "toyPlans_3d_fullres" / f"{case}.pkl").unlink()
    with pytest.raises(DualCLError, match=r"4 preprocessed labeled case\(s\).*dualcl split"):
        toy.trainer(DualCLTrainer).run_training()


def test_a_fold_beyond_nnunets_own_split_starts_again_with_the_same_cases(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    (toy.preprocessed / "splits_final.json").unlink()
    starts = []
    for _ in range(2):
        trainer = toy.trainer(DualCLTrainer, fold=7)
        trainer.on_train_start()  # the first one has nnU-Net write five folds
        starts.append((trainer.do_split(), trainer.unlabeled_keys))
    assert starts[0] == starts[1]
    (train, validation), unlabeled = starts[0]
    assert sorted(train + validation) == ["lab_0", "lab_1", "lab_2", "tr_0", "tr_1", "val_0"]
    assert unlabeled == ["unl_0", "unl_1"]


def test_a_fold_beyond_a_split_file_with_unlabeled_cases_is_refused(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    with pytest.raises(DualCLError, match=r"splits_final\.json has no fold 9: it holds folds 0 to 0"):
        toy.trainer(DualCLTrainer, fold=9).run_training()


def test_a_finished_training_is_not_started_again(toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTrainer)
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    trainer.current_epoch = trainer.num_epochs
    monkeypatch.setattr(trainer, "get_dataloaders", lambda: pytest.fail("loaders for nothing"))
    trainer.run_training()


def test_a_training_without_its_final_checkpoint_is_finished(toy: Any, configure: Any) -> None:
    configure(**SHORT)
    trainer = toy.trainer(DualCLTrainer)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    weights = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_best.pth")  # as if killed before the end
    again = toy.trainer(DualCLTrainer)
    again.load_checkpoint(str(folder / "checkpoint_best.pth"))
    again.run_training()
    kept = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert all(torch.equal(value, kept[name]) for name, value in weights.items() if torch.is_tensor(value))


def test_one_seed_one_result(toy: Any, configure: Any) -> None:
    results = []
    for seed in (1, 1, 2):
        configure(**{**SHORT, "num_epochs": 1}, seed=seed)
        trainer = toy.trainer(DualCLTrainer)
        trainer.run_training()
        results.append(torch.cat([value.flatten() for value in trainer.network.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, encoding="utf-8", errors="replace", check=False
    )


def test_stock_nnunet_finds_predicts_and_runs_the_export(toy: Any, configure: Any, tmp_path: Path) -> None:
    """The whole way in nnU-Net's own processes: predict with our trainer, export, predict where we do not exist."""
    from nnunet_dualcl.cli.main import main
    from nnunet_dualcl.layout import trainers_folder

    configure(**{**SHORT, "num_epochs": 1}, prediction="a")
    toy.trainer(DualCLTrainer).run_training()
    stock = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point{}; predict_entry_point{}()"
    flags = ["-f", "0", "-device", "cpu", "--save_probabilities"]
    ours, theirs, installed = (tmp_path / name for name in ("ours", "theirs", "installed"))
    images, task = str(toy.raw / "imagesUnlabeled"), ["-d", "777", "-c", "3d_fullres", "-p", "toyPlans"]

    def predict(code: str, output: Path, *arguments: str, workers: int = 1, **environment: str) -> None:
        processes = ["-npp", str(workers), "-nps", str(workers)]
        done = run([code, *arguments, "-i", images, "-o", str(output), *flags, *processes], **environment)
        assert done.returncode == 0, done.stderr

    predict(stock.format("", ""), ours, *task, "-tr", "DualCLTrainer", nnUNet_extTrainer=str(trainers_folder()))
    exported, archive = tmp_path / "exported", tmp_path / "exported.zip"
    for target in (exported, archive):
        assert main(["export", *task, "-o", str(target)]) == 0
    blocked = "import sys; sys.modules['nnunet_dualcl'] = None; "
    predict(blocked + stock.format("_modelfolder", "_modelfolder"), theirs, "-m", str(exported), nnUNet_results="")
    install = (
        "from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point as install; "
        "whole = list(sys.argv); sys.argv[1:] = whole[1:2]; install(); sys.argv[1:] = whole[2:]; "
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    nowhere = {"nnUNet_raw": "", "nnUNet_preprocessed": "", "nnUNet_results": str(elsewhere)}
    # without workers, as that way is covered above and each of them imports torch anew
    predict(blocked + install + stock.format("", ""), installed, str(archive), *task, workers=0, **nowhere)
    for folder in (theirs, installed):
        cases = sorted(path.name for path in folder.glob("*.npz"))
        assert cases == ["unl_0.npz", "unl_1.npz"]
        for case in cases:
            with np.load(ours / case) as a, np.load(folder / case) as b:
                assert np.array_equal(a["probabilities"], b["probabilities"])
            name = case.replace(".npz", ".nii.gz")
            segmentations = [sitk.GetArrayFromImage(sitk.ReadImage(str(place / name))) for place in (ours, folder)]
            assert np.array_equal(*segmentations)
