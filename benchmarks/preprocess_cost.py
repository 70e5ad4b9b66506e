"""Seconds per unlabeled case of ``dualcl preprocess`` against nnU-Net's own per labeled case, on the same images.

    python benchmarks/preprocess_cost.py [--cases 24] [-np 2] [--rounds 4] [--size 48 96 112] [-o FILE]

Phantoms are written twice: as labeled cases and, without labels, as unlabeled ones. The two commands take turns, the
first one changing from round to round. Both start worker processes, which costs the same once a call; ``--cases``
spreads it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import write

from nnunet_dualcl.training.environment import nnunet_folders

DATASET_ID = 998


def prepare(cases: int, processes: int, size_zyx: tuple[int, int, int]) -> Path:
    """Raw dataset and plans; returns the preprocessed dataset's folder."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    from nnunet_dualcl.dataset_conversion.phantom import write_phantom_dataset

    raw = write_phantom_dataset(
        Path(os.environ["nnUNet_raw"]), dataset_id=DATASET_ID, labeled=cases, validation=0, unlabeled=0, test=0,
        size_zyx=size_zyx,
    )  # fmt: skip
    (raw / "imagesUnlabeled").mkdir(exist_ok=True)
    for image in (raw / "imagesTr").iterdir():
        shutil.copyfile(image, raw / "imagesUnlabeled" / f"u_{image.name}")
    extract_fingerprints([DATASET_ID], num_processes=processes, show_progress_bar=False)
    plan_experiments([DATASET_ID])
    return Path(os.environ["nnUNet_preprocessed"]) / raw.name


def measure(cases: int, processes: int, rounds: int) -> dict[str, Any]:
    """Seconds per case of both, and their ratio within rounds; wall time, and processor time, which load spares."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

    from nnunet_dualcl.preprocessing import preprocess_dataset

    def stock() -> None:
        preprocess([DATASET_ID], "nnUNetPlans", ["3d_fullres"], [processes], show_progress_bar=False)

    def dualcl() -> None:
        report = preprocess_dataset(DATASET_ID, "3d_fullres", num_processes=processes, force=True, show_progress=False)
        assert len(report.done) == cases, report

    rows = []
    for number in range(rounds):
        turns = [("stock", stock), ("dualcl", dualcl)]
        row = {}
        for name, run in turns if number % 2 == 0 else turns[::-1]:
            before = clocks()
            run()
            row[name] = [(after - start) / cases for start, after in zip(before, clocks(), strict=True)]
        rows.append(row)
    result: dict[str, Any] = {"seconds_per_case": {}, "ratios": {}}
    for index, clock in enumerate(("wall", "processor")):
        result["seconds_per_case"][clock] = {
            name: statistics.median(row[name][index] for row in rows) for name in ("stock", "dualcl")
        }
        result["ratios"][f"dualcl / stock, {clock}"] = statistics.median(
            row["dualcl"][index] / row["stock"][index] for row in rows
        )
    return {**result, "rounds": rows}


def clocks() -> tuple[float, float]:
    """Wall and processor seconds, the latter of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("-np", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=3, default=[48, 96, 112], help="voxels of a scan (z, y, x)")
    parser.add_argument("-o", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, nnunet_folders(Path(folder)):
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(arguments.cases, arguments.np, tuple(arguments.size))
            result = measure(arguments.cases, arguments.np, arguments.rounds)
    write(arguments.o, {**result, "setting": json.loads(json.dumps(vars(arguments), default=str))})


if __name__ == "__main__":
    main()
