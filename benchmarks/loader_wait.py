"""How long a training step waits for its batch: DualCL's paired loader against stock nnU-Net's, same workers.

    python benchmarks/loader_wait.py [--workers 1 2] [--steps 40] [--rounds 3] [-device cpu|cuda] [-o FILE]

Both trainers run their own steps on phantoms, taking turns in each round; the clock runs while a step waits for its
next batch. Workers are filled up before it starts. Stock nnU-Net's loader is also asked between DualCL's steps (on a
batch kept for that): then the loaders alone differ.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _common import write
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer
from nnunet_dualcl.training.environment import nnunet_folders, variable

DATASET_ID = 997
PLANS = "waiting"


def prepare(patch: list[int], features: list[int]) -> Path:
    """Phantoms, planned and preprocessed; returns the preprocessed dataset's folder."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    from nnunet_dualcl.dataset_conversion.phantom import write_phantom_dataset
    from nnunet_dualcl.small_plans import write_small_plans

    raw = write_phantom_dataset(
        Path(os.environ["nnUNet_raw"]), dataset_id=DATASET_ID, labeled=6, validation=0, unlabeled=6, test=0,
        size_zyx=(48, 72, 48),
    )  # fmt: skip
    extract_fingerprints([DATASET_ID], num_processes=1, show_progress_bar=False)
    plan_experiments([DATASET_ID])
    folder = Path(os.environ["nnUNet_preprocessed"]) / raw.name
    write_small_plans(folder, "nnUNetPlans", PLANS, patch_size=tuple(patch), features=tuple(features))
    preprocess([DATASET_ID], PLANS, ["3d_fullres"], [1], show_progress_bar=False)
    return folder


@contextlib.contextmanager
def started(trainer_class: Any, folder: Path, workers: int, device: str) -> Iterator[Any]:
    """A trainer in its first epoch, and its workers' end."""
    plans = json.loads((folder / f"{PLANS}.json").read_text(encoding="utf-8"))
    plans["continue_training"] = False
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    with variable("nnUNet_n_proc_DA", str(workers)), contextlib.redirect_stdout(io.StringIO()):
        trainer = trainer_class(plans, "3d_fullres", "all", dataset_json, torch.device(device))
        trainer.on_train_start()
    try:
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        yield trainer
    finally:
        for augmenter in (trainer.dataloader_train, trainer.dataloader_val):
            augmenter._finish()


def wait(loader: Any, step: Callable[[Any], Any], steps: int) -> tuple[list[float], float]:
    """Seconds that each step waits for its batch, and seconds that a step takes on average without that."""
    for _ in range(3):
        step(next(loader))
    waited, worked = [], 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(loader)
        arrived = time.perf_counter()
        step(batch)  # nnU-Net reads the loss back, so the device has finished
        waited.append(arrived - asked)
        worked += time.perf_counter() - arrived
    return waited, worked / steps


def one_round(folder: Path, workers: int, arguments: argparse.Namespace) -> dict[str, tuple[list[float], float]]:
    """What each waits, one after the other."""
    waits = {}
    with started(nnUNetTrainer, folder, workers, arguments.device) as trainer:
        waits["stock"] = wait(trainer.dataloader_train, trainer.train_step, arguments.steps)
    with started(DualCLTrainer, folder, workers, arguments.device) as trainer:
        waits["dualcl"] = wait(trainer.dataloader_train, trainer.train_step, arguments.steps)
        kept = next(trainer.dataloader_train)
    with started(nnUNetTrainer, folder, workers, arguments.device) as stock:
        waits["stock, DualCL's step"] = wait(
            stock.dataloader_train, lambda _: trainer.train_step({**kept}), arguments.steps
        )
    return waits


def summary(rounds: list[tuple[list[float], float]]) -> dict[str, float]:
    """The median step's wait, and medians over rounds of the mean wait, of the step and of the wait's share of it."""
    means = [(statistics.mean(waited), step) for waited, step in rounds]
    return {
        "median_wait_s": statistics.median(seconds for waited, _ in rounds for seconds in waited),
        "mean_wait_s": statistics.median(wait for wait, _ in means),
        "step_s": statistics.median(step for _, step in means),
        "share": statistics.median(wait / (wait + step) for wait, step in means),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patch", type=int, nargs=3, default=[32, 48, 32])
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-o", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, nnunet_folders(Path(place)):
        os.environ.pop("DUALCL_CONFIG", None)
        with contextlib.redirect_stdout(io.StringIO()):
            folder = prepare(arguments.patch, arguments.features)
        for workers in arguments.workers:
            rounds = [one_round(folder, workers, arguments) for _ in range(arguments.rounds)]
            result[f"{workers} workers"] = {name: summary([row[name] for row in rounds]) for name in rounds[0]}
    setting = {key: value for key, value in vars(arguments).items() if key != "o"}
    write(arguments.o, {"waiting": result, "setting": setting})


if __name__ == "__main__":
    main()
