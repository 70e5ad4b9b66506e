"""Plans small enough to train on a CPU: for the demo, for tests and for CPU benchmarks."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl.atomic import write_text


def small_plans(
    plans: dict[str, Any],
    name: str,
    *,
    patch_size: Sequence[int],
    features: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
    batch_size: int = 2,
    configuration: str = "3d_fullres",
) -> dict[str, Any]:
    """Plans of one configuration, shrunk: fewer and narrower stages, a smaller patch, coarser spacing.

    Args:
        plans: plans that nnU-Net made; left untouched.
        name: name of the new plans.
        patch_size: voxels, slowest axis first; divisible by 2 once for each stage after the first.
        features: channels of each stage; their number is the number of stages, at least 3 (with fewer, nnU-Net's
            deep supervision gives its only output no weight, and the loss is NaN).
        spacing_mm: target spacing, slowest axis first; None keeps nnU-Net's.
        batch_size: labeled patches a step.
        configuration: the one to shrink; the new plans hold no other.
    """
    stages, dimension = len(features), len(patch_size)
    if stages < 3:
        raise ValueError(f"{stages} stages are too few for nnU-Net's deep supervision; give at least 3 features")
    indivisible = [size for size in patch_size if size % 2 ** (stages - 1)]
    if indivisible:
        raise ValueError(
            f"patch_size {tuple(patch_size)} is not divisible by {2 ** (stages - 1)}, as {stages} stages need"
        )
    small = copy.deepcopy(plans)
    chosen = PlansManager(small).get_configuration(configuration).configuration  # with what it inherits
    for reference in ("inherits_from", "next_stage"):  # to configurations that the new plans do not hold
        chosen.pop(reference, None)
    chosen.update(
        data_identifier=f"{name}_{configuration}",
        batch_size=batch_size,
        patch_size=list(patch_size),
        spacing=list(spacing_mm) if spacing_mm is not None else chosen["spacing"],
    )
    arguments = chosen["architecture"]["arch_kwargs"]
    arguments.update(
        n_stages=stages,
        features_per_stage=list(features),
        kernel_sizes=[[3] * dimension] * stages,
        strides=[[1] * dimension] + [[2] * dimension] * (stages - 1),
        n_conv_per_stage_decoder=[1] * (stages - 1),
    )
    for blocks in ("n_conv_per_stage", "n_blocks_per_stage"):
        if blocks in arguments:
            arguments[blocks] = [1] * stages
    small["configurations"] = {configuration: chosen}
    small["plans_name"] = name
    return small


def write_small_plans(preprocessed_dataset_folder: Path, source: str, name: str, **options: Any) -> Path:
    """Read ``source``.json of a preprocessed dataset, shrink it, write ``name``.json beside it."""
    plans = json.loads((preprocessed_dataset_folder / f"{source}.json").read_text(encoding="utf-8"))
    path = preprocessed_dataset_folder / f"{name}.json"
    write_text(path, json.dumps(small_plans(plans, name, **options), indent=2) + "\n")
    return path
