"""Trainers on plans of any size, without a dataset: what the measurements of single steps run on."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from nnunet_dualcl.training.environment import nnunet_folders

NAME = "Dataset999_Measured"


def plans(patch: list[int], features: list[int], batch: int) -> dict[str, Any]:
    """Plans with just what a trainer reads to build network and loss."""
    stages = len(features)
    return {
        "dataset_name": NAME,
        "plans_name": "p",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "p",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": batch,
                "patch_size": patch,
                "spacing": [1.0, 1.0, 1.0],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "batch_dice": False,
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": features,
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[3, 3, 3]] * stages,
                        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                        "n_conv_per_stage": [2] * stages,
                        "n_conv_per_stage_decoder": [2] * (stages - 1),
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
        "continue_training": False,
    }


@contextlib.contextmanager
def nnunet_folder() -> Iterator[Path]:
    """A temporary folder that nnU-Net's variables name, with just enough in it for a trainer to start."""
    with tempfile.TemporaryDirectory() as folder, nnunet_folders(Path(folder)):
        os.environ.pop("DUALCL_CONFIG", None)
        preprocessed = Path(os.environ["nnUNet_preprocessed"]) / NAME / "p"
        preprocessed.mkdir(parents=True)
        (preprocessed / "case.b2nd").touch()  # nnU-Net infers the dataset class from file endings
        yield Path(folder)


def build(trainer_class: Any, arguments: argparse.Namespace, **config: Any) -> Any:
    """An initialized trainer with ``config`` in the place of defaults; nnU-Net's announcements are swallowed."""
    if config:
        path = Path(os.environ["nnUNet_results"]) / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        os.environ["DUALCL_CONFIG"] = str(path)
    else:
        os.environ.pop("DUALCL_CONFIG", None)
    dataset_json = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, **{f"label_{index}": index for index in range(1, arguments.classes)}},
        "file_ending": ".nii.gz",
    }
    with contextlib.redirect_stdout(io.StringIO()):
        planned = plans(arguments.patch, arguments.features, arguments.batch)
        trainer = trainer_class(planned, "3d_fullres", 0, dataset_json, torch.device(arguments.device))
        trainer.initialize()
    trainer.network.train()
    trainer._iteration = 0
    return trainer
