"""How good are labels of unlabeled patches: predicted on the augmented patch, or before augmentation and carried over.

    python benchmarks/teacher_view.py FOLDER JOB [JOB ...] [--patches 2000] [-o FILE]

FOLDER is a benchmark's, JOB a finished training in it (dualcl_5_0). Its final network predicts patches of the cases
that were unlabeled to it, whose truth the benchmark knows, as nnU-Net's loader cuts them; once without rotation and
scaling, and once with both in every patch. Dice is pooled over the voxels that the plain view shows, mean over labels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from _common import write
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import tqdm

from nnunet_dualcl import runs
from nnunet_dualcl.data.random_stream import seed_global_streams
from nnunet_dualcl.data.two_views import PlainView, is_photometric
from nnunet_dualcl.training.environment import nnunet_folders, variable
from nnunet_dualcl.training.pseudo_labels import carried_over


def network_of(job: Path) -> torch.nn.Module:
    """The job's final network, without deep supervision."""
    (fold,) = (job / "model").glob("*/*/fold_*")
    predictor = runs.predictor(fold.parent, (int(fold.name.removeprefix("fold_")),), "cpu")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    return predictor.network.eval()


def loader_of(folder: Path, job: dict[str, Any], *, moved: bool) -> Any:
    """nnU-Net's loader over the job's unlabeled cases with their truth; two views a patch, equal intensities."""
    preprocessed = folder / "nnUNet_preprocessed" / job["dataset"]
    plans, dataset_json = (
        json.loads((preprocessed / name).read_text(encoding="utf-8"))
        for name in (f"{job['plans']}.json", "dataset.json")
    )
    split = job["split"]
    with contextlib.redirect_stdout(io.StringIO()), variable("nnUNet_n_proc_DA", "0"):
        trainer = nnUNetTrainer(
            {**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu")
        )
        trainer.do_split = lambda: (split["unlabeled"], split["val"])
        trainer.batch_size, trainer.oversample_foreground_percent = 2, 0.0
        loader = trainer.get_dataloaders()[0].data_loader
    transforms = [each for each in loader.transforms.transforms if not is_photometric(each)]
    for transform in transforms:
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = transform.p_scaling = float(moved)
    loader.transforms = PlainView(ComposeTransforms(transforms), loader.final_patch_size)
    return loader


@torch.no_grad()
def dice_of(network: torch.nn.Module, loader: Any, patches: int, num_labels: int) -> dict[str, float]:
    """Dice of both ways of labeling, and the share of voxels and of foreground that the plain view shows."""
    counts = {name: torch.zeros(3, num_labels) for name in ("augmented", "carried_over")}
    seen_voxels, seen_foreground = [], torch.zeros(2)
    seed_global_streams(0)
    for _ in tqdm(range(patches // 2), desc="Patches, two at a time"):
        batch = next(loader)
        channels = (batch["data"].shape[1] - 3) // 2
        plain, augmented, places = batch["data"].split((channels, channels, 3), 1)
        truth = batch["target"][0][:, 0]
        carried = carried_over(network(plain), places)
        seen = ~carried[:, 0].isnan()
        seen_voxels.append(seen.float().mean())
        seen_foreground += torch.stack(((seen & (truth > 0)).sum(), (truth > 0).sum()))
        for name, logits in (("augmented", network(augmented)), ("carried_over", carried)):
            labels = logits.argmax(1)
            for label in range(1, num_labels + 1):
                ours, theirs = (labels == label)[seen], (truth == label)[seen]
                counts[name][:, label - 1] += torch.stack(((ours & theirs).sum(), ours.sum(), theirs.sum()))
    return {
        **{f"dice_{name}": round(float((2 * n[0] / (n[1] + n[2])).mean()), 4) for name, n in counts.items()},
        "seen_voxels": round(float(torch.stack(seen_voxels).mean()), 4),
        "seen_foreground": round(float(seen_foreground[0] / seen_foreground[1]), 4),
    }


def main() -> None:
    """Measure and print, write where a path is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", nargs="+", metavar="JOB")
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as results, nnunet_folders(arguments.folder.resolve(), results=Path(results)):
        for name in arguments.jobs:
            own = arguments.folder / "jobs" / name
            job = json.loads((own / "job.json").read_text(encoding="utf-8"))
            network = network_of(own)
            for moved in (False, True):
                loader = loader_of(arguments.folder.resolve(), job, moved=moved)
                found = dice_of(network, loader, arguments.patches, len(job["labels"]))
                rows.append({"job": name, "commit": job["commit"], "rotated_and_scaled": moved, **found})
    write(arguments.output, {"patches": arguments.patches, "rows": rows})


if __name__ == "__main__":
    main()
