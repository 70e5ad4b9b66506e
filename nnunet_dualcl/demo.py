"""The whole way on a dataset made on the spot: few labeled phantoms, more unlabeled ones, and stock nnU-Net beside.

It shows that an installation works and what the steps are. Its scans are synthetic and its trainings short: the table
says nothing about patients.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from tqdm import tqdm

from nnunet_dualcl.atomic import write_text
from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.data.splits import Split, write_splits
from nnunet_dualcl.dataset_conversion.phantom import write_phantom_dataset
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.export import export_stock_model
from nnunet_dualcl.figures import overlay_figure, save_figure
from nnunet_dualcl.layout import SPLITS_FILE, STOCK_TRAINER
from nnunet_dualcl.preprocessing import preprocess_dataset
from nnunet_dualcl.runs import dice_per_case, predict, train
from nnunet_dualcl.small_plans import write_small_plans
from nnunet_dualcl.training.environment import nnunet_folders, variables

DATASET_ID = 901
LABELED, VALIDATION, UNLABELED, TEST = 4, 3, 24, 8
PLANS = "demoPlans"
PATCH_SIZE, FEATURES, SPACING_MM = (16, 24, 24), (8, 16, 32), (2.5, 1.6, 1.6)
CONFIG = DualCLConfig(num_epochs=10, num_iterations_per_epoch=150, num_val_iterations_per_epoch=5)
MODELS = {"stock nnU-Net": STOCK_TRAINER, "DualCL": "DualCLTrainer"}


def run_demo(folder: Path, config: DualCLConfig = CONFIG) -> Path:
    """Generate, plan, preprocess, train twice, predict, export, compare; repeat the call to go on after a stop.

    Args:
        folder: everything is written here; its nnU-Net folders are used for the length of the call.
        config: of both trainings; nnU-Net's own gets the epochs and iterations of it.

    Returns:
        The overlay picture; ``dice.csv`` lies beside it.
    """
    folder = folder.resolve()
    steps = tqdm(total=7, bar_format="[{n_fmt}/{total_fmt} {elapsed}] {desc}")
    with _own_environment(folder), steps:
        _step(steps, "generating phantoms")
        dataset = _generate(Path(os.environ["nnUNet_raw"]))
        preprocessed = Path(os.environ["nnUNet_preprocessed"]) / dataset.name
        _step(steps, "planning and preprocessing labeled cases (nnU-Net)")
        _plan(preprocessed)
        _step(steps, "preprocessing unlabeled cases")
        report = preprocess_dataset(DATASET_ID, "3d_fullres", PLANS, num_processes=1, show_progress=False)
        if report.failed:
            raise DualCLError(f"Demo cases failed: {report.failed}")
        predictions: dict[str, Path] = {}
        for title, trainer in MODELS.items():
            _step(steps, f"training and predicting with {title}, {config.num_epochs} epochs")
            started = time.monotonic()
            model = train(dataset.name, PLANS, trainer, config, folder / "demo_config.yaml")
            predictions[title] = folder / "predictions" / trainer
            predict(model, dataset / "imagesTs", predictions[title])
            steps.write(f"{title}: {time.monotonic() - started:.0f} s")
        _step(steps, "exporting decoder A as a stock model and predicting with it")
        exported = folder / "exported_model"
        if not exported.exists():
            export_stock_model(model, exported)
        predictions["DualCL, exported"] = folder / "predictions" / "exported"
        predict(exported, dataset / "imagesTs", predictions["DualCL, exported"])
        _step(steps, "comparing")
        table = _compare(folder, dataset, predictions)
        picture = _picture(folder, dataset, predictions)
        steps.write(f"\n{table}\nPicture: {picture}\nTable:   {folder / 'dice.csv'}\nStock model: {exported}")
    return picture


def _step(steps: tqdm, description: str) -> None:
    steps.set_description_str(description)
    steps.update()


@contextmanager
def _own_environment(folder: Path) -> Iterator[None]:
    """nnU-Net's three folders under ``folder``, few processes, all cores for torch unless ``OMP_NUM_THREADS`` says."""
    processes = str(min(2, os.cpu_count() or 1))
    if "OMP_NUM_THREADS" not in os.environ:  # beside other work, threads wait for each other
        torch.set_num_threads(os.cpu_count() or 1)
    with nnunet_folders(folder), variables({"nnUNet_def_n_proc": processes, "nnUNet_n_proc_DA": processes}):
        yield


def _generate(raw: Path) -> Path:
    dataset = raw / f"Dataset{DATASET_ID}_Phantom"
    if not dataset.exists():
        write_phantom_dataset(
            raw, dataset_id=DATASET_ID, labeled=LABELED, validation=VALIDATION, unlabeled=UNLABELED, test=TEST
        )
    return dataset


def _plan(preprocessed: Path) -> None:
    if not (preprocessed / "nnUNetPlans.json").is_file():
        extract_fingerprints([DATASET_ID], num_processes=2, check_dataset_integrity=True, show_progress_bar=False)
        plan_experiments([DATASET_ID])
    if not (preprocessed / SPLITS_FILE).is_file():
        write_small_plans(
            preprocessed, "nnUNetPlans", PLANS, patch_size=PATCH_SIZE, features=FEATURES, spacing_mm=SPACING_MM
        )
        preprocess([DATASET_ID], PLANS, ["3d_fullres"], [2], show_progress_bar=False)
        cases = sorted(path.name.split(".")[0] for path in (preprocessed / "gt_segmentations").iterdir())
        split: Split = {"train": cases[:LABELED], "val": cases[LABELED:]}
        write_splits(preprocessed / SPLITS_FILE, [split])


def _compare(folder: Path, dataset: Path, predictions: dict[str, Path]) -> str:
    """Mean Dice of each model and label as text; every case goes to ``dice.csv``."""
    dataset_json = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    names = {value: name for name, value in dataset_json["labels"].items() if value != 0}
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["model", "case", *names.values()])
    lines = [
        f"{'Dice, mean of ' + str(TEST) + ' test cases':32}"
        + "".join(f"{name:>10}" for name in (*names.values(), "mean"))
    ]
    for title, source in predictions.items():
        scores = dice_per_case(source, dataset / "labelsTs", dataset_json)
        for case, values in scores.items():
            writer.writerow([title, case, *(f"{values[label]:.4f}" for label in names)])
        means = [float(np.nanmean([values[label] for values in scores.values()])) for label in names]
        lines.append(f"{title:32}" + "".join(f"{value:10.3f}" for value in (*means, float(np.mean(means)))))
    write_text(folder / "dice.csv", rows.getvalue())
    return "\n".join(lines)


def _picture(folder: Path, dataset: Path, predictions: dict[str, Path]) -> Path:
    file = sorted((dataset / "labelsTs").iterdir())[0]
    image = sitk.ReadImage(str(dataset / "imagesTs" / file.name.replace(".nii.gz", "_0000.nii.gz")))
    columns = {"reference": file, **{title: source / file.name for title, source in predictions.items()}}
    dataset_json = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    figure = overlay_figure(
        sitk.GetArrayFromImage(image),
        {title: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for title, path in columns.items()},
        label_names={value: name for name, value in dataset_json["labels"].items() if value != 0},
        spacing_mm=image.GetSpacing()[::-1],
        title=f"Phantom test case {file.name.removesuffix('.nii.gz')}",
    )
    path = folder / "overlay.png"
    save_figure(figure, path)
    return path
