"""One training, one prediction, one evaluation, as function calls; the demo and benchmarks are made of these."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.ensembling.ensemble import merge_files
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

from nnunet_dualcl.atomic import remove_leftovers, replacing
from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.data.cases import list_case_images
from nnunet_dualcl.data.random_stream import seed_epoch, seed_global_streams
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.find_trainer import reads_config
from nnunet_dualcl.layout import CONFIG_VARIABLE, EXT_TRAINER_VARIABLE, with_trainers_folder
from nnunet_dualcl.training.environment import variable

_SAVES = 20
"""Least number of checkpoints in a training, so that a stop of a short one does not cost all of it."""


def train(
    dataset: str,
    plans: str,
    trainer_name: str,
    config: DualCLConfig,
    config_file: Path,
    *,
    fold: int = 0,
    configuration: str = "3d_fullres",
    device: str = "cpu",
) -> Path:
    """Train to the end, continuing from a checkpoint where there is one; nnU-Net's own trainers get our numbers.

    The global random generators are seeded at each epoch from ``config.seed``, so that a continued training without
    augmentation workers draws the batches of an uninterrupted one, also with nnU-Net's own trainers.

    Args:
        dataset: full dataset name.
        plans: plans name.
        trainer_name: ours or one of nnU-Net's.
        config: written to ``config_file``; its epochs, iterations and learning rate are set on any trainer.
        config_file: file that ``DUALCL_CONFIG`` names while the trainer is built.
        fold: fold of the split file.
        configuration: configuration of the plans.
        device: torch device type.

    Returns:
        The model folder (with ``plans.json``).

    Raises:
        DualCLError: ``config_file`` exists and holds another configuration; what was trained with it would be taken
            for this training's.
    """
    if config_file.is_file() and type(config).from_yaml(config_file) != config:
        raise DualCLError(
            f"{config_file} belongs to trainings with another configuration. Choose another folder, or delete this one."
        )
    config.write_yaml(config_file)
    if device == "cuda":  # as nnU-Net's command does, not its trainer
        torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.benchmark = True
    seed_global_streams(config.seed)
    with (
        variable(CONFIG_VARIABLE, str(config_file)),
        variable(EXT_TRAINER_VARIABLE, with_trainers_folder(os.environ.get(EXT_TRAINER_VARIABLE))),
    ):
        trainer = get_trainer_from_args(
            dataset, configuration, fold, trainer_name, plans, continue_training=True, device=torch.device(device)
        )
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr"):
            setattr(trainer, name, getattr(config, name))
        if not reads_config(type(trainer)):  # ours write whole files by themselves
            trainer.save_checkpoint = partial(_save_whole, trainer.save_checkpoint)
        trainer.on_train_epoch_start = partial(_seed_and, trainer.on_train_epoch_start, trainer, config.seed)
        trainer.save_every = min(trainer.save_every, max(1, config.num_epochs // _SAVES))
        if not (Path(trainer.output_folder) / "checkpoint_final.pth").is_file():
            maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
            trainer.run_training()
    return Path(trainer.output_folder_base)


def _seed_and(start_epoch: Callable[[], None], trainer: Any, seed: int) -> None:
    seed_epoch(seed, trainer.current_epoch)
    start_epoch()


def _save_whole(save: Callable[[str], None], filename: str) -> None:
    """A stop while a trainer of nnU-Net's own writes leaves the checkpoint of before."""
    remove_leftovers(Path(filename))
    with replacing(Path(filename)) as partial_file:
        save(str(partial_file))


def predict(
    model_folder: Path, images: Path, target: Path, *, folds: Sequence[int] = (0,), device: str = "cpu"
) -> None:
    """As :func:`predict_cases`, for all cases of a folder of images."""
    dataset_json = json.loads((model_folder / "dataset.json").read_text(encoding="utf-8"))
    predict_cases(
        model_folder, list_case_images(images, dataset_json["file_ending"]), target, folds=folds, device=device
    )


def predict_cases(
    models: Path | Sequence[Path],
    cases: Mapping[str, Sequence[Path]],
    target: Path,
    *,
    folds: Sequence[int] = (0,),
    device: str = "cpu",
) -> None:
    """Predict cases with nnU-Net's predictor in this process; those already in ``target`` are kept.

    Several ``folds`` are averaged as nnU-Net's predictor does it, several models as its ``nnUNetv2_ensemble``.

    Args:
        models: one folder with ``plans.json`` or several, of the same labels and file format.
        cases: name -> image files, one a channel.
        target: folder for ``NAME`` with the dataset's file ending; a case appears there once it is written whole.
        folds: of each model.
        device: torch device type.
    """
    models = [models] if isinstance(models, Path) else models
    dataset_json = json.loads((models[0] / "dataset.json").read_text(encoding="utf-8"))
    files = {case: f"{case}{dataset_json['file_ending']}" for case in cases}
    missing = [case for case in cases if not (target / files[case]).is_file()]
    if not missing:
        return
    predictors = [_predictor(model, folds, device) for model in models]
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".partial-") as scratch:
        for case in missing:
            images = [str(path) for path in cases[case]]
            # nnU-Net's "truncated" files, to which it adds the endings
            whole = os.path.join(scratch, case)
            parts = [whole] if len(models) == 1 else [f"{whole}_of_{number}" for number in range(len(models))]
            for predictor, part in zip(predictors, parts, strict=True):
                predictor.predict_from_files_sequential([images], [part], save_probabilities=len(models) > 1)
            if len(models) > 1:
                plans = predictors[0].plans_manager
                merge_files(
                    [f"{part}.npz" for part in parts],
                    whole,
                    dataset_json["file_ending"],
                    plans.image_reader_writer_class(),
                    plans.get_label_manager(dataset_json),
                )
            os.replace(os.path.join(scratch, files[case]), target / files[case])


def _predictor(model_folder: Path, folds: Sequence[int], device: str) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
    with variable(EXT_TRAINER_VARIABLE, with_trainers_folder(os.environ.get(EXT_TRAINER_VARIABLE))):
        predictor.initialize_from_trained_model_folder(str(model_folder), tuple(folds))
    return predictor


def dice_per_case(predictions: Path, references: Path, dataset_json: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Dice of each label for each predicted case, by nnU-Net's own evaluation (NaN where a label is in neither)."""
    ending = dataset_json["file_ending"]
    files = sorted(predictions.glob(f"*{ending}"))
    if not files:
        raise DualCLError(f"{predictions} holds no *{ending} to evaluate. Predict into it first.")
    reader = determine_reader_writer_from_dataset_json(dataset_json, str(references / files[0].name), verbose=False)()
    labels = sorted(value for value in dataset_json["labels"].values() if value != 0)
    return {
        file.name.removesuffix(ending): {
            label: float(metric["Dice"])
            for label, metric in compute_metrics(str(references / file.name), str(file), reader, labels)[
                "metrics"
            ].items()
        }
        for file in files
    }
