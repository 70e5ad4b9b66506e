"""nnU-Net's plans and description of a dataset, or a message that says how to make or mend them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl.errors import DualCLError


def read_json(path: Path) -> dict[str, Any]:
    """Content of a file that people edit, such as ``dataset.json``.

    Raises:
        DualCLError: it is no valid JSON, with the place.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise DualCLError(f"{path} is no valid JSON: {error}. Mend it there.") from None
    return content


def read_plans(preprocessed_dataset_folder: Path, plans_name: str) -> dict[str, Any]:
    """Content of ``PLANS.json``.

    Raises:
        DualCLError: no such file, naming those that are there, or no valid JSON.
    """
    path = preprocessed_dataset_folder / f"{plans_name}.json"
    if not path.is_file():
        found = [other.stem for other in sorted(preprocessed_dataset_folder.glob("[!.]*.json")) if _is_plans(other)]
        raise DualCLError(
            f"No plans at {path}; found {', '.join(found) or 'none'}. "
            "Run nnUNetv2_plan_and_preprocess first, or name the plans with -p."
        )
    return read_json(path)


def _is_plans(path: Path) -> bool:
    try:
        return "configurations" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def check_configuration(plans: Mapping[str, Any], configuration: str) -> None:
    """Refuse a configuration that the plans do not hold.

    Raises:
        DualCLError: naming those that they hold.
    """
    if configuration not in plans["configurations"]:
        raise DualCLError(
            f"The plans {plans['plans_name']} hold no configuration '{configuration}'. "
            f"Choose one of: {', '.join(plans['configurations'])}."
        )


def preprocess_command(dataset: str, plans_name: str, configuration: str) -> str:
    """nnU-Net's command that makes the labeled cases of these plans."""
    return f"nnUNetv2_preprocess -d {dataset} -plans_name {plans_name} -c {configuration}"


def decisive_values(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in the plans that decides what a preprocessed case looks like, as JSON gives it back.

    The patch size is not among it: plans of several presets share one folder of labeled cases, as they do in nnU-Net.
    """
    decisive = {
        "reader": plans["image_reader_writer"],  # some turn the axes
        "spacing": configuration["spacing"],
        "normalization": [configuration["normalization_schemes"], configuration["use_mask_for_norm"]],
        "preprocessor": configuration["preprocessor_name"],
        "resampling": {key: configuration[key] for key in sorted(configuration) if key.startswith("resampling_fn")},
        "transposition": plans["transpose_forward"],
        "intensities": plans["foreground_intensity_properties_per_channel"],
    }
    plain: dict[str, Any] = json.loads(json.dumps(decisive))
    return plain


def refuse_other_meaning(
    checkpoint: Mapping[str, Any], plans: Mapping[str, Any], dataset_json: Mapping[str, Any], where: str
) -> None:
    """Refuse a network for data that are not prepared, or labels that are not numbered, as in its training.

    Batch and patch size may differ: the weights mean the same.

    Args:
        checkpoint: as nnU-Net stores it, with ``init_args``.
        plans: those that are to be used with it.
        dataset_json: the one that is to be used with it.
        where: the checkpoint's file.

    Raises:
        DualCLError: naming what differs.
    """
    trained = checkpoint["init_args"]
    name = trained["configuration"]
    check_configuration(plans, name)
    before = _meaning(trained["plans"], trained["dataset_json"], name)
    now = _meaning(plans, dataset_json, name)
    different = [key for key in now if before[key] != now[key]]
    if different:
        raise DualCLError(
            f"{where} was trained with other plans or labels than {plans['plans_name']} and dataset.json hold now; "
            f"they differ in {', '.join(different)}. Put those of its training back (they are in the checkpoint, under "
            "'init_args'), or move the folder of that fold away and train it anew."
        )


def _meaning(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    chosen = PlansManager(dict(plans)).get_configuration(configuration).configuration  # with what it inherits
    labels = {key: dataset_json.get(key) for key in ("labels", "regions_class_order")}
    channels = dataset_json.get("channel_names", dataset_json.get("modality"))
    plain: dict[str, Any] = json.loads(
        json.dumps({"architecture": chosen.get("architecture"), **labels, "channels": channels})
    )
    return {**decisive_values(plans, chosen), **plain}
