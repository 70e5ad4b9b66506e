"""Plans small enough to train on a CPU: for the demo, for tests and for CPU benchmarks."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl.atomic import write_text


def check_small_plans(
    *,
    patch_size: Sequence[int],
    features: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
    batch_size: int = 2,
) -> None:
    """Refuse options of :func:`small_plans` that give no plans to train with, whatever the dataset.

    Raises:
        ValueError: no positive numbers, stages that are too few or do not divide the patch, or a spacing of another
            number of axes.
    """
    for name, values in (("patch_size", patch_size), ("features", features), ("batch_size", [batch_size])):
        if not (_are_positive(values) and all(isinstance(value, int) for value in values)):
            raise ValueError(f"{name} must be of whole numbers above 0; got {values}")
    stages = len(features)
    if len(patch_size) not in (2, 3):
        raise ValueError(f"patch_size must have 2 or 3 axes; got {tuple(patch_size)}")
    if stages < 3:
        raise ValueError(f"{stages} stages are too few for nnU-Net's deep supervision; give at least 3 features")
    if any(size % 2 ** (stages - 1) for size in patch_size):
        raise ValueError(
            f"patch_size {tuple(patch_size)} is not divisible by {2 ** (stages - 1)}, as {stages} stages need"
        )
    if spacing_mm is not None and not (_are_positive(spacing_mm) and len(spacing_mm) == len(patch_size)):
        raise ValueError(f"spacing_mm must be a number above 0 for each axis of patch_size; got {spacing_mm}")


def _are_positive(values: object) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in values
    )


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

    Raises:
        ValueError: as :func:`check_small_plans`.
    """
    check_small_plans(patch_size=patch_size, features=features, spacing_mm=spacing_mm, batch_size=batch_size)
    stages, dimension = len(features), len(patch_size)
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
