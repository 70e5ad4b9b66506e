"""What nnU-Net trains, trained here: label kinds, inputs, architectures, ways of running."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._dynamo import OptimizedModule, lookup_backend

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.data.paired_loader import patches_of
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import TERM_LOG_FILE
from nnunet_dualcl.networks import PREFIX_B
from nnunet_dualcl.trainers.CPSTrainer import CPSTrainer
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer
from nnunet_dualcl.trainers.DualCLTwoNetTrainer import DualCLTwoNetTrainer
from nnunet_dualcl.trainers.MeanTeacherTrainer import MeanTeacherTrainer
from nnunet_dualcl.trainers.UAMTTrainer import UAMTTrainer
from nnunet_dualcl.training import SemiSupervisedLoss

TERMS = SemiSupervisedLoss.terms
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "contrastive_samples": 64}
FULL = {"rampup_fraction": 0.0, "verification_on": "both", "verification_weight": 0.5, "unreliable_fraction_end": 0.2}
CLASSES = {"background": 0, "left": 1, "right": 2}
REGIONS = {"background": 0, "whole": [1, 2], "right": 2}
LABEL_KINDS = {
    "classes": {"labels": CLASSES},
    "ignore": {"labels": {**CLASSES, "ignore": 3}},
    "regions": {"labels": REGIONS, "regions_class_order": [1, 2]},
    "regions_ignore": {"labels": {**REGIONS, "ignore": 3}, "regions_class_order": [1, 2]},
}


def with_labels(toy: Any, kind: str) -> dict[str, Any]:
    """Prepare the toy for labels of a kind; with an ignore label, half of each scan is not annotated."""
    dataset_json = {**json.loads((toy.raw / "dataset.json").read_text()), **LABEL_KINDS[kind]}
    if "ignore" in kind:
        for file in (toy.raw / "labelsTr").iterdir():
            image = sitk.ReadImage(str(file))
            array = sitk.GetArrayFromImage(image)
            array[:, : array.shape[1] // 2] = 3
            marked = sitk.GetImageFromArray(array)
            marked.CopyInformation(image)
            sitk.WriteImage(marked, str(file))
    toy.preprocess(dataset_json, toy.plans())
    return dataset_json


def start(toy: Any, trainer_class: Any = DualCLTrainer, **options: Any) -> Any:
    trainer = toy.trainer(trainer_class, **options)
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def terms_of(trainer: Any) -> list[dict[str, float]]:
    rows = csv.DictReader((Path(trainer.output_folder) / TERM_LOG_FILE).open())
    return [{name: float(value) for name, value in row.items()} for row in rows]


def train(trainer: Any) -> dict[str, float]:
    """Train to the end and return the last epoch's terms, all finite and those that must be there above 0."""
    trainer.run_training()
    *_, last = terms_of(trainer)
    assert np.isfinite(list(last.values())).all()
    for term in ("supervised_a", "supervised_b", "verification", "pseudo_label", "contrastive"):
        assert last[term] > 0, term
    return last


@pytest.mark.parametrize(
    ("kind", "configuration"), [*((kind, "3d_fullres") for kind in LABEL_KINDS), ("regions_ignore", "2d")]
)
def test_labels_of_every_kind_train(toy: Any, configure: Any, kind: str, configuration: str) -> None:
    configure(**{**SHORT, **FULL})
    dataset_json = with_labels(toy, kind)
    trainer = toy.trainer(DualCLTrainer, configuration, dataset_json=dataset_json)
    train(trainer)
    problems = trainer.loss.problems
    assert (problems.regions, problems.has_ignore) == ("regions" in kind, "ignore" in kind)
    if kind != "regions_ignore":
        return
    trainer.perform_actual_validation()
    (written,) = (Path(trainer.output_folder) / "validation").glob("*.nii.gz")
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(written))))) <= {0, 1, 2}


@pytest.mark.parametrize("kind", ["ignore", "regions_ignore"])
def test_partly_annotated_cases_need_no_unlabeled_ones(toy: Any, configure: Any, kind: str) -> None:
    configure(**{**SHORT, **FULL})
    dataset_json = with_labels(toy, kind)
    splits = json.loads((toy.preprocessed / "splits_final.json").read_text())
    del splits[0]["unlabeled"]
    (toy.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    for file in (toy.raw / "imagesUnlabeled").iterdir():
        file.unlink()
    configure(**{**SHORT, **FULL}, split_batch=True)  # there is nothing to share the batch with
    trainer = toy.trainer(DualCLTrainer, dataset_json=dataset_json)
    train(trainer)
    batch = next(trainer.dataloader_train)
    assert patches_of(batch).unlabeled is None
    assert len(batch["data"]) == 2


def test_pasted_voxels_without_truth_carry_the_teachers_label(toy: Any, configure: Any) -> None:
    configure(**{**SHORT, **FULL}, mixing_fraction=1.0)  # one patch is its labeled partner, all over
    trainer = start(toy, dataset_json=with_labels(toy, "ignore"))
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    truth = trainer.loss.problems.truth(batch["target"][0])
    taught, taught_labeled = trainer.loss.taught, trainer.loss.taught_labeled
    unknown = truth < 0
    assert unknown.any()
    whole = [index for index in range(2) if torch.equal(taught.labels[index][~unknown[index]],
                                                        truth[index][~unknown[index]])]  # fmt: skip
    assert len(whole) == 1
    (index,) = whole
    assert torch.equal(taught.labels[index][unknown[index]], taught_labeled.labels[index][unknown[index]])
    assert torch.equal(taught.reliable[index], ~unknown[index] | taught_labeled.reliable[index])


# ---- inputs


@pytest.mark.parametrize("files", [1, 2])
def test_color_images(toy: Any, configure: Any, files: int) -> None:
    """Natural images: three channels in one PNG, two axes, no spacing."""
    channels = 3 * files
    plans = toy.plans()
    plans["image_reader_writer"] = "NaturalImage2DIO"
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities.update({str(channel): intensities["1"] for channel in range(2, channels)})
    plans["configurations"].pop("3d_fullres")
    flat = plans["configurations"]["2d"]
    flat.update(spacing=[1.0, 1.0], normalization_schemes=["RGBTo01Normalization"] * channels)
    flat["use_mask_for_norm"] = [False] * channels
    names = dict(zip(map(str, range(channels)), "RGBRGB", strict=False))
    dataset_json = {"channel_names": names, "labels": CLASSES, "file_ending": ".png"}
    for folder in ("imagesTr", "labelsTr", "imagesUnlabeled"):
        for file in sorted((toy.raw / folder).glob("*.nii.gz")):
            image = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            middle = image[image.shape[0] // 2]
            file.unlink()
            if files == 1 and file.name.endswith("_0001.nii.gz"):
                continue
            color = middle.astype(np.uint8) if folder == "labelsTr" else np.stack([30 * middle.clip(0, 8)] * 3, -1)
            sitk.WriteImage(
                sitk.GetImageFromArray(color.astype(np.uint8), isVector=color.ndim == 3),
                str(file).replace(".nii.gz", ".png"),
            )
    toy.preprocess(dataset_json, plans)
    configure(**{**SHORT, **FULL})
    trainer = toy.trainer(DualCLTrainer, "2d", plans=plans, dataset_json=dataset_json)
    train(trainer)
    assert patches_of(next(trainer.dataloader_train)).unlabeled.shape == (2, channels, 12, 16)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("patch_size", [[6, 12, 16], [16, 32, 32]])
def test_cases_smaller_than_the_patch_and_masked_normalization(
    toy: Any, configure: Any, patch_size: list[int], masked: bool
) -> None:
    plans = toy.plans()
    plans["configurations"]["3d_fullres"].update(patch_size=patch_size, use_mask_for_norm=[masked, False])
    toy.preprocess(json.loads((toy.raw / "dataset.json").read_text()), plans)
    configure(**{**SHORT, **FULL})
    trainer = toy.trainer(DualCLTrainer, plans=plans)
    train(trainer)
    batch = next(trainer.dataloader_train)
    for part in patches_of(batch):
        assert list(part.shape) == [2, 2, *patch_size]


# ---- memory


@pytest.mark.parametrize("kind", ["classes", "regions_ignore"])
@pytest.mark.parametrize("option", ["low_memory", "decoder_checkpointing"])
@pytest.mark.parametrize("source", ["teacher", "winner"])
def test_memory_options_take_the_same_step(toy: Any, configure: Any, kind: str, option: str, source: str) -> None:
    dataset_json = with_labels(toy, kind)
    mixing = "none" if source == "winner" else "copy_paste"
    results = []
    for enabled in (False, True):
        configure(**{**SHORT, **FULL}, pseudo_label_source=source, mixing=mixing, **{option: enabled})
        trainer = start(toy, dataset_json=dataset_json)
        losses = []
        for _ in range(3):
            torch.manual_seed(1)  # the same sampled voxels, whatever else draws
            losses.append(trainer.train_step(next(trainer.dataloader_train)))
        results.append((trainer, losses))
    (joint, expected), (other, found) = results
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
    for (name, ours), theirs in zip(other.network.named_parameters(), joint.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)


def test_a_gradient_scaler_leaves_the_step_of_low_memory_as_it_is(toy: Any, configure: Any) -> None:
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        for low_memory in (False, True):
            configure(**SHORT, **FULL, low_memory=low_memory)
            trainer = start(toy)
            trainer.grad_scaler = scaler
            torch.manual_seed(1)
            trainer.train_step(next(trainer.dataloader_train))
            results.append(weights(trainer.dual_network))
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5, msg=name)


HALF_PRECISION = [
    *((kind, None, DualCLTrainer) for kind in LABEL_KINDS),
    ("ignore", "low_memory", DualCLTrainer),
    ("regions", "decoder_checkpointing", DualCLTrainer),
    *(("classes", None, other) for other in (DualCLTwoNetTrainer, MeanTeacherTrainer, UAMTTrainer, CPSTrainer)),
]


@pytest.mark.parametrize(("kind", "option", "trainer_class"), HALF_PRECISION)
def test_half_precision_takes_the_step_of_float32(
    toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch, kind: str, option: str | None, trainer_class: Any
) -> None:
    """A GPU's way, on the CPU: nnU-Net's step and ours under autocast to float16, with a gradient scaler."""
    dataset_json = with_labels(toy, kind)
    losses = []
    seen: set[torch.dtype] = set()
    for half in (False, True):
        configure(**SHORT, rampup_fraction=0.0, **({option: True} if option else {}))
        trainer = start(toy, trainer_class, dataset_json=dataset_json)
        if half:
            monkeypatch.setattr(nnunet_module, "dummy_context", lambda: torch.autocast("cpu", dtype=torch.float16))
            monkeypatch.setattr(DualCLTrainer, "_autocast", lambda _: torch.autocast("cpu", dtype=torch.float16))
            trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            layer = trainer.dual_network.decoder.seg_layers[-1]
            layer.register_forward_hook(lambda _layer, _inputs, output: seen.add(output.dtype))
        torch.manual_seed(1)  # the same sampled voxels
        steps = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(2)]
        losses.append([float(step["loss"]) for step in steps])
        finite = np.isfinite([step["terms"][: len(TERMS)] for step in steps]).all(0)
        expected = [trainer.config.second_decoder or name != "supervised_b" for name in TERMS]
        assert finite.tolist() == expected
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])
    assert seen == {torch.float16}
    assert trainer.grad_scaler.get_scale() == 1024.0  # no step was skipped
    np.testing.assert_allclose(*losses, rtol=0.02)


def test_decoder_checkpointing_runs_each_decoder_twice(toy: Any, configure: Any) -> None:
    runs = []
    for enabled in (False, True):
        configure(**SHORT, decoder_checkpointing=enabled)
        trainer = toy.trainer(DualCLTrainer)
        trainer.initialize()
        network = trainer.dual_network.train()
        started: list[torch.nn.Module] = []
        for decoder in (network.decoder, network.decoder_b):
            decoder.register_forward_pre_hook(lambda decoder, _, started=started: started.append(decoder))
        output = network(torch.zeros(1, 2, 6, 12, 16))
        (output.features_a.sum() + output.features_b.sum()).backward()
        runs.append([started.count(decoder) for decoder in (network.decoder, network.decoder_b)])
    assert runs == [[1, 1], [2, 2]]


def test_low_memory_runs_one_half_at_a_time(toy: Any, configure: Any) -> None:
    configure(**SHORT, low_memory=True)
    trainer = start(toy)
    sizes: list[int] = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    trainer.train_step(next(trainer.dataloader_train))
    assert sizes == [2, 2]
    assert "zero_grad" not in vars(trainer.optimizer)


def test_half_of_the_plans_batch_is_unlabeled_on_demand(toy: Any, configure: Any) -> None:
    plans = toy.plans()
    plans["configurations"]["3d_fullres"]["batch_size"] = 5
    configure(**SHORT, split_batch=True)
    batch = next(start(toy, plans=plans).dataloader_train)
    assert [len(part) for part in patches_of(batch)] == [3, 2, 2]
    plans["configurations"]["3d_fullres"]["batch_size"] = 2  # nnU-Net would force one of these two onto foreground
    loader = start(toy, plans=plans).dataloader_train.data_loader.labeled
    forced = [loader.get_do_oversample(0) for _ in range(200)]
    assert 0.1 < np.mean(forced) < 0.6
    plans["configurations"]["3d_fullres"]["batch_size"] = 5
    trainer = start(toy, plans=plans)

    def of_training_and_validation() -> list[tuple[int, str]]:
        loaders = [loader.data_loader for loader in trainer.get_dataloaders()]
        parts = [getattr(loader, "labeled", loader) for loader in loaders]
        return [(loader.batch_size, loader.get_do_oversample.__name__) for loader in parts]

    # also at the second time, as after a resume: half of the plans' batch, not half of the half
    assert of_training_and_validation() == [(3, "_oversample_last_XX_percent"), (5, "_oversample_last_XX_percent")]
    assert (trainer.batch_size, trainer.oversample_foreground_percent) == (5, 0.33)
    trainer.is_ddp, trainer.oversample_foreground_percent = True, 0.5  # the share that nnU-Net gave to this rank
    assert of_training_and_validation() == [(3, "_probabilistic_oversampling"), (5, "_oversample_last_XX_percent")]
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    with pytest.raises(DualCLError, match=r"split_batch: true needs a batch of at least 2.*low_memory: true"):
        toy.trainer(DualCLTrainer, plans=plans).on_train_start()


# ---- architectures, and weights of other trainings


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_residual_encoders_train(toy: Any, configure: Any, architecture: Any, configuration: str) -> None:
    configure(**{**SHORT, **FULL})
    plans = toy.plans()
    dimension = 2 if configuration == "2d" else 3
    plans["configurations"][configuration]["architecture"] = architecture(dimension, residual=True)
    train(toy.trainer(DualCLTrainer, configuration, plans=plans))


@pytest.mark.parametrize("trainer_class", [DualCLTrainer, DualCLTwoNetTrainer])
@pytest.mark.parametrize("residual", [False, True])
def test_pretrained_stock_weights_fill_encoder_and_decoder_a(
    toy: Any, configure: Any, architecture: Any, tmp_path: Path, trainer_class: Any, residual: bool
) -> None:
    plans = toy.plans()
    plans["configurations"]["3d_fullres"]["architecture"] = architecture(3, residual=residual)
    torch.manual_seed(11)
    stock = toy.trainer(nnUNetTrainer, plans=plans)
    stock.initialize()
    path = tmp_path / "pretrained.pth"
    stock.save_checkpoint(str(path))
    configure(**SHORT)
    trainer = toy.trainer(trainer_class, plans=plans)
    trainer.initialize()
    fresh = {name: value.clone() for name, value in trainer.network.state_dict().items() if torch.is_tensor(value)}
    maybe_load_checkpoint(trainer, False, False, str(path))
    loaded = trainer.network.state_dict()
    for name, value in stock.network.state_dict().items():
        source = fresh[name] if ".seg_layers." in name else value
        assert torch.equal(loaded[name], source), name
    for name, value in fresh.items():
        if name.startswith(PREFIX_B):
            assert torch.equal(loaded[name], value), name
    trainer.on_train_start()
    for name, value in trainer.teacher.network.named_parameters():
        assert torch.equal(value, loaded[name]), name


PAPER = {**DualCLConfig.paper().to_mapping(), **SHORT, "rampup_fraction": 0.0}
COMPILED: list[tuple[Any, str, dict[str, Any]]] = [
    (DualCLTrainer, "classes", {}),
    (DualCLTrainer, "classes", {"decoder_checkpointing": True}),
    (DualCLTrainer, "classes", {"low_memory": True}),
    (DualCLTrainer, "regions_ignore", {"unlabeled_batch_size": 3, "initial_lr": 0.001}),  # else its loss diverges
    (DualCLTrainer, "classes", PAPER),
    (UAMTTrainer, "regions", {}),
    (CPSTrainer, "ignore", {}),
]


@pytest.mark.parametrize(("trainer_class", "kind", "option"), COMPILED)
def test_a_compiled_network_takes_the_same_step(
    toy: Any, configure: Any, monkeypatch: pytest.MonkeyPatch, trainer_class: Any, kind: str, option: dict[str, Any]
) -> None:
    """The graphs that torch.compile captures, without the code generator that a GPU would use."""
    dataset_json = with_labels(toy, kind)
    captured: list[torch.nn.Module] = []

    def capture(graph: torch.nn.Module, inputs: list[torch.Tensor]) -> Any:
        captured.append(graph)
        assert not any(isinstance(value, torch.SymInt) for value in inputs)  # code for a batch that never changes
        return lookup_backend("aot_eager")(graph, inputs)

    results = []
    for compiled in (False, True):
        # rounding moves a voxel at the quantile over or under it: of 64 voxels one counts, of 4,096 it does not
        configure(**{**SHORT, **option, "contrastive_samples": 4096})
        if compiled:
            torch._dynamo.reset()
            monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=capture))
            monkeypatch.setattr(DualCLTrainer, "_do_i_compile", lambda _: True)
        trainer = start(toy, trainer_class, dataset_json=dataset_json)
        assert isinstance(trainer.network, OptimizedModule) == compiled
        if trainer.teacher is not None:
            assert (trainer.teacher._predict != trainer.teacher._forward) == compiled
        graphs = []
        for _ in range(3):
            torch.manual_seed(1)
            trainer.train_step(next(trainer.dataloader_train))
            graphs.append(len(captured))
        results.append(weights(trainer.dual_network))
        assert (graphs[0] > 4) == compiled  # network, nnU-Net's Dice, terms
        assert graphs[0] == graphs[-1]  # nothing is compiled anew as fraction and ramp move
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=1e-5, msg=name)
