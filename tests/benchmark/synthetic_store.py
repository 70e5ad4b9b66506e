"""A small result store, written as the benchmark's jobs write it: 3 arms, 2 draws, lopsided cases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

SHAPE = (6, 10, 14)
SPACING_XYZ = (0.8, 1.0, 2.5)
LABELS = {"background": 0, "head": 1, "tail": 2}
TEST = ("001", "002", "NA")
"""Names that a careless reader turns into numbers and gaps."""

HEAD_DICE: dict[tuple[str, int | str, int], tuple[float, float, float]] = {
    ("stock", 3, 0): (0.60, 0.70, 0.80),
    ("stock", 3, 1): (0.62, 0.66, 0.76),
    ("teacher", 3, 0): (0.64, 0.72, 0.82),
    ("teacher", 3, 1): (0.60, 0.70, 0.72),
    ("dualcl", 3, 0): (0.70, 0.75, 0.80),
    ("dualcl", 3, 1): (0.64, 0.70, 0.70),
    ("stock", "all", 0): (0.90, 0.92, 0.94),
}
"""Dice of the head by arm, number of labeled cases and draw; the tail has 0.1 less, and is in neither map of NA."""


def job_name(arm: str, labeled: int | str, draw: int) -> str:
    return f"{arm}_{labeled}_{draw}"


def write_store(folder: Path, scores: Mapping[tuple[str, int | str, int], tuple[float, ...]] = HEAD_DICE) -> Path:
    """Write every job; returns ``folder``."""
    for (arm, labeled, draw), head in scores.items():
        write_job(folder, arm, labeled, draw, case_rows(head))
    return folder


def case_rows(head: tuple[float, ...]) -> list[dict[str, Any]]:
    rows = []
    for case, dice in zip(TEST, head, strict=True):
        for label, value in (("head", dice), ("tail", dice - 0.1)):
            scores = {"dice": value, "jaccard": value / (2 - value), "hd95_mm": 10 * (1 - value), "asd_mm": 1 - value}
            missing = case == "NA" and label == "tail"
            rows.append({"case": case, "label": label, **(dict.fromkeys([*scores, "nsd"], np.nan) if missing
                         else {**scores, "nsd": value})})  # fmt: skip
    return rows


def write_job(
    folder: Path, arm: str, labeled: int | str, draw: int, rows: list[dict[str, Any]], **changes: Any
) -> Path:
    name = job_name(arm, labeled, draw)
    job = folder / "jobs" / name
    job.mkdir(parents=True)
    record = {
        "name": name, "arm": arm, "labeled": labeled, "draw": draw, "seed": 0, "steps": 500, "trainer": f"{arm}Trainer",
        "plans": "smallPlans", "dataset": "Dataset777_Toy", "command": f"dualcl benchmark --arm {arm} & more",
        "versions": {"torch": "2.14.1", "nnunetv2": "2.8.1"}, "commit": "abc1234", "hardware": "2 CPU cores",
        "started": "2026-11-24T10:00:00", "wall_seconds": 100.0 + 20 * draw, "peak_memory_mib": 200.0 + draw,
        "samples_per_second": 8.0, "labels": LABELS, "split": split(labeled, draw), **changes,
    }  # fmt: skip
    pd.DataFrame(rows).to_csv(job / "cases.csv", index=False)
    epochs = np.arange(4)
    curves = {"epoch": epochs, "train_loss": -epochs / 4, "val_loss": -epochs / 5, "ema_fg_dice": epochs / 5}
    pd.DataFrame(curves).to_csv(job / "curves.csv", index=False)
    (job / "job.json").write_text(json.dumps(record), encoding="utf-8")
    return job


def split(labeled: int | str, draw: int) -> dict[str, list[str]]:
    pool = [f"tr_{number}" for number in range(8)]
    train = pool if labeled == "all" else pool[draw : draw + int(labeled)]
    return {"train": train, "val": ["val_0"], "unlabeled": [c for c in pool if c not in train], "test": list(TEST)}


def write_volumes(store: Path) -> tuple[Path, Path]:
    """Images, references and predictions of all jobs; returns the folders of images and references."""
    images, references = store.parent / "imagesTs", store.parent / "labelsTs"
    for number, case in enumerate(TEST):
        truth = segmentation(number)
        _write(images / f"{case}_0000.nii.gz", np.random.default_rng(number).normal(size=SHAPE))
        _write(references / f"{case}.nii.gz", truth)
        for shift, job in enumerate(sorted((store / "jobs").iterdir())):
            _write(job / "predictions" / f"{case}.nii.gz", np.roll(truth, shift, axis=2))
    return images, references


def segmentation(number: int) -> np.ndarray:
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[1:4, 2:6, 2 + number : 7] = 1
    array[2:5, 6:8, 3:6] = 2 if number < 2 else 0
    return array


def _write(file: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_XYZ)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))
