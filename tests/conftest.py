"""A toy dataset, already planned and preprocessed, on which a trainer runs in a second."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension

NAME = "Dataset777_Toy"
LABELED = ("lab_0", "lab_1", "lab_2")
VALIDATION = ("val_0",)
LISTED_UNLABELED = ("tr_0", "tr_1")
FOLDER_UNLABELED = ("unl_0", "unl_1")

DATASET_JSON = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "left": 1, "right": 2},
    "numTraining": len(LABELED + VALIDATION + LISTED_UNLABELED),
    "file_ending": ".nii.gz",
}


def make_architecture(dimension: int = 3, *, residual: bool = False, stages: int = 3) -> dict[str, Any]:
    """Architecture entry of plans: anisotropic first downsampling, 4 channels at full resolution."""
    strides = [[1] * dimension, [1, *[2] * (dimension - 1)], *[[2] * dimension] * (stages - 2)]
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4 * 2**stage for stage in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
            "kernel_sizes": [[3] * dimension] * stages,
            "strides": strides,
            "n_blocks_per_stage" if residual else "n_conv_per_stage": [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _configuration(dimension: int) -> dict[str, Any]:
    data = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    name = "3d_fullres" if dimension == 3 else "2d"
    return {
        "data_identifier": f"toyPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [6, 12, 16][-dimension:],
        "median_image_size_in_voxels": [10.0, 18.0, 22.0][-dimension:],
        "spacing": [2.5, 1.0, 1.0][-dimension:],
        "normalization_schemes": ["ZScoreNormalization"] * 2,
        "use_mask_for_norm": [False, False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": {**data, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": data,
        "architecture": make_architecture(dimension),
        "batch_dice": False,
    }


def toy_plans() -> dict[str, Any]:
    """Plans as nnU-Net writes them, with a 3D and a 2D configuration."""
    statistics = {"max": 9.0, "mean": 1.0, "median": 1.0, "min": 0.0, "percentile_00_5": 0.0}
    statistics.update({"percentile_99_5": 9.0, "std": 1.0})
    return {
        "dataset_name": NAME,
        "plans_name": "toyPlans",
        "original_median_spacing_after_transp": [2.5, 1.0, 1.0],
        "original_median_shape_after_transp": [10, 18, 22],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": _configuration(3), "2d": _configuration(2)},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": statistics, "1": statistics},
    }


def write_case(folder: Path, case: str, seed: int, *, labels: Path | None) -> None:
    """Two channels and, where a folder is given, labels of one lopsided oblique scan."""
    rng = np.random.default_rng(seed)
    shape = (9 + seed % 3, 17 + seed % 4, 21 + seed % 5)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    label = np.zeros(shape, np.uint8)
    label[(z / 0.7) ** 2 + (y / 0.6) ** 2 + ((x + 0.35) / 0.35) ** 2 < 1] = 1
    label[(z / 0.7) ** 2 + (y / 0.6) ** 2 + ((x - 0.35) / 0.35) ** 2 < 1] = 2
    arrays = {f"_{channel:04d}": (label + rng.normal(1, 0.3, shape)).astype(np.float32) for channel in range(2)}
    targets = [(folder / f"{case}{suffix}.nii.gz", array) for suffix, array in arrays.items()]
    if labels is not None:
        targets.append((labels / f"{case}.nii.gz", label))
    for path, array in targets:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.0, 1.0, 2.5))
        image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
        sitk.WriteImage(image, str(path))


class Toy:
    """The toy dataset's folders, and trainers on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "raw" / NAME
        self.preprocessed = root / "preprocessed" / NAME
        self.results = root / "results"

    def preprocess(self, dataset_json: dict[str, Any], plans: dict[str, Any]) -> None:
        """Run nnU-Net's preprocessor over the labeled cases, again where ``dataset_json`` or labels have changed."""
        from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(plans)
        for folder in (self.raw, self.preprocessed):
            (folder / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
        (self.preprocessed / "toyPlans.json").write_text(json.dumps(plans), encoding="utf-8")
        shutil.rmtree(self.preprocessed / "gt_segmentations", ignore_errors=True)
        shutil.copytree(self.raw / "labelsTr", self.preprocessed / "gt_segmentations")
        for configuration in plans["configurations"]:
            target = self.preprocessed / f"toyPlans_{configuration}"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            for case in LABELED + VALIDATION + LISTED_UNLABELED:
                images = sorted(str(file) for file in (self.raw / "imagesTr").glob(f"{case}_*"))
                DefaultPreprocessor(verbose=False).run_case_save(
                    str(target / case), images, str(self.raw / "labelsTr" / f"{case}{dataset_json['file_ending']}"),
                    manager, manager.get_configuration(configuration), dataset_json,
                )  # fmt: skip

    def plans(self) -> dict[str, Any]:
        """A fresh copy of the plans."""
        return toy_plans()

    def trainer(
        self, trainer_class: Any, configuration: str = "3d_fullres", *, plans: Any = None, **options: Any
    ) -> Any:
        """A trainer for fold 0, on the CPU unless told otherwise, as nnU-Net's run_training builds it."""
        plans = copy.deepcopy(plans or toy_plans())
        plans["continue_training"] = options.pop("continue_training", False)
        dataset_json = options.pop("dataset_json", DATASET_JSON)
        return trainer_class(plans, configuration, options.pop("fold", 0), copy.deepcopy(dataset_json),
                             device=torch.device(options.pop("device", "cpu")))  # fmt: skip


def _build(root: Path) -> None:
    toy = Toy(root)
    for folder in (toy.raw / "imagesTr", toy.raw / "labelsTr", toy.raw / "imagesUnlabeled", toy.results):
        folder.mkdir(parents=True)
    for seed, case in enumerate(LABELED + VALIDATION + LISTED_UNLABELED):
        write_case(toy.raw / "imagesTr", case, seed, labels=toy.raw / "labelsTr")
    for seed, case in enumerate(FOLDER_UNLABELED, 100):
        write_case(toy.raw / "imagesUnlabeled", case, seed, labels=None)
    split = {"train": list(LABELED), "val": list(VALIDATION), "unlabeled": list(LISTED_UNLABELED)}
    toy.preprocessed.mkdir(parents=True)
    for name, content in (("dataset_fingerprint.json", {}), ("splits_final.json", [split])):
        (toy.preprocessed / name).write_text(json.dumps(content), encoding="utf-8")
    toy.preprocess(DATASET_JSON, toy_plans())


@pytest.fixture(scope="session")
def _toy_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy_template")
    _build(root)
    return root


@pytest.fixture
def toy(_toy_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A copy of the toy dataset of this test's own, with nnU-Net's variables pointing to it; no worker processes."""
    root = tmp_path / "toy"
    shutil.copytree(_toy_template, root)
    for variable, folder in (("raw", "raw"), ("preprocessed", "preprocessed"), ("results", "results")):
        monkeypatch.setenv(f"nnUNet_{variable}", str(root / folder))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    # each reads nnUNet_def_n_proc when it is imported; the last is read anew by the trainer that nnU-Net finds by -tr
    modules = ("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnunet_dualcl.trainers.DualCLTrainer")
    for module in (*modules, "nnunetv2.configuration"):
        monkeypatch.setattr(f"{module}.default_num_processes", 1)
    monkeypatch.delenv("DUALCL_CONFIG", raising=False)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    # nnU-Net's blur times two algorithms and takes the faster; they round differently
    monkeypatch.setattr(GaussianBlurTransform, "_benchmark_wrapper", staticmethod(blur_dimension))
    threads = torch.get_num_threads()
    yield Toy(root)
    torch.set_num_threads(threads)


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``configure(key=value, ...)`` writes a configuration file and names it in ``DUALCL_CONFIG``."""

    def write(**values: Any) -> Path:
        path = tmp_path / "dualcl.yaml"
        path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
        monkeypatch.setenv("DUALCL_CONFIG", str(path))
        return path

    return write


@pytest.fixture
def train_and_list_moved() -> Any:
    """``train_and_list_moved(trainer)``: train, and name the network's parts (``encoder``, ...) that moved."""

    def run(trainer: Any) -> set[str]:
        trainer.on_train_start()
        start = {name: weight.clone() for name, weight in trainer.network.named_parameters()}
        trainer.run_training()
        after = trainer.network.named_parameters()
        moved = [name.split(".") for name, weight in after if not torch.equal(start[name], weight)]
        return {f"{parts[2]}_b" if parts[0] == "beside" else parts[0] for parts in moved}

    return run


@pytest.fixture
def architecture() -> Any:
    """``architecture(dimension, residual=False, stages=3)``: the entry of that name in plans."""
    return make_architecture
