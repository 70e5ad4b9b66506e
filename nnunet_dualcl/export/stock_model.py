"""Write a trained model as a plain ``nnUNetTrainer`` model that runs where this package was never installed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nnunetv2
import torch

from nnunet_dualcl import __version__
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.layout import PROVENANCE_FILE, STOCK_TRAINER
from nnunet_dualcl.networks import check_layout, stock_weights

_MODEL_FILES = ("dataset.json", "plans.json", "dataset_fingerprint.json")


def export_stock_model(
    model_folder: Path,
    target: Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
) -> list[str]:
    """Write each decoder of a trained model as a fold of a stock one; averaging folds is nnU-Net's own averaging.

    Decoder A of a fold keeps the fold's name. Decoder B, where validation and prediction averaged both and they share
    an encoder, becomes a fold of its own, numbered after all others. The result has what nnU-Net's predictor reads and
    ``dualcl_provenance.json`` with source, decoder, trainer, versions and configuration of each fold. The optimizer
    state is left behind.

    Args:
        model_folder: ``nnUNet_results/DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION``.
        target: folder to make; must not exist.
        folds: folds to export; None means all that have the checkpoint.
        checkpoint_name: file to read in each fold's folder; always written as ``checkpoint_final.pth``.

    Returns:
        The exported folds, as nnU-Net's ``-f`` takes them: of decoder A first, then of decoder B.

    Raises:
        DualCLError: nothing to export, a checkpoint of another trainer, or ``target`` exists.
    """
    if target.exists():
        raise DualCLError(f"{target} exists. Export into a new folder, or move the old one away.")
    sources = trained_checkpoints(model_folder, folds, checkpoint_name)
    number = max((int(fold) for fold in map(_fold_of, sources) if fold != "all"), default=-1)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.partial-") as partial:
        folder = Path(partial) / "model"
        exported: dict[str, list[str]] = {"A": [], "B": []}
        described: dict[str, Any] = {}
        for path in sources:
            checkpoint = torch.load(path, map_location="cpu", weights_only=False)
            for decoder, stock in stock_checkpoints(checkpoint, path).items():
                fold = _fold_of(path) if decoder == "A" else str(number := number + 1)
                (folder / f"fold_{fold}").mkdir(parents=True)
                torch.save(stock, folder / f"fold_{fold}" / "checkpoint_final.pth")
                exported[decoder].append(fold)
                described[f"fold_{fold}"] = {
                    "source": path.parent.name,
                    "decoder": decoder,
                    "trainer": checkpoint["trainer_name"],
                    "checkpoint": checkpoint_name,
                    "epochs_trained": checkpoint["current_epoch"],
                    "config": checkpoint["dualcl"]["config"],
                }
        for name in _MODEL_FILES:
            if (model_folder / name).is_file():
                shutil.copyfile(model_folder / name, folder / name)
        provenance = {
            "source": model_folder.name,
            "nnunet_dualcl": __version__,
            "nnunetv2": getattr(nnunetv2, "__version__", None) or _version("nnunetv2"),
            "torch": torch.__version__,
            "folds": described,
        }
        (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        folder.rename(target)
    return [*exported["A"], *exported["B"]]


def stock_checkpoints(checkpoint: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """By decoder: the part of a checkpoint that nnU-Net's predictor reads, with the stock trainer's name."""
    if "dualcl" not in checkpoint:
        raise DualCLError(
            f"{path} was written by {checkpoint.get('trainer_name')}, not by a trainer of this package; "
            "there is nothing to export."
        )
    weights = checkpoint["network_weights"]
    check_layout(weights, path)
    return {
        decoder: {
            "network_weights": stock,
            "init_args": checkpoint["init_args"],
            "trainer_name": STOCK_TRAINER,
            "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
            "current_epoch": checkpoint["current_epoch"],
        }
        for decoder, stock in stock_weights(weights).items()
    }


def trained_checkpoints(model_folder: Path, folds: Sequence[int | str] | None, checkpoint_name: str) -> list[Path]:
    """Checkpoints of a trained model folder, of the folds given or of all that have one.

    Raises:
        DualCLError: no such model, or no such checkpoint.
    """
    if not (model_folder / "plans.json").is_file():
        raise DualCLError(f"{model_folder} holds no trained model (no plans.json). Check -d, -c, -p and -tr.")
    if folds is None:
        paths = sorted(model_folder.glob(f"fold_*/{checkpoint_name}"))
        if not paths:
            raise DualCLError(
                f"No {checkpoint_name} in any fold of {model_folder}. Train to the end, or name one with -chk."
            )
        return paths
    paths = [model_folder / f"fold_{fold}" / checkpoint_name for fold in folds]
    for path in paths:
        if not path.is_file():
            raise DualCLError(f"{path} does not exist. Train this fold to the end, or name another with -f or -chk.")
    return paths


def _fold_of(checkpoint: Path) -> str:
    return checkpoint.parent.name.removeprefix("fold_")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
