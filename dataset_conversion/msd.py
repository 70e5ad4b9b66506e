"""Tasks of the Medical Segmentation Decathlon, as their ``dataset.json`` lists them.

Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022. nnU-Net's own converter
(``nnUNetv2_convert_MSD_dataset``) does the same without checks, and without unlabeled cases.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_dualcl.dataset_conversion.folds import Fold
from nnunet_dualcl.dataset_conversion.plan import Plan, Refusal, Role, SourceCase
from nnunet_dualcl.dataset_conversion.volumes import load_4d, load_volumes
from nnunet_dualcl.dataset_conversion.write import converter
from nnunet_dualcl.errors import DualCLError

ENDING = ".nii.gz"
_AMOS = re.compile(r"amos_(\d{4})")
_AMOS_LAST_CT = 500
"""Scans of AMOS with a higher number are MR, of other patients."""


def plan(source: Path, *, unlabeled_test: bool = False) -> Plan:
    """Find the cases that a task's ``dataset.json`` lists; a list for validation becomes that of the only fold.

    Args:
        source: folder of the task, with ``dataset.json``.
        unlabeled_test: take the images of ``imagesTs``, which have no labels, as unlabeled cases.

    Raises:
        DualCLError: no ``dataset.json`` there, or none of a task, or that of AMOS, which lists CT and MR as one
            channel.
    """
    content = _description(source)
    validated: set[str] = set()
    try:
        channels = tuple(str(content["modality"][key]) for key in sorted(content["modality"], key=int))
        labels = {str(name): int(value) for value, name in content["labels"].items() if int(value) != 0}
        listed: list[tuple[Role, str, str | None]] = [
            (Role.LABELED, str(each["image"]), str(each["label"])) for each in content["training"]
        ]
        for each in content.get("validation", []):  # AMOS has such a list
            listed.append((Role.LABELED, str(each["image"]), str(each["label"])))
            validated.add(_name(str(each["image"])))
        for each in content.get("test", []):
            image = str(each["image"] if isinstance(each, dict) else each)
            listed.append((Role.UNLABELED if unlabeled_test else Role.TEST, image, None))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DualCLError(f"{source / 'dataset.json'}: not as the Decathlon's ({error!r}).") from None
    numbers = [int(match[1]) for _, image, _ in listed if (match := _AMOS.fullmatch(_name(image)))]
    if numbers and min(numbers) <= _AMOS_LAST_CT < max(numbers):
        raise DualCLError(
            f"{source / 'dataset.json'}: AMOS lists CT scans (to amos_0500) and MR scans (above) together, as channel "
            f"{', '.join(channels)}; they are of different patients, and nnU-Net normalizes CT by Hounsfield units. "
            "Take one of the two with dualcl convert folder, as docs/how_to/convert_public.md shows."
        )
    refused = []
    damaged = []
    cases: dict[str, SourceCase] = {}
    for role, image, label in listed:
        name = _name(image)
        paths = tuple(source / relative for relative in (image, label) if relative is not None)
        missing = [path.name for path in paths if not path.is_file() or not path.name.endswith(ENDING)]
        if missing or name in cases:
            if name in cases:
                refused.append(Refusal(image, "is listed twice"))
            else:
                damaged.append(Refusal(image, f"not found, or no {ENDING}: {', '.join(missing)}"))
            continue
        label_path = paths[1] if label is not None else None
        single = partial(load_volumes, paths[:1], label_path)
        load = single if len(channels) == 1 else partial(load_4d, paths[0], label_path)
        cases[name] = SourceCase(name, name, role, load, paths, Path(image).as_posix())
    return Plan(
        kind="msd",
        channels=channels,
        labels=labels,
        cases=tuple(cases[name] for name in sorted(cases)),
        refused=tuple(refused),
        damaged=tuple(damaged),
        split=_split(cases, validated),
        about={
            "reference": str(content.get("reference", "http://medicaldecathlon.com")),
            "licence": str(content.get("licence", content.get("license", "CC BY-SA 4.0"))),
            "description": f"{source.name}: {content.get('description', '')}".removesuffix(": "),
        },
    )


convert = converter(plan)
"""See :func:`~nnunet_dualcl.dataset_conversion.write.converter`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this kind."""
    parser.add_argument("--unlabeled-test", action="store_true", help="take imagesTs as unlabeled cases")


def keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parsed arguments as keywords of :func:`plan`."""
    return {"unlabeled_test": arguments.unlabeled_test}


def _name(image: str) -> str:
    return Path(image).name.removesuffix(ENDING)


def _split(cases: Mapping[str, SourceCase], validated: set[str]) -> tuple[Fold, ...] | None:
    """The fold of a list for validation, where there is one and both of its sides have cases."""
    labeled = sorted(name for name, case in cases.items() if case.role is Role.LABELED)
    fold: Fold = {
        "train": [name for name in labeled if name not in validated],
        "val": [name for name in labeled if name in validated],
    }
    return (fold,) if fold["train"] and fold["val"] else None


def _description(source: Path) -> dict[str, Any]:
    path = source / "dataset.json"
    if not path.is_file():
        near = [*sorted(source.glob("*/dataset.json")), source.absolute().parent / "dataset.json"]
        task = next((each.parent for each in near if each.is_file()), None)
        raise DualCLError(
            f"{path} is not there. Give the folder of one task"
            + (f", such as {task}." if task else ", which holds it.")
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DualCLError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(content, dict):
        raise DualCLError(f"{path}: holds {type(content).__name__}, a description of a task is wanted.")
    if "channel_names" in content:
        raise DualCLError(f"{path}: is nnU-Net's, not the Decathlon's; {source.name} is converted already.")
    return content
