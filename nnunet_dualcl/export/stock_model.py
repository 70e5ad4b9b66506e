"""Write one of the trained networks as a plain ``nnUNetTrainer`` model, which runs without this package."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nnunetv2
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl import __version__
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import PROVENANCE_FILE, STOCK_TRAINER
from nnunet_dualcl.model_folder import check_folds, trained_checkpoints
from nnunet_dualcl.networks import Network, check_layout, has_network_b, other_family, weights_of

_MODEL_FILES = ("dataset.json", "plans.json", "dataset_fingerprint.json")
_ARCHIVE_DATE = (1980, 1, 1, 0, 0, 0)
"""Of all files in an archive, the oldest that zip knows: the same model gives the same archive."""


def export_stock_model(
    model_folder: Path,
    target: Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    network: Network = "a",
) -> list[str]:
    """Copy a trained model folder, reduced to one network that nnU-Net builds, under the stock trainer's name.

    The result has what nnU-Net's predictor reads and ``dualcl_provenance.json`` with trainer, versions and
    configuration of each fold. Weights are copied bit for bit. The optimizer state is left behind.

    Args:
        model_folder: ``nnUNet_results/DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION``.
        target: folder to make, or, if its name ends in ``.zip``, archive for
            ``nnUNetv2_install_pretrained_model_from_zip``; must not exist.
        folds: folds to export; None means all that have the checkpoint.
        checkpoint_name: file to read in each fold's folder; always written as ``checkpoint_final.pth``.
        network: ``a``: encoder and decoder A, the network of the plans. ``b``: of two whole networks the second one;
            its plans differ in the architecture and have a name of their own, :func:`plans_b`.

    Returns:
        Names of the exported fold folders.

    Raises:
        DualCLError: nothing to export, a checkpoint of another trainer or network, no network B, folds that do not go
            together, or ``target`` exists.
    """
    if target.exists():
        raise DualCLError(f"{target} exists. Export under a new name, or move the old one away.")
    sources = trained_checkpoints(model_folder, folds, checkpoint_name)
    check_folds(model_folder, sources)
    place = _installed_place(model_folder, network) if is_archive(target) else None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.partial-") as partial:
        folder = Path(partial) / "model"
        provenance: dict[str, Any] = {
            "source": model_folder.name,
            "network": network.upper(),
            "nnunet_dualcl": __version__,
            "nnunetv2": getattr(nnunetv2, "__version__", None) or _version("nnunetv2"),
            "torch": torch.__version__,
            "folds": {},
        }
        for path in sources:
            checkpoint = torch.load(path, map_location="cpu", weights_only=False)
            stock = stock_checkpoint(checkpoint, path, network)
            fold_folder = folder / path.parent.name
            fold_folder.mkdir(parents=True)
            torch.save(stock, fold_folder / "checkpoint_final.pth")
            provenance["folds"][path.parent.name] = {
                "trainer": checkpoint["trainer_name"],
                "checkpoint": checkpoint_name,
                "epochs_trained": checkpoint["current_epoch"],
                "config": checkpoint["dualcl"]["config"],
            }
        for name in _MODEL_FILES:
            if (model_folder / name).is_file():
                shutil.copyfile(model_folder / name, folder / name)
        if network == "b":
            plans = json.loads((model_folder / "plans.json").read_text(encoding="utf-8"))
            plans = plans_b(plans, checkpoint["init_args"]["configuration"])
            (folder / "plans.json").write_text(json.dumps(plans, indent=4) + "\n", encoding="utf-8")
        (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        if place is not None:
            _pack(folder, Path(partial) / "model.zip", place)
            folder = Path(partial) / "model.zip"
        if target.exists():  # since the check above; a file would be replaced without a word
            raise DualCLError(f"{target} appeared during the export, which is left out. Export under a new name.")
        folder.rename(target)
    return [path.parent.name for path in sources]


def is_archive(target: Path) -> bool:
    """Whether an export of this name is a zip archive rather than a folder."""
    return target.suffix.lower() == ".zip"


def name_of_plans_b(name: str) -> str:
    """Network B's plans, for plans of that name: both models may lie below one nnUNet_results."""
    return f"{name}NetworkB"


def plans_b(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """The plans from which nnU-Net builds network B of two whole networks, where ``plans`` are those of A.

    Args:
        plans: content of ``plans.json``, left untouched.
        configuration: the one whose architecture changes.
    """
    architecture = PlansManager(dict(plans)).get_configuration(configuration).configuration["architecture"]
    of_b = {**plans["configurations"][configuration], "architecture": other_family(architecture)}
    return {
        **plans,
        "plans_name": name_of_plans_b(plans["plans_name"]),
        "configurations": {**plans["configurations"], configuration: of_b},
    }


def _installed_place(model_folder: Path, network: Network) -> Path:
    """Where a stock model of this dataset, plans and configuration lies below nnUNet_results."""
    folder = model_folder.absolute()
    _, separator, plans_and_configuration = folder.name.partition("__")
    if not separator or not folder.parent.name.startswith("Dataset"):
        raise DualCLError(
            f"{model_folder}: an archive for nnU-Net says which dataset, plans and configuration it is of, so the "
            "folder must be named DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION. Export into a folder, or rename it."
        )
    plans, separator, configuration = plans_and_configuration.partition("__")
    plans = plans if network == "a" else name_of_plans_b(plans)
    return Path(folder.parent.name) / f"{STOCK_TRAINER}__{plans}{separator}{configuration}"


def _pack(folder: Path, archive: Path, place: Path) -> None:
    """Write the files of ``folder`` into a zip archive, where they lie under ``place``, a path below nnUNet_results."""
    with zipfile.ZipFile(archive, "w") as packed:  # not compressed: weights hardly shrink
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo((place / path.relative_to(folder)).as_posix(), _ARCHIVE_DATE)
            entry.external_attr = 0o644 << 16  # else unzip gives files that nobody but their owner reads
            with path.open("rb") as source, packed.open(entry, "w", force_zip64=True) as copy:
                shutil.copyfileobj(source, copy)


def stock_checkpoint(checkpoint: dict[str, Any], path: Path, network: Network = "a") -> dict[str, Any]:
    """The part of a checkpoint that nnU-Net's predictor reads, with stock weights and the stock trainer's name."""
    if "dualcl" not in checkpoint:
        raise DualCLError(
            f"{path} was written by {checkpoint.get('trainer_name')}, not by a trainer of this package; "
            "there is nothing to export."
        )
    weights = checkpoint["network_weights"]
    check_layout(weights, path)
    init_args = checkpoint["init_args"]
    if network == "b":
        if not has_network_b(weights):
            raise DualCLError(
                f"{path}: decoder B of {checkpoint['trainer_name']} interpolates, which no plans of nnU-Net describe. "
                "Export without --network b, or train two networks with -tr DualCLTwoNetTrainer."
            )
        init_args = {**init_args, "plans": plans_b(init_args["plans"], init_args["configuration"])}
    stock = weights_of(weights, network)
    _check_network(stock, init_args, f"{path}: encoder and decoder {network.upper()}")
    return {
        "network_weights": stock,
        "init_args": init_args,
        "trainer_name": STOCK_TRAINER,
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
        "current_epoch": checkpoint["current_epoch"],
    }


def _check_network(weights: dict[str, Any], init_args: dict[str, Any], what: str) -> None:
    """Refuse weights that do not fit what nnU-Net builds from the plans: a trainer with a network of its own."""
    plans, dataset_json = PlansManager(init_args["plans"]), init_args["dataset_json"]
    configuration = plans.get_configuration(init_args["configuration"])
    network = nnUNetTrainer.build_network_architecture(
        plans,
        configuration,
        determine_num_input_channels(plans, configuration, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise DualCLError(
            f"{what} are not the network that nnU-Net builds from the plans, so it could not "
            "load them. Predict where this package and the trainer are installed: dualcl predict."
        ) from None


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
