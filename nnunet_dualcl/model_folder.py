"""What a trained model folder holds, and whether its folds can be used together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl.data.plans import check_configuration, read_json
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import is_fold
from nnunet_dualcl.networks import has_network_b
from nnunet_dualcl.preprocessing.record import decisive_values


def trained_checkpoints(model_folder: Path, folds: Sequence[int | str] | None, checkpoint_name: str) -> list[Path]:
    """Checkpoints of a trained model folder, of the folds given or of all that have one.

    Raises:
        DualCLError: no such model, or no such checkpoint.
    """
    if not (model_folder / "plans.json").is_file():
        raise DualCLError(f"{model_folder} holds no trained model (no plans.json). Check -d, -c, -p and -tr.")
    if folds is None:
        paths = [path for path in sorted(model_folder.glob(f"fold_*/{checkpoint_name}")) if is_fold(path.parent.name)]
        if not paths:
            raise DualCLError(
                f"No {checkpoint_name} in any fold of {model_folder}. Train to the end, or name one with -chk."
            )
        return paths
    paths = [model_folder / f"fold_{fold}" / checkpoint_name for fold in dict.fromkeys(map(str, folds))]
    for path in paths:
        if not path.is_file():
            raise DualCLError(f"{path} does not exist. Train this fold to the end, or name another with -f or -chk.")
    return paths


def check_folds(model_folder: Path, checkpoints: Sequence[Path]) -> None:
    """Refuse folds that nnU-Net would predict with as if they were alike: it takes plans, labels and mirror axes once.

    Weights are not read.

    Args:
        model_folder: with ``plans.json`` and ``dataset.json``, which the last training wrote.
        checkpoints: of its folds.

    Raises:
        DualCLError: a fold trained with other plans, labels or mirror axes, or a file that is no checkpoint.
    """
    plans, dataset_json = (read_json(model_folder / name) for name in ("plans.json", "dataset.json"))
    axes = {}
    for path in checkpoints:
        checkpoint = read_checkpoint(path)
        refuse_other_meaning(checkpoint, plans, dataset_json, path, model_folder / "plans.json")
        mirrored = checkpoint.get("inference_allowed_mirroring_axes")
        axes[path] = None if mirrored is None else tuple(mirrored)
    first = next(iter(axes.values()), None)
    other = [path for path in axes if axes[path] != first]
    if other:
        raise DualCLError(
            f"{other[0]} was trained with mirroring of axes {axes[other[0]]}, {checkpoints[0]} with {first}; nnU-Net "
            "predicts all folds with the axes of the first. Use one of them at a time, with -f."
        )


def averaged(checkpoint: Path) -> Literal["decoder", "network"] | None:
    """What validation of this training averaged two of; an export holds one. None where it has decoder A alone."""
    content = read_checkpoint(checkpoint)
    if content["dualcl"]["config"]["prediction"] == "a":
        return None
    return "network" if has_network_b(content["network_weights"]) else "decoder"


def refuse_other_meaning(
    checkpoint: Mapping[str, Any],
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    checkpoint_file: Path,
    plans_file: Path,
) -> None:
    """Refuse a network for data that are not prepared, or labels that are not numbered, as in its training.

    Batch and patch size may differ, and labels and channels may get other names: the weights mean the same.

    Args:
        checkpoint: as nnU-Net stores it, with ``init_args``.
        plans: those that are to be used with it.
        dataset_json: the one that is to be used with it.
        checkpoint_file: where the checkpoint is from.
        plans_file: where the plans are from, with ``dataset.json`` beside it.

    Raises:
        DualCLError: naming what differs.
    """
    trained = checkpoint["init_args"]
    name = trained["configuration"]
    check_configuration(plans, name)
    before, now = _meaning(trained["plans"], trained["dataset_json"], name), _meaning(plans, dataset_json, name)
    different = [key for key in now if before[key] != now[key]]
    for key, old, new in zip(
        ("labels", "channels"), _numbered(trained["dataset_json"]), _numbered(dataset_json), strict=True
    ):
        if any(old[name] != new[name] for name in old.keys() & new.keys()):
            different.append(f"numbers of {key}")
    if different:
        raise DualCLError(
            f"{checkpoint_file} was trained with other plans or labels than {plans_file} and the dataset.json beside "
            f"it hold now; they differ in {', '.join(different)}. Put those of its training back (the checkpoint has "
            "them, under 'init_args'), or move the folder of that fold away and train it anew."
        )


def _meaning(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """What decides which voxels a network gets and which structures its outputs are."""
    manager = PlansManager(dict(plans))
    chosen = manager.get_configuration(configuration).configuration  # with what it inherits
    labels = manager.get_label_manager(dict(dataset_json))
    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                "architecture": chosen.get("architecture"),
                "labels": labels.foreground_regions if labels.has_regions else labels.foreground_labels,
                "regions_class_order": labels.regions_class_order if labels.has_regions else None,
                "ignore label": labels.ignore_label,
                "number of channels": len(_channels(dataset_json)),
            },
            default=int,  # numpy's
        )
    )
    return {**decisive_values(plans, chosen), **plain}


def _channels(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    channels: dict[str, Any] = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    return channels


def _numbered(dataset_json: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Labels and channels, name -> number. Channels may share a name, which chooses their normalization; these are not
    among them."""
    channels = _channels(dataset_json)
    names = [str(name) for name in channels.values()]
    numbers = {str(name): str(number) for number, name in channels.items() if names.count(str(name)) == 1}
    return dict(dataset_json["labels"]), numbers


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of nnU-Net's, on the CPU and mapped into memory.

    Raises:
        DualCLError: it is damaged, or no checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception:  # torch raises many kinds, for a file that is cut off OSError, too
        checkpoint = None
    if not isinstance(checkpoint, dict) or "init_args" not in checkpoint:
        raise DualCLError(
            f"{path} cannot be read: it is cut off, damaged or no checkpoint. Copy it again, or move it away and take "
            "another one (-chk in prediction; --c takes checkpoint_final, then _latest, then _best)."
        )
    return checkpoint
