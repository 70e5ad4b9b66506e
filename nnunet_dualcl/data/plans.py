"""nnU-Net's plans and description of a dataset, or a message that says how to make or mend them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    """nnU-Net's command that makes the labeled cases of these plans; it takes the number of a ``DatasetXXX_NAME``."""
    return f"nnUNetv2_preprocess -d {_number(dataset)} -plans_name {plans_name} -c {configuration}"


def unlabeled_command(dataset: str, plans_name: str, configuration: str) -> str:
    """The command that makes the unlabeled cases of these plans."""
    return f"dualcl preprocess -d {_number(dataset)} -p {plans_name} -c {configuration}"


def _number(dataset: str) -> str:
    number = re.match(r"Dataset(\d+)", dataset)
    return str(int(number[1])) if number else dataset
