"""Scores of a benchmark's predictions once each structure is one piece, whether that helps it or not.

    python benchmarks/largest_component.py FOLDER [--baseline stock] [-o FILE]

FOLDER is the -o of `dualcl benchmark`, with its predictions. Of each structure only the largest connected component is
kept, by nnU-Net's own function, in every job whose predictions are there; the paired differences of each arm to the
baseline are given before and after, over the draws that both have. nnU-Net's postprocessing does so only where Dice
does not fall on validation cases.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import SimpleITK as sitk
from _common import write
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from tqdm import tqdm

from nnunet_dualcl.benchmark.protocol import Protocol
from nnunet_dualcl.benchmark.results import PREDICTIONS_FOLDER, PROTOCOL_FILE, Results, load_results
from nnunet_dualcl.benchmark.summary import judged
from nnunet_dualcl.evaluation.metrics import evaluate_folder
from nnunet_dualcl.evaluation.statistics import pooled_comparison

SHOWN = ("dice", "hd95_mm", "nsd")


def in_one_piece(prediction: Path, target: Path, labels: Iterable[int | Sequence[int]]) -> None:
    """Write the segmentation with the largest component of each label, or region of several, alone."""
    image = sitk.ReadImage(str(prediction))
    array = sitk.GetArrayFromImage(image)
    for label in labels:
        values = label if isinstance(label, int) else tuple(label)
        array = remove_all_but_largest_component_from_segmentation(array, values)
    kept = sitk.GetImageFromArray(array)
    kept.CopyInformation(image)
    sitk.WriteImage(kept, str(target))


def rescored(results: Results, record: Mapping[str, Any], references: Path, tolerance_mm: float) -> pd.DataFrame:
    """Rows as in the job's table of cases, of its predictions in one piece."""
    predictions = results.job_folder(record["name"]) / PREDICTIONS_FOLDER
    ending, labels = record["file_ending"], record["labels"]
    cases = record["split"][record["scored"]]
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            in_one_piece(predictions / f"{case}{ending}", Path(folder) / f"{case}{ending}", labels.values())
        rows = evaluate_folder(references, Path(folder), cases, labels, tolerance_mm=tolerance_mm, file_ending=ending)
    return pd.DataFrame(rows)


def differences(scores: Mapping[tuple[str, int], pd.DataFrame], arm: str, baseline: str) -> dict[str, Any]:
    """Paired, the case's mean over labels, pooled over the draws that both have; ``scores`` by arm and draw."""
    draws = sorted({draw for name, draw in scores if name == arm} & {draw for name, draw in scores if name == baseline})
    found: dict[str, Any] = {"draws": draws}
    both = {
        draw: judged(pd.concat([scores[name, draw].assign(arm=name) for name in (arm, baseline)])) for draw in draws
    }
    for metric in SHOWN if draws else ():
        means = {draw: rows.groupby(["arm", "case"])[metric].mean() for draw, rows in both.items()}
        comparison = asdict(pooled_comparison({draw: (mean[arm], mean[baseline]) for draw, mean in means.items()}))
        found[metric] = {key: round(comparison[key], 4) for key in ("mean_difference", "low", "high")}
    return found


def main() -> None:
    """Score again and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--baseline", default="stock")
    parser.add_argument("-o", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    results = load_results(arguments.folder)
    protocol = Protocol.from_yaml(arguments.folder / PROTOCOL_FILE)
    references = arguments.folder / "nnUNet_raw" / protocol.dataset / protocol.scored_folders[1]
    tables: dict[tuple[str, Any], dict[tuple[str, int], pd.DataFrame]] = {}
    jobs = {}
    for record in tqdm(results.records, desc="Scoring again"):
        name = record["name"]
        if not (results.job_folder(name) / PREDICTIONS_FOLDER).is_dir():
            continue
        scores = {
            "before": results.cases[results.cases["job"] == name],
            "after": rescored(results, record, references, protocol.tolerance_mm),
        }
        for when, table in scores.items():
            tables.setdefault((when, record["labeled"]), {})[record["arm"], record["draw"]] = table
        jobs[name] = {
            when: {metric: round(float(table[metric].mean()), 4) for metric in SHOWN}
            | {"hd95_median_mm": round(float(table["hd95_mm"].median()), 2)}
            for when, table in scores.items()
        }
    compared = [
        {"labeled": labeled, "when": when, "arm": arm, **differences(table, arm, arguments.baseline)}
        for (when, labeled), table in tables.items()
        for arm in sorted({arm for arm, _ in table} - {arguments.baseline})
    ]
    write(
        arguments.o,
        {
            "what": "Means over cases and labels, and paired differences to the baseline, before and after all but the "
            "largest component of each structure is removed.",
            "benchmark": protocol.title,
            "baseline": arguments.baseline,
            "jobs": jobs,
            "differences": compared,
        },
    )


if __name__ == "__main__":
    main()
